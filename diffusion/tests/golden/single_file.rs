//! Single-file checkpoints against what diffusers' converter makes of their keys (`sd_keys.py`).

use std::{collections::HashMap, path::Path};

use diffusion::{
    source::{Source, SourceOptions},
    text::TextEncoder,
    unet::Unet,
    vae::Vae,
    weights::Parameters,
};
use serde_json::Value;

use crate::fixture::values;

const LAST: &str = ".resblocks.2.";

/// LDM keys of one family with their diffusers keys and shapes.
fn keys(family: &str) -> Vec<(String, String, Vec<String>, Vec<usize>)> {
    let all: Value = serde_json::from_str(include_str!("../../../tests/golden/sd_keys.json")).unwrap();
    let models = [("unet", family), ("vae", "sd1"), ("text_encoder", family)];
    let mut found = Vec::new();
    for (model, family) in models {
        for (ldm, entry) in all[family][model]["keys"].as_object().unwrap() {
            let names: Vec<String> = serde_json::from_value(entry[0].clone()).unwrap();
            let shape: Vec<usize> = serde_json::from_value(entry[1].clone()).unwrap();
            found.push((model.to_owned(), ldm.clone(), names, shape));
        }
    }
    assert!(found.len() > 700);
    found
}

/// Element `index` of the tensor of the LDM key number `number`: every tensor, and every row, is another.
fn value(number: usize, index: usize) -> f32 {
    number as f32 + (index % 97) as f32 / 128.0
}

fn write(path: &Path, family: &str, extra: &[&str]) {
    let mut tensors = HashMap::new();
    for (number, (_, ldm, _, shape)) in keys(family).into_iter().enumerate() {
        let bytes = (0..shape.iter().product()).flat_map(|index| value(number, index).to_le_bytes()).collect();
        tensors.insert(ldm, (shape, bytes));
    }
    for name in extra {
        tensors.insert((*name).to_owned(), (vec![1], vec![0_u8; 4]));
    }
    let views = tensors.iter().map(|(name, (shape, bytes)): (&String, &(Vec<usize>, Vec<u8>))| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// What trainers leave in published files.
const LEFT: [&str; 6] = [
    "model_ema.diffusion_modelinput_blocks00weight",
    "model_ema.decay",
    "alphas_cumprod",
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "first_stage_model.loss.logvar",
    "cond_stage_model.model.text_projection",
];

/// The folder holds the file, from which weights are read when they are asked for.
fn opened(family: &str) -> (tempfile::TempDir, Source) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, family, &LEFT[..if family == "sd1" { 5 } else { 6 }]);
    let source = Source::open(path.to_str().unwrap(), SourceOptions::default()).unwrap();
    (folder, source)
}

#[test]
fn every_key_comes_from_where_diffusers_takes_it() {
    for family in ["sd1", "sd2"] {
        let (_folder, source) = opened(family);
        assert!(source.prediction_type_is_assumed());
        let (config, weights) = source.unet().unwrap();
        let unet = Unet::new(&config, weights).unwrap();
        let (config, weights) = source.vae().unwrap();
        let vae = Vae::new(&config, weights).unwrap();
        let (config, weights) = source.text_encoder().unwrap();
        let text = TextEncoder::new(&config, weights).unwrap();
        let mut compared = 0;
        for (number, (model, ldm, names, _)) in keys(family).into_iter().enumerate() {
            assert_eq!(names.is_empty(), family == "sd2" && ldm.contains(LAST), "{ldm}");
            let parts: &Parameters = match model.as_str() {
                "unet" => &unet.parameters,
                "vae" => &vae.parameters,
                _ => &text.parameters,
            };
            let mut start = 0;
            for name in names {
                let name = if model == "text_encoder" { format!("text_model.{name}") } else { name };
                let found = values(&parts.tensors[&name]);
                let wanted: Vec<f32> = (start..start + found.len()).map(|index| value(number, index)).collect();
                assert_eq!(found, wanted, "{ldm} -> {name}");
                start += found.len();
                compared += 1;
            }
        }
        let all = unet.parameters.tensors.len() + vae.parameters.tensors.len() + text.parameters.tensors.len();
        assert_eq!(compared, all);
    }
}

#[test]
fn configs_come_from_shapes() {
    let all: Value = serde_json::from_str(include_str!("../../../tests/golden/sd_keys.json")).unwrap();
    for family in ["sd1", "sd2"] {
        let (_folder, source) = opened(family);
        let text = source.text_encoder().unwrap().0;
        let found = [
            ("unet", family, source.unet_config().unwrap().to_json()),
            ("vae", "sd1", source.vae().unwrap().0.to_json()),
            ("text_encoder", family, text.to_json()),
        ];
        for (model, family, found) in found {
            for (field, wanted) in all[family][model]["config"].as_object().unwrap() {
                assert_eq!(&found[field], wanted, "{family} {model} {field}");
            }
        }
    }
}

#[test]
fn other_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let refused = |extra: &[&str]| {
        write(&path, "sd1", extra);
        Source::open(path.to_str().unwrap(), SourceOptions::default()).err().unwrap().to_string()
    };
    for (key, name) in [
        (
            "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
            "Stable Diffusion XL is not supported",
        ),
        ("model.diffusion_model.joint_blocks.0.context_block.attn.proj.bias", "Stable Diffusion 3 is not supported"),
        ("model.diffusion_model.double_blocks.0.img_attn.proj.bias", "Flux is not supported"),
        ("optimizer.state", "`optimizer.state`"),
        ("model.diffusion_model.input_blocks.1.2.weight", "`model.diffusion_model.input_blocks.1.2.weight`"),
    ] {
        let error = refused(&[key]);
        assert!(error.contains(name) && error.contains("model.safetensors"), "{error}");
    }
    let whole = fs_err::read(&path).unwrap();
    fs_err::write(&path, &whole[..whole.len() - 100]).unwrap();
    let error = Source::open(path.to_str().unwrap(), SourceOptions::default()).err().unwrap();
    assert!(error.to_string().contains("not a complete safetensors file"), "{error}");
}
