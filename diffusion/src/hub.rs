//! A model of the Hugging Face hub as a folder in its cache: only the files that are read, downloaded once.

use std::path::{Path, PathBuf};

use hf_hub::{Cache, api::sync::ApiBuilder};

use crate::{Error, Result, folder::Component};

/// Small files of a pipeline, taken where the repository has them.
const SMALL: [&str; 11] = [
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/added_tokens.json",
];

/// The folder of model `id` (`owner/name`), from the cache if it is whole there.
///
/// # Errors
/// Neither the cache nor the hub has it.
pub(crate) fn download(id: &str) -> Result<PathBuf> {
    let failed = |error: hf_hub::api::sync::ApiError| {
        Error::data(format!("{id}: not a local file or folder, and the hub did not give it"))
            .caused_by(error)
            .hint("offline? download the folder elsewhere and pass its path; nothing needs a hub id")
    };
    if let Some(folder) = cached(id) {
        return Ok(folder);
    }
    let api = ApiBuilder::from_env().with_progress(false).build().map_err(failed)?;
    let repository = api.model(id.to_owned());
    let there: Vec<String> =
        repository.info().map_err(failed)?.siblings.into_iter().map(|file| file.rfilename).collect();
    let has = |name: &str| there.iter().any(|file| file == name);
    let get = |name: &str| repository.get(name).map_err(failed);
    let mut index = None;
    for name in SMALL.into_iter().filter(|name| has(name)) {
        let path = get(name)?;
        if name == "model_index.json" {
            index = Some(path);
        }
    }
    let index = index.ok_or_else(|| {
        Error::data(format!("{id}: no model_index.json in this hub repository"))
            .hint("want a Stable Diffusion model in diffusers form")
    })?;
    for component in [Component::Unet, Component::Vae, Component::TextEncoder] {
        let names = component.weight_files().map(|name| format!("{}/{name}", component.folder()));
        // What is not there is named when the folder is opened.
        let Some(name) = names.iter().find(|name| has(name)) else { continue };
        let path = get(name)?;
        if name.ends_with(".json") {
            for shard in shards(&path)? {
                get(&format!("{}/{shard}", component.folder()))?;
            }
        }
    }
    Ok(parent(&index))
}

/// The cached snapshot, if nothing of it is missing.
fn cached(id: &str) -> Option<PathBuf> {
    let folder = parent(&Cache::from_env().model(id.to_owned()).get("model_index.json")?);
    let whole = |component: Component| {
        let folder = folder.join(component.folder());
        let weights = component.weight_files().into_iter().find(|name| folder.join(name).is_file());
        let shards_there = |name: &str| {
            !name.ends_with(".json")
                || shards(&folder.join(name)).is_ok_and(|shards| shards.iter().all(|file| folder.join(file).is_file()))
        };
        folder.join("config.json").is_file() && weights.is_some_and(shards_there)
    };
    let models = [Component::Unet, Component::Vae, Component::TextEncoder].into_iter().all(whole);
    let tokenizer = ["tokenizer.json", "vocab.json"].iter().any(|name| folder.join("tokenizer").join(name).is_file());
    let scheduler = folder.join("scheduler/scheduler_config.json").is_file();
    (models && tokenizer && scheduler).then_some(folder)
}

/// The files that an index names.
fn shards(index: &Path) -> Result<Vec<String>> {
    let parsed: serde_json::Value = serde_json::from_str(&fs_err::read_to_string(index)?)
        .map_err(|error| Error::data(format!("{}: not JSON", index.display())).caused_by(error))?;
    let files = parsed["weight_map"].as_object().into_iter().flatten();
    let mut files: Vec<String> = files.filter_map(|(_, file)| file.as_str().map(str::to_owned)).collect();
    files.sort();
    files.dedup();
    Ok(files)
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}
