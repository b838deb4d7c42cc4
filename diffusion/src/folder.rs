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

use crate::{Error, Result, config::other_family, weights::Stored};

/// Pipelines that are made of the models this crate has.
const PIPELINES: [&str; 3] =
    ["StableDiffusionPipeline", "StableDiffusionPipelineSafe", "StableDiffusionImg2ImgPipeline"];

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
    /// Its folder.
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
/// No `model_index.json`, or another architecture (named).
pub fn check(folder: &Path) -> Result<()> {
    let path = folder.join("model_index.json");
    if !path.is_file() {
        return Err(Error::data(format!("{}: no such file", path.display())).hint(
            "a diffusers folder holds model_index.json and the folders unet, vae, text_encoder, tokenizer, scheduler",
        ));
    }
    let index = json(&path)?;
    let class = index["_class_name"].as_str().unwrap_or_default();
    if PIPELINES.contains(&class) {
        return Ok(());
    }
    let family = other_family(class).map_or(String::new(), |family| format!(" ({family})"));
    Err(Error::data(format!("{}: `{class}`{family} is not supported, want StableDiffusionPipeline", path.display()))
        .hint("Stable Diffusion 1.x and 2.x are supported"))
}

/// `config.json` of a model.
///
/// # Errors
/// It is missing (named) or not JSON.
pub fn config(folder: &Path, component: Component) -> Result<Value> {
    json(&folder.join(component.folder()).join("config.json"))
}

/// The text of `scheduler/scheduler_config.json`.
///
/// # Errors
/// It is missing (named).
pub fn scheduler(folder: &Path) -> Result<String> {
    let path = folder.join("scheduler/scheduler_config.json");
    if !path.is_file() {
        return Err(Error::data(format!("{}: no such file", path.display())));
    }
    Ok(fs_err::read_to_string(path)?)
}

/// The files that hold the weights of a model, opened, and where its keys are.
///
/// # Errors
/// No weights in the folder (the name wanted is said), a shard that is missing, a truncated file.
pub fn weights(folder: &Path, component: Component) -> Result<(Vec<TensorFile>, BTreeMap<String, Stored>)> {
    let paths = weight_paths(&folder.join(component.folder()), component)?;
    let files = paths.iter().map(|path| TensorFile::open_all(path)).collect::<Result<Vec<_>>>()?;
    let places = wrappers::find(&files, component.anchors(), None)?;
    let place = places.into_iter().map(|(key, (file, name))| (key, Stored { file, name, rows: None })).collect();
    Ok((files, place))
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

fn json(path: &Path) -> Result<Value> {
    if !path.is_file() {
        return Err(Error::data(format!("{}: no such file", path.display())));
    }
    serde_json::from_str(&fs_err::read_to_string(path)?)
        .map_err(|error| Error::data(format!("{}: not JSON", path.display())).caused_by(error))
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
