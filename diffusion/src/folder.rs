//! A diffusers folder: `model_index.json`, a sub-folder per model with its `config.json` and weights, `tokenizer/` and
//! `scheduler/`.
//!
//! `safety_checker` and `feature_extractor` are not read. Weights may be fp32 or an `fp16` variant, in one file or sharded,
//! safetensors or PyTorch's `.bin` (of which nothing is executed).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use reward::weights::{file::TensorFile, shards, wrappers};
use serde_json::Value;

use crate::{Error, Result, config::other_family, json, weights::Stored};

/// Pipelines that are made of the models this crate has.
const PIPELINES: [&str; 3] =
    ["StableDiffusionPipeline", "StableDiffusionPipelineSafe", "StableDiffusionImg2ImgPipeline"];

/// What a folder has to hold.
const PARTS: &str =
    "a diffusers folder holds model_index.json and the folders unet, vae, text_encoder, tokenizer, scheduler";

/// A model with weights of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// `unet/`.
    Unet,
    /// `vae/`.
    Vae,
    /// `text_encoder/`.
    TextEncoder,
}

impl Component {
    /// The folder of the component in a model folder.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::Vae => "vae",
            Self::TextEncoder => "text_encoder",
        }
    }

    /// A key of every such model, by which it is found under whatever wraps it.
    fn anchors(self) -> &'static [&'static str] {
        match self {
            Self::Unet => &["time_embedding.linear_1.weight"],
            Self::Vae => &["encoder.conv_in.weight"],
            Self::TextEncoder => &["text_model.embeddings.token_embedding.weight"],
        }
    }

    /// Names its weights may have, best first: full precision before `fp16`, safetensors before pickles.
    pub(crate) fn weight_files(self) -> [&'static str; 13] {
        match self {
            Self::Unet | Self::Vae => [
                "diffusion_pytorch_model.safetensors",
                "diffusion_pytorch_model.safetensors.index.json",
                "diffusion_pytorch_model.bin",
                "diffusion_pytorch_model.bin.index.json",
                "diffusion_pytorch_model.fp16.safetensors",
                "diffusion_pytorch_model.safetensors.index.fp16.json",
                "diffusion_pytorch_model.fp16.safetensors.index.json",
                "diffusion_pytorch_model.fp16.bin",
                "diffusion_pytorch_model.bin.index.fp16.json",
                "model.safetensors",
                "model.fp16.safetensors",
                "pytorch_model.bin",
                "pytorch_model.fp16.bin",
            ],
            Self::TextEncoder => [
                "model.safetensors",
                "model.safetensors.index.json",
                "pytorch_model.bin",
                "pytorch_model.bin.index.json",
                "model.fp16.safetensors",
                "model.safetensors.index.fp16.json",
                "model.fp16.safetensors.index.json",
                "pytorch_model.fp16.bin",
                "pytorch_model.bin.index.fp16.json",
                "diffusion_pytorch_model.safetensors",
                "diffusion_pytorch_model.fp16.safetensors",
                "diffusion_pytorch_model.bin",
                "diffusion_pytorch_model.fp16.bin",
            ],
        }
    }
}

/// Checks that the folder is a pipeline of Stable Diffusion 1.x or 2.x.
///
/// # Errors
/// No `model_index.json` (what the folder is instead is said), or another architecture (named).
pub fn check(folder: &Path) -> Result<()> {
    let path = folder.join("model_index.json");
    if !path.is_file() {
        let (what, hint) = other_folder(folder);
        return Err(Error::data(format!("{}: no such file{what}", path.display())).hint(hint));
    }
    let index = json::read(&path)?;
    let class = index["_class_name"].as_str().unwrap_or_default();
    if PIPELINES.contains(&class) {
        return Ok(());
    }
    let family = other_family(class).map_or(String::new(), |family| format!(" ({family})"));
    let text = format!("{}: `{class}`{family} is not supported, want StableDiffusionPipeline", path.display());
    Err(Error::data(text).hint("Stable Diffusion 1.x and 2.x are supported"))
}

/// What a folder without `model_index.json` is, where that can be told, and the way out.
fn other_folder(folder: &Path) -> (String, String) {
    let has = |name: &str| folder.join(name).exists();
    let config = json::read(&folder.join("config.json")).unwrap_or_default();
    if let Some(class) = config["_class_name"].as_str().or(config["architectures"][0].as_str()) {
        let above = folder.parent().filter(|above| above.join("model_index.json").is_file());
        let hint = above.map_or(PARTS.to_owned(), |above| format!("give the folder above it: {}", above.display()));
        return (format!("; the folder holds one model, {class}"), hint);
    }
    let run = "; the folder is a run of `diffusion finetune`".to_owned();
    if has("metrics.jsonl") && has("lora") {
        let lora = folder.join("lora");
        return (run, format!("--lora {}, beside the --model that it was trained from", lora.display()));
    }
    if has("metrics.jsonl") && has("model") {
        return (run, format!("--model {}", folder.join("model").display()));
    }
    if has("adapter_config.json") || has("pytorch_lora_weights.safetensors") {
        return (
            "; the folder holds a LoRA".to_owned(),
            format!("--lora {}, beside the --model that it is for", folder.display()),
        );
    }
    let files = fs_err::read_dir(folder).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let single = files.filter(|path| {
        path.extension().is_some_and(|ending| ["safetensors", "ckpt"].iter().any(|known| ending == *known))
    });
    if let Some(single) = single.min() {
        return (String::new(), format!("is it a single-file model? --model {}", single.display()));
    }
    (String::new(), PARTS.to_owned())
}

/// Where the `config.json` of a model is.
pub(crate) fn config_path(folder: &Path, component: Component) -> PathBuf {
    folder.join(component.folder()).join("config.json")
}

/// `config.json` of a model.
///
/// # Errors
/// It is missing (named) or not JSON.
pub fn config(folder: &Path, component: Component) -> Result<Value> {
    json::read(&config_path(folder, component))
}

/// Where the scheduler's settings are.
pub(crate) fn scheduler_path(folder: &Path) -> PathBuf {
    folder.join("scheduler/scheduler_config.json")
}

/// The text of `scheduler/scheduler_config.json`.
///
/// # Errors
/// It is missing (named) or no text.
pub fn scheduler(folder: &Path) -> Result<String> {
    json::text(&scheduler_path(folder))
}

/// The files that hold the weights of a model, opened, and where its keys are.
///
/// # Errors
/// No weights in the folder (the name wanted is said), a shard that is missing, a truncated file.
pub fn weights(folder: &Path, component: Component) -> Result<(Vec<TensorFile>, BTreeMap<String, Stored>)> {
    let paths = weight_paths(&folder.join(component.folder()), component)?;
    let files = paths.iter().map(|path| TensorFile::open_all(path)).collect::<Result<Vec<_>>>()?;
    files.iter().try_for_each(plain)?;
    let places = wrappers::find(&files, component.anchors(), None)?;
    let place = places.into_iter().map(|(key, (file, name))| (key, Stored { file, name, rows: None })).collect();
    Ok((files, place))
}

/// Refuses weights that were saved while adapters were attached.
fn plain(file: &TensorFile) -> Result<()> {
    let parts = [".base_layer.", ".lora_A.", ".lora_B.", "_lora.down.", "_lora.up.", ".lora_linear_layer."];
    let Some(key) = file.shapes().keys().find(|key| parts.iter().any(|part| key.contains(part))) else {
        return Ok(());
    };
    let text = format!("{}: saved with adapters inside (`{key}`), want plain weights", file.path().display());
    Err(Error::data(text).hint(
        "save it again in Python: `pipe.fuse_lora()` (to keep what they do), `pipe.unload_lora_weights()`, then \
         `pipe.save_pretrained(FOLDER)`",
    ))
}

/// The weight files of a model, in one piece or in shards.
fn weight_paths(folder: &Path, component: Component) -> Result<Vec<PathBuf>> {
    let names = component.weight_files();
    let Some(name) = names.iter().find(|name| folder.join(name).is_file()) else {
        return Err(Error::data(format!("{}: no such file", folder.join(names[0]).display()))
            .hint("also looked for fp16 variants, sharded files with their index, and .bin files"));
    };
    let path = folder.join(name);
    if !name.ends_with(".json") {
        return Ok(vec![path]);
    }
    shards::of(&path)
}

#[cfg(test)]
mod tests {
    use reward::weights::save::{ReadValues, named_tensors};

    use super::*;
    use crate::weights::Weights;

    /// A UNet folder with these tensors of two values.
    fn unet(folder: &Path, tensors: &[(&str, [f32; 2])]) -> Weights {
        let unet = folder.join("unet");
        fs_err::create_dir_all(&unet).unwrap();
        let lazy = tensors
            .iter()
            .map(|(name, values)| ((*name).to_owned(), vec![2], Box::new(|| Ok(values.to_vec())) as ReadValues));
        named_tensors(&unet.join("diffusion_pytorch_model.safetensors"), lazy.collect()).unwrap();
        let (files, place) = weights(folder, Component::Unet).unwrap();
        Weights::from_files("sd (unet)".to_owned(), files, place)
    }

    #[test]
    fn a_compiled_unet_under_any_prefix_has_its_own_keys() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = [
            ("net._orig_mod.time_embedding.linear_1.weight", [1.0, 2.0]),
            ("net._orig_mod.mid_block.module.bias", [3.0, 4.0]),
            ("n_averaged", [0.0, 0.0]),
        ];
        let mut weights = unet(folder.path(), &tensors);
        for (key, wanted) in [("time_embedding.linear_1.weight", [1.0, 2.0]), ("mid_block.bias", [3.0, 4.0])] {
            assert_eq!(Vec::<f32>::try_from(weights.tensor(key, &[2])).unwrap(), wanted);
        }
        weights.finish().unwrap();
    }

    #[test]
    fn a_tensor_that_cannot_be_read_is_no_sign_of_another_model() {
        let folder = tempfile::tempdir().unwrap();
        let mut weights = unet(folder.path(), &[("time_embedding.linear_1.weight", [1.0, f32::INFINITY])]);
        drop(weights.tensor("time_embedding.linear_1.weight", &[2]));
        let error = weights.finish().unwrap_err();
        let wanted = "diffusion_pytorch_model.safetensors: tensor `time_embedding.linear_1.weight`: element 1 is NaN";
        assert!(error.to_string().contains(wanted), "{error}");
        assert!(error.hint_text().unwrap().contains("earlier checkpoint"), "{error:?}");
    }
}
