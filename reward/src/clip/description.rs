//! What the files beside a checkpoint's weights say of it: architecture, activation, preprocessing.
//!
//! transformers saves `config.json` with `preprocessor_config.json` (or `processor_config.json`, whose `image_processor` then
//! counts alone), open_clip one `open_clip_config.json`. A folder of the hub may hold both, with weights for each. Those of the
//! library whose weights are read count, and where the others differ there is a warning.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{config::ClipConfig, preprocessing::Preprocessing, vocabulary};
use crate::{Error, Result, json};

/// Names of weights that open_clip looks for in a folder, in its order.
pub(crate) const OPEN_CLIP_WEIGHTS: [&str; 4] = [
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
];
/// Names of weights that transformers looks for in a folder, in its order.
pub(crate) const HUGGING_FACE_WEIGHTS: [&str; 4] =
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

const OPEN_CLIP: &str = "open_clip_config.json";
const HUGGING_FACE: &str = "config.json";

/// What files say of a checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    pub(crate) config: ClipConfig,
    /// The file that states the activation.
    pub(crate) place: String,
    /// Where tokenizer files may lie.
    pub(crate) folder: Option<PathBuf>,
    /// What a user should know of it.
    pub(crate) warnings: Vec<String>,
}

impl Description {
    /// What a folder says of its weights of this name, or of those of transformers if it has no weights.
    ///
    /// # Errors
    /// No config in it, or one that cannot be followed.
    pub(crate) fn of_folder(folder: &Path, weights: Option<&str>) -> Result<Self> {
        let [hugging_face, open_clip] = [HUGGING_FACE, OPEN_CLIP].map(|name| folder.join(name).is_file());
        let names_open_clip = weights.is_some_and(|name| OPEN_CLIP_WEIGHTS.contains(&name));
        let (speaks, other) = match (hugging_face, open_clip) {
            (_, true) if names_open_clip || !hugging_face => (OPEN_CLIP, HUGGING_FACE),
            (true, _) => (HUGGING_FACE, OPEN_CLIP),
            _ => {
                return Err(Error::data(format!("{}: no config.json in this folder", folder.display())).hint(
                    "a model folder holds config.json and model.safetensors, as transformers' save_pretrained writes them, or open_clip_config.json and open_clip's weights",
                ));
            }
        };
        let config = read(folder, speaks)?;
        let place = folder.join(speaks).display().to_string();
        let mut warnings = Vec::new();
        // One that cannot be read does not count, and is not needed.
        if let Some(differs) = (hugging_face && open_clip).then(|| read(folder, other).ok()).flatten() {
            let said = |config: &ClipConfig| format!("{}, {}", config.activation(), config.preprocessing);
            let (own, others) = (said(&config), said(&differs));
            if own != others {
                warnings.push(format!("{place} says {own}; {other} beside it says {others}, and does not count"));
            }
        }
        Ok(Self { config, place, folder: Some(folder.to_owned()), warnings })
    }

    /// What the files beside a weights file say, if it is named as a library that saves such files names it.
    /// `hugging_face`: whether its keys are those of transformers.
    ///
    /// # Errors
    /// A file that cannot be followed.
    pub(crate) fn beside(weights: &Path, hugging_face: bool) -> Result<Option<Self>> {
        let (Some(folder), Some(name)) = (weights.parent(), weights.file_name().and_then(|name| name.to_str())) else {
            return Ok(None);
        };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let named_open_clip = OPEN_CLIP_WEIGHTS.contains(&name);
        if !named_open_clip && !HUGGING_FACE_WEIGHTS.contains(&name) {
            return Ok(None);
        }
        // Any program may have a config.json: beside weights of other keys it counts where it says that it is a CLIP's.
        let is_clip = || {
            let config = json::read(&folder.join(HUGGING_FACE)).unwrap_or_default();
            hugging_face || config["model_type"] == "clip"
        };
        let speaks = match [HUGGING_FACE, OPEN_CLIP].map(|name| folder.join(name).is_file()) {
            [_, true] if named_open_clip => true,
            [true, _] => is_clip(),
            [false, open_clip] => open_clip && !hugging_face,
        };
        if speaks { Self::of_folder(folder, Some(name)).map(Some) } else { Ok(None) }
    }

    /// The note that [`Self::noted`] reads, for the header of a file that travels alone.
    pub(crate) fn note(config: &ClipConfig) -> String {
        let pictures = config.preprocessing.to_hugging_face(config.image_size);
        json!({"config": config.to_hugging_face(), "preprocessor_config": pictures}).to_string()
    }

    /// What the note in a weights file says.
    ///
    /// # Errors
    /// It is damaged.
    pub(crate) fn noted(weights: &Path, note: &str) -> Result<Self> {
        let place = format!("{}: its header's description", weights.display());
        let note = json::parse(&place, note)?;
        let mut config = ClipConfig::from_hugging_face(&place, &note["config"])?;
        config.preprocessing =
            Preprocessing::from_hugging_face(&place, &note["preprocessor_config"], config.image_size)?;
        Ok(Self { config, place, folder: None, warnings: Vec::new() })
    }

    /// Checks that the tokenizer of the folder, if it has one, is the one that prompts are read with.
    ///
    /// # Errors
    /// Another tokenizer, or a damaged file.
    pub(crate) fn check_tokenizer(folder: &Path) -> Result<()> {
        vocabulary::check(folder)
    }
}

/// What the config of this name in a folder says.
fn read(folder: &Path, name: &str) -> Result<ClipConfig> {
    let path = folder.join(name);
    let document = json::read(&path)?;
    let place = path.display().to_string();
    if name == OPEN_CLIP {
        return ClipConfig::from_open_clip(&place, &document);
    }
    let mut config = ClipConfig::from_hugging_face(&place, &document)?;
    if let Some((place, settings)) = picture_settings(folder)? {
        config.preprocessing = Preprocessing::from_hugging_face(&place, &settings, config.image_size)?;
    }
    Ok(config)
}

/// The settings of a folder's image processor, and where they are.
fn picture_settings(folder: &Path) -> Result<Option<(String, Value)>> {
    let [all, pictures] = ["processor_config.json", "preprocessor_config.json"].map(|name| folder.join(name));
    if all.is_file() {
        let place = all.display().to_string();
        if let Some(settings) = json::read(&all)?.get_mut("image_processor").filter(|settings| !settings.is_null()) {
            return Ok(Some((format!("{place}: image_processor"), settings.take())));
        }
        // Older ones have none, but the other file is then there.
        if !pictures.is_file() {
            return Err(Error::data(format!(
                "{place}: no `image_processor`, and no preprocessor_config.json beside it"
            ))
            .hint("save the processor again with transformers' save_pretrained"));
        }
    }
    if pictures.is_file() {
        return Ok(Some((pictures.display().to_string(), json::read(&pictures)?)));
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
