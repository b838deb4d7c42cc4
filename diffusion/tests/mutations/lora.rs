//! LoRA files: the header of kohya's, PEFT's `adapter_config.json`.

use std::{collections::BTreeMap, path::Path};

use diffusion::lora::{Layers, Lora, LoraFile};
use safetensors::{Dtype, tensor::TensorView};

use crate::mutate::check;

fn layers() -> Layers {
    let names =
        ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.attentions.0.proj_in", "conv_in"];
    let shapes = [vec![8, 8], vec![8, 8, 1, 1], vec![8, 4, 3, 3]];
    let unet = names.map(str::to_owned).into_iter().zip(shapes).collect();
    Layers { unet, text: BTreeMap::new() }
}

/// Names with shapes and scale.
type Adapters = Vec<(String, Vec<i64>, Vec<i64>, f64)>;

fn adapters(lora: &Lora) -> Adapters {
    let all = lora.unet.iter().chain(&lora.text);
    all.map(|(name, adapter)| (name.clone(), adapter.down.size(), adapter.up.size(), adapter.scale)).collect()
}

/// Tensors of rank 2, with an alpha of 1 unless the layer's name is `alone`.
fn file(key: impl Fn(&str, &str) -> String, parts: [&str; 2], alpha: Option<&str>) -> Vec<u8> {
    let mut tensors = BTreeMap::new();
    let bytes: Vec<u8> = (0..1024_u16).flat_map(|number| (f32::from(number) / 1024.0 + 1.0).to_le_bytes()).collect();
    let view = |shape: &[usize]| {
        TensorView::new(Dtype::F32, shape.to_vec(), &bytes[..4 * shape.iter().product::<usize>()]).unwrap()
    };
    for (layer, shape) in &layers().unet {
        let inner: Vec<usize> = shape[1..].iter().map(|size| *size as usize).collect();
        let ones = vec![1; inner.len() - 1];
        tensors.insert(key(layer, parts[0]), view(&[&[2], &inner[..]].concat()));
        tensors.insert(key(layer, parts[1]), view(&[&[shape[0] as usize, 2], &ones[..]].concat()));
        if let Some(alpha) = alpha {
            tensors.insert(key(layer, alpha), view(&[]));
        }
    }
    safetensors::serialize(tensors, None).unwrap()
}

#[test]
fn the_header_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let key = |layer: &str, part: &str| format!("lora_unet_{}.{part}", layer.replace('.', "_"));
    let whole = file(key, ["lora_down.weight", "lora_up.weight"], Some("alpha"));
    let size = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let (header, values) = whole.split_at(size);
    // Only the header is damaged: a changed value cannot be told.
    let (damaged, path) = (folder.path().join("lora"), folder.path().join("lora.safetensors"));
    check(&damaged, header, || {
        fs_err::write(&path, [&fs_err::read(&damaged)?, values].concat())?;
        Ok(adapters(&LoraFile::open(&path)?.fit(&layers(), 1.0)?))
    });
}

#[test]
fn pefts_adapter_config() {
    let folder = tempfile::tempdir().unwrap();
    let key = |layer: &str, part: &str| format!("base_model.model.{layer}.{part}");
    let weights = file(key, ["lora_A.weight", "lora_B.weight"], None);
    fs_err::write(folder.path().join("adapter_model.safetensors"), weights).unwrap();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/lora/peft/adapter_config.json");
    let config = fs_err::read(Path::new(golden)).unwrap();
    let read = || {
        let lora = LoraFile::open(folder.path())?.fit(&layers(), 1.0)?;
        // Another number for alpha, or another word for true, cannot be told.
        Ok(adapters(&lora)
            .into_iter()
            .map(|(name, down, up, scale)| (name, down, up, scale.is_finite()))
            .collect::<Vec<_>>())
    };
    check(&folder.path().join("adapter_config.json"), &config, read);
}

/// What damage to names and types leaves readable, but not the same: the scale must not fall back to another in silence.
#[test]
fn what_decides_the_scale_is_never_lost_in_silence() {
    let folder = tempfile::tempdir().unwrap();
    let key = |layer: &str, part: &str| format!("base_model.model.{layer}.{part}");
    let weights = file(key, ["lora_A.weight", "lora_B.weight"], None);
    fs_err::write(folder.path().join("adapter_model.safetensors"), weights).unwrap();
    let config = |text: &str| {
        fs_err::write(folder.path().join("adapter_config.json"), text).unwrap();
        let lora = LoraFile::open(folder.path()).and_then(|file| file.fit(&layers(), 1.0));
        lora.map(|lora| lora.unet["conv_in"].scale).map_err(|error| error.to_string())
    };
    assert_eq!(config(r#"{"lora_alpha": 3, "r": 2, "peft_type": "LORA"}"#), Ok(1.5));
    assert_eq!(config(r#"{"lora_alpha": 3, "alpha_pattern": {"conv_in": 1}}"#), Ok(0.5));
    for (text, part) in [
        (r#"{"lora_alphb": 3, "r": 2}"#, "unknown key `lora_alphb`"),
        (r#"{"r": 2}"#, "`lora_alpha` is missing"),
        (r#"{"lora_alpha": "3"}"#, "want a number"),
        (r#"{"lora_alpha": null}"#, "want a number"),
        (r#"{"lora_alpha": 3, "use_rslorb": true}"#, "unknown key `use_rslorb`"),
        (r#"{"lora_alpha": 3, "use_rslora": 1}"#, "want true or false"),
        (r#"{"lora_alpha": 3, "alpha_pattern": {"conv_in": "1"}}"#, "want a number"),
        (r#"{"lora_alpha": 3, "alpha_pattern": {"conv_in(": 1}}"#, "not understood"),
        (r#"{"lora_alpha": 3, "alpha_pattern": []}"#, "want an object"),
        (r#"{"lora_alpha": 3, "use_dora": true}"#, "DoRA"),
        (r#"{"lora_alpha": 3, "peft_type": "LOHA"}"#, "LOHA"),
        (r#"{"lora_alpha": 3, "init_lora_weights": "pissa_niter_4"}"#, "pissa_niter_4"),
        (r#"["lora_alpha"]"#, "not a JSON object"),
    ] {
        let error = config(text).unwrap_err();
        assert!(error.contains("adapter_config.json") && error.contains(part) && !error.contains('\n'), "{error}");
    }
}
