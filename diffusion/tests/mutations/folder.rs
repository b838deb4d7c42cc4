//! The JSON files and the tokenizer of a diffusers folder, one after the other.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use diffusion::{
    Result,
    schedule::{Sampler, SamplerName},
    source::{Source, SourceOptions},
    text::TextEncoder,
    tokenizer::Tokenizer,
    unet::Unet,
    vae::Vae,
    weights::Parameters,
};
use serde_json::{Value, json};

use crate::mutate::check;

/// A copy of the golden pipeline's folder, which is small.
fn copied() -> tempfile::TempDir {
    let model = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/pipeline/model"));
    let folder = tempfile::tempdir().unwrap();
    for part in ["text_encoder", "tokenizer", "scheduler", "unet", "vae", "."] {
        fs_err::create_dir_all(folder.path().join(part)).unwrap();
        for entry in fs_err::read_dir(model.join(part)).unwrap().map(Result::unwrap) {
            if entry.path().is_file() {
                fs_err::copy(entry.path(), folder.path().join(part).join(entry.file_name())).unwrap();
            }
        }
    }
    folder
}

fn open(folder: &Path) -> Result<Source> {
    Source::open(folder.to_str().unwrap(), SourceOptions::default())
}

/// What damage to a config cannot change: the weights are there.
fn shapes(parameters: &Parameters) -> BTreeMap<String, Vec<i64>> {
    parameters.tensors.iter().map(|(key, tensor)| (key.clone(), tensor.size())).collect()
}

fn damage<T: PartialEq + std::fmt::Debug>(folder: &Path, file: &str, read: impl Fn(&Source) -> Result<T>) {
    let path = folder.join(file);
    let valid = fs_err::read(&path).unwrap();
    check(&path, &valid, || read(&open(folder)?));
}

#[test]
fn the_index_of_a_folder() {
    damage(copied().path(), "model_index.json", |_| Ok(()));
}

#[test]
fn the_config_of_a_unet() {
    damage(copied().path(), "unet/config.json", |source| {
        let (config, weights) = source.unet()?;
        Ok(shapes(&Unet::new(&config, weights)?.parameters))
    });
}

#[test]
fn the_config_of_a_vae() {
    damage(copied().path(), "vae/config.json", |source| {
        let (config, weights) = source.vae()?;
        Ok(shapes(&Vae::new(&config, weights)?.parameters))
    });
}

#[test]
fn the_config_of_a_text_encoder() {
    damage(copied().path(), "text_encoder/config.json", |source| {
        let (config, weights) = source.text_encoder()?;
        Ok(shapes(&TextEncoder::new(&config, weights)?.parameters))
    });
}

#[test]
fn the_settings_of_a_scheduler() {
    damage(copied().path(), "scheduler/scheduler_config.json", |source| {
        let config = source.scheduler()?;
        for name in SamplerName::ALL {
            // What one sampler refuses another may take; none may panic.
            Sampler::new(name, &config, 2, 0.0).ok();
        }
        Ok(())
    });
}

#[test]
fn the_index_of_shards() {
    let folder = copied();
    let unet = folder.path().join("unet");
    let (whole, shard) = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-00001-of-00001.safetensors");
    fs_err::rename(unet.join(whole), unet.join(shard)).unwrap();
    let index =
        json!({"metadata": {"total_size": 220_000}, "weight_map": {"conv_in.bias": shard, "conv_in.weight": shard}});
    fs_err::write(unet.join(format!("{whole}.index.json")), index.to_string()).unwrap();
    damage(folder.path(), &format!("unet/{whole}.index.json"), |source| {
        let (config, weights) = source.unet()?;
        Ok(shapes(&Unet::new(&config, weights)?.parameters))
    });
}

#[test]
fn the_one_file_of_a_tokenizer() {
    let folder = copied();
    let encoded = |source: &Source| {
        let tokenizer = source.tokenizer()?;
        tokenizer.encode("a red sea!")?;
        Ok(())
    };
    damage(folder.path(), "tokenizer/tokenizer.json", encoded);
    damage(folder.path(), "tokenizer/tokenizer_config.json", encoded);
}

/// As transformers 4 writes it.
#[test]
fn the_files_of_an_old_tokenizer() {
    let folder = copied();
    let tokenizer = folder.path().join("tokenizer");
    let text = fs_err::read_to_string(tokenizer.join("tokenizer.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    let merges = file["model"]["merges"].as_array().unwrap().iter();
    let merges = merges.map(|pair| format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()));
    let write = |name: &str, content: String| fs_err::write(tokenizer.join(name), content).unwrap();
    write("merges.txt", format!("#version: 0.2\n{}", merges.collect::<String>()));
    write("vocab.json", file["model"]["vocab"].to_string());
    write("special_tokens_map.json", json!({"bos_token": "<|startoftext|>", "pad_token": "!"}).to_string());
    write("added_tokens.json", json!({"<cat>": 521, "<cat>_1": 522}).to_string());
    fs_err::remove_file(tokenizer.join("tokenizer.json")).unwrap();
    for name in ["vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"] {
        let path = tokenizer.join(name);
        let valid = fs_err::read(&path).unwrap();
        check(&path, &valid, || {
            let tokenizer = Tokenizer::open(&tokenizer)?;
            tokenizer.encode("a <cat> by the red sea!")?;
            Ok(())
        });
    }
}
