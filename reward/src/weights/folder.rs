//! The weights of a model that is a folder or a hub id.

use std::path::{Path, PathBuf};

use super::shards;
use crate::{
    Error, Result,
    clip::description::{HUGGING_FACE_WEIGHTS, OPEN_CLIP_WEIGHTS},
    hub,
};

/// The weights in a folder; where open_clip's alone are described, those that it looks for first.
pub(super) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (transformers, open_clip) = (&HUGGING_FACE_WEIGHTS[..], &OPEN_CLIP_WEIGHTS[..]);
    let order = match folder.join("config.json").is_file() {
        true => [transformers, open_clip],
        false => [open_clip, transformers],
    }
    .concat();
    match order.iter().find(|name| folder.join(name).is_file()) {
        Some(name) if name.ends_with(".json") => shards::of(&folder.join(name)),
        Some(name) => Ok(vec![folder.join(name)]),
        None => Err(Error::data(format!("{}: no model.safetensors in this folder", folder.display()))
            .hint(format!("looked for {}", order.join(", ")))),
    }
}

/// The folder of a hub repository in the cache, its files fetched where they are missing.
pub(super) fn download(id: &str) -> Result<PathBuf> {
    const SMALL: [&str; 4] =
        ["config.json", "preprocessor_config.json", "processor_config.json", "open_clip_config.json"];
    let repository = hub::Repository::new(id)?;
    let whole = |folder: &PathBuf| weight_files(folder).is_ok();
    let cached = ["config.json", "open_clip_config.json"].into_iter().find_map(|config| repository.cached(config));
    if let Some(folder) = cached.filter(whole) {
        return Ok(folder);
    }
    let (online, there) = repository.online()?;
    let has = |name: &&str| there.iter().any(|file| file == name);
    let names = [&HUGGING_FACE_WEIGHTS[..], &OPEN_CLIP_WEIGHTS].concat();
    let weights = names.iter().copied().find(|name| has(name)).ok_or_else(|| {
        Error::data(format!("{id}: no weights in this hub repository")).hint(format!("looked for {}", names.join(", ")))
    })?;
    for name in SMALL.iter().filter(|name| has(name)) {
        online.get(name)?;
    }
    let folder = online.get(weights)?;
    if weights.ends_with(".json") {
        for shard in shards::named(&folder.join(weights))? {
            online.get(&shard)?;
        }
    }
    Ok(folder)
}
