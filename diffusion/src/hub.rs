//! A model of the Hugging Face hub as a folder in its cache: only the files that are read, downloaded once.

use std::path::{Path, PathBuf};

use reward::{hub::Repository, weights::shards};

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
/// Neither the cache nor the hub has it, or the network is forbidden.
pub(crate) fn download(id: &str) -> Result<PathBuf> {
    let repository = Repository::new(id)?;
    if let Some(folder) = repository.cached("model_index.json").filter(|folder| is_whole(folder)) {
        return Ok(folder);
    }
    let (online, there) = repository.online()?;
    let has = |name: &str| there.iter().any(|file| file == name);
    if !has("model_index.json") {
        return Err(Error::data(format!("{id}: no model_index.json in this hub repository"))
            .hint("want a Stable Diffusion model in diffusers form"));
    }
    let folder = online.get("model_index.json")?;
    for name in SMALL.into_iter().filter(|name| has(name)) {
        online.get(name)?;
    }
    for component in [Component::Unet, Component::Vae, Component::TextEncoder] {
        let names = component.weight_files().map(|name| format!("{}/{name}", component.folder()));
        // What is not there is named when the folder is opened.
        let Some(name) = names.iter().find(|name| has(name)) else { continue };
        online.get(name)?;
        if name.ends_with(".json") {
            for shard in shards::named(&folder.join(name))? {
                online.get(&format!("{}/{shard}", component.folder()))?;
            }
        }
    }
    Ok(folder)
}

/// Whether nothing of a cached snapshot is missing.
fn is_whole(folder: &Path) -> bool {
    let whole = |component: Component| {
        let folder = folder.join(component.folder());
        let weights = component.weight_files().into_iter().find(|name| folder.join(name).is_file());
        let shards_there = |name: &str| !name.ends_with(".json") || shards::of(&folder.join(name)).is_ok();
        folder.join("config.json").is_file() && weights.is_some_and(shards_there)
    };
    let models = [Component::Unet, Component::Vae, Component::TextEncoder].into_iter().all(whole);
    let tokenizer = ["tokenizer.json", "vocab.json"].iter().any(|name| folder.join("tokenizer").join(name).is_file());
    models && tokenizer && folder.join("scheduler/scheduler_config.json").is_file()
}
