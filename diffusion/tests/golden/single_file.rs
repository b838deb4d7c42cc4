//! Single-file checkpoints against what diffusers' converter makes of their keys (`sd_keys.py`).

use std::{collections::HashMap, path::Path};

use diffusion::{
    remark::Remark,
    schedule::{PredictionType, SamplerName, Spacing},
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

/// A header with metadata and empty keys beside the model's, over zeros that take no room on the disk.
fn write_saying(path: &Path, family: &str, empty: &[&str], metadata: &[(&str, &str)]) {
    let mut header = serde_json::Map::new();
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value)));
    header.insert("__metadata__".to_owned(), Value::from_iter(metadata));
    let mut end = 0;
    let mut insert = |key: &str, shape: &[usize]| {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert(key.to_owned(), entry);
    };
    keys(family).iter().for_each(|(_, ldm, _, shape)| insert(ldm, shape));
    empty.iter().for_each(|key| insert(key, &[0]));
    let header = Value::from(header).to_string();
    fs_err::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    let file = fs_err::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
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

/// What is predicted, the spacing, and the remarks in one text; or the error with its hint.
fn says(path: &Path, asked: Option<PredictionType>) -> Result<(PredictionType, Option<Spacing>, String), String> {
    let options = SourceOptions { prediction_type: asked, ..SourceOptions::default() };
    let read = || {
        let source = Source::open(path.to_str().unwrap(), options)?;
        let config = source.scheduler()?;
        let remarks = source.remarks()?.into_iter().map(|remark| match remark {
            Remark::Note(text) => format!("note: {text}"),
            Remark::Warning(text) => format!("warning: {text}"),
        });
        assert_eq!(config.rescale_betas_zero_snr, config.timestep_spacing.is_some());
        source.sampler(SamplerName::Ddim, 10, 0.0)?;
        Ok((config.prediction_type, config.timestep_spacing, remarks.collect::<Vec<_>>().join("\n")))
    };
    read().map_err(|error: diffusion::Error| format!("{error}\n{}", error.hint_text().unwrap_or_default()))
}

/// ComfyUI writes `v_pred`, `ztsnr` and `modelspec.predict_key`, kohya `modelspec.prediction_type`.
#[test]
fn what_a_file_says_of_its_prediction_is_followed() {
    use PredictionType::{Epsilon, Velocity};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let trailing = Some(Spacing::Trailing);
    for (family, keys, metadata, wanted, spacing, told) in [
        ("sd1", &[][..], &[][..], Epsilon, None, "note: prediction type: epsilon"),
        ("sd2", &[], &[], Epsilon, None, "warning: "),
        ("sd2", &[], &[("modelspec.prediction_type", "v")], Velocity, None, "note: prediction type: v_prediction, as"),
        ("sd2", &[], &[("modelspec.prediction_type", "epsilon")], Epsilon, None, "note: "),
        ("sd1", &[], &[("modelspec.predict_key", "v")], Velocity, None, "modelspec.predict_key"),
        ("sd2", &[], &[("modelspec.architecture", "stable-diffusion-v2-768-v")], Velocity, None, "architecture"),
        ("sd2", &[], &[("modelspec.architecture", "stable-diffusion-v2-512")], Epsilon, None, "note: "),
        ("sd1", &["v_pred"], &[], Velocity, None, "its key `v_pred`"),
        ("sd2", &["v_pred", "ztsnr"], &[("modelspec.predict_key", "v")], Velocity, trailing, "note: zero terminal SNR"),
    ] {
        write_saying(&path, family, keys, metadata);
        let (found, spaced, remarks) = says(&path, None).unwrap();
        assert_eq!((found, spaced), (wanted, spacing), "{family} {keys:?} {metadata:?}");
        assert!(remarks.contains(told), "{family} {keys:?} {metadata:?}: {remarks}");
        assert_eq!(remarks.contains("warning"), told == "warning: ", "{remarks}");
        assert!(!remarks.contains("warning") || remarks.contains("--prediction-type v_prediction"));
    }
    // Contradictions and what this program does not have are refused, unless the user says.
    for (keys, metadata, message) in [
        (
            &["v_pred"][..],
            ("modelspec.prediction_type", "epsilon"),
            "contradicts itself: its key `v_pred`, but `modelspec",
        ),
        (&[], ("modelspec.prediction_type", "flow"), "`modelspec.prediction_type` \"flow\": no prediction type"),
        (&["ztsnr"], ("modelspec.prediction_type", "epsilon"), "key `ztsnr`: a schedule that ends in pure noise"),
    ] {
        write_saying(&path, "sd1", keys, &[metadata]);
        let error = says(&path, None).unwrap_err();
        assert!(error.contains(message) && error.contains("--prediction-type"), "{error}");
        let (found, _, remarks) = says(&path, Some(Velocity)).unwrap();
        assert_eq!(found, Velocity);
        assert!(remarks.contains("v_prediction, as asked"), "{remarks}");
    }
}

/// As CompVis' and Stability's programs, AUTOMATIC1111's and diffusers (`original_config`) read it.
#[test]
fn a_yaml_beside_a_file_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write_saying(&path, "sd2", &[], &[]);
    let yaml = |text: &str| fs_err::write(folder.path().join("model.yaml"), text).unwrap();
    let v = "\u{feff}model:\n  params:\n    parameterization: \"v\"\n    linear_start: 0.001\n    timesteps: 500\n";
    yaml(v);
    let (found, _, remarks) = says(&path, None).unwrap();
    assert_eq!(found, PredictionType::Velocity);
    assert!(remarks.contains("`parameterization` \"v\" in") && remarks.contains("model.yaml"), "{remarks}");
    let config = Source::open(path.to_str().unwrap(), SourceOptions::default()).unwrap().scheduler().unwrap();
    assert_eq!((config.beta_start, config.beta_end, config.num_train_timesteps), (0.001, 0.012, 500));
    yaml("model:\n  params:\n    linear_start: 0.00085\n");
    let (found, _, remarks) = says(&path, None).unwrap();
    assert_eq!(found, PredictionType::Epsilon);
    assert!(remarks.starts_with("note: ") && remarks.contains("no `parameterization` in"), "{remarks}");
    for (text, message) in [
        (
            "model:\n  params:\n    parameterization: x0\n    timesteps: many\n",
            "`timesteps` is many, want a whole number",
        ),
        ("model:\n  params:\n    timesteps: 1000000000\n", "`num_train_timesteps` is 1000000000"),
        ("model\n", "model.yaml line 1: not `key: value`"),
        (
            "model:\n  params:\n    cond_stage_config:\n      params:\n        layer: last\n",
            "`cond_stage_config.params.layer` is last, want penultimate",
        ),
    ] {
        yaml(text);
        let error = says(&path, None).unwrap_err();
        assert!(error.contains("model.yaml") && error.contains(message), "{error}");
    }
}

/// kohya and ComfyUI say what a model was trained at.
#[test]
fn the_resolution_in_the_metadata_is_the_default_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for (said, wanted) in [("768x768", [96, 96]), ("768x512", [64, 96]), ("1e9x1e9", [64, 64])] {
        write_saying(&path, "sd1", &[], &[("modelspec.resolution", said)]);
        let source = Source::open(path.to_str().unwrap(), SourceOptions::default()).unwrap();
        assert_eq!(source.unet_config().unwrap().sample_size, wanted, "{said}");
    }
}

#[test]
fn files_that_are_no_checkpoint_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part.safetensors");
    for (key, shape, name, hint) in [
        ("down_blocks.0.resnets.0.conv1.weight", vec![1, 1], "a UNet by itself", "model_index.json"),
        ("encoder.down_blocks.0.resnets.0.conv1.weight", vec![1, 1], "a VAE by itself", "model_index.json"),
        ("encoder.down.0.block.0.conv1.weight", vec![1, 1], "a VAE by itself", "model_index.json"),
        ("text_model.final_layer_norm.bias", vec![1], "a text encoder by itself", "model_index.json"),
        ("input_blocks.0.0.weight", vec![1, 1], "a UNet by itself", "model_index.json"),
        ("model.diffusion_model.input_blocks.0.0.weight", vec![1, 1], "no VAE in this file", "holds UNet, VAE"),
        ("first_stage_model.encoder.conv_in.weight", vec![1, 1], "no UNet in this file", "holds UNet, VAE"),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", vec![1, 1], "a LoRA", "--lora"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", vec![1, 1], "a LoRA", "--lora"),
        ("emb_params", vec![2, 768], "an embedding of textual inversion", "load_textual_inversion"),
        ("<cat-toy>", vec![768], "an embedding of textual inversion", "load_textual_inversion"),
        ("control_model.input_blocks.0.0.weight", vec![1, 1], "a ControlNet", "--model"),
        ("add_embedding.linear_1.weight", vec![1, 1], "a UNet of Stable Diffusion XL", ""),
        ("double_blocks.0.img_attn.proj.bias", vec![1], "Flux", ""),
        ("transformer_blocks.0.attn.to_q.weight", vec![1, 1], "a diffusion transformer", ""),
    ] {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &bytes).unwrap();
        safetensors::serialize_to_file([(key, view)], None, &path).unwrap();
        let error = Source::open(path.to_str().unwrap(), SourceOptions::default()).err().unwrap();
        assert!(error.to_string().contains("part.safetensors") && error.to_string().contains(name), "{error}");
        assert!(error.hint_text().unwrap_or_default().contains(hint), "{:?}", error.hint_text());
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
