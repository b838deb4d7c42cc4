//! Which base a LoRA is for, as kohya's scripts write it into a file, so that web UIs list it under the right one.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use super::{Layers, Lora, locate::locate};
use crate::{Result, metadata::metadata, schedule::PredictionType, single_file::Family};

/// Width of the prompt's hidden states in 1.x and 2.x.
const WIDTHS: [(i64, Family); 2] = [(768, Family::V1), (1024, Family::V2)];

/// The model that a LoRA was trained on, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Base {
    /// Stable Diffusion 1.x or 2.x.
    pub family: Option<Family>,
    /// What the model predicts.
    pub prediction: Option<PredictionType>,
    /// What users see of the file.
    pub title: String,
}

impl Base {
    /// The base with these layers, which predicts `prediction`.
    pub fn of_model(layers: &Layers, prediction: PredictionType, title: String) -> Self {
        Self { family: of_layers(layers), prediction: Some(prediction), title }
    }

    /// What the file that `lora` was read from says, or else the widths of its adapters.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of_file(path: &Path, lora: &Lora, title: String) -> Result<Self> {
        let metadata = metadata(&locate(path)?)?;
        let said = |key: &str| metadata.get(key).and_then(Value::as_str);
        let version = said("ss_base_model_version").unwrap_or_default();
        let family = match said("ss_v2") {
            Some("True") => Some(Family::V2),
            _ if version.starts_with("sd_v1") => Some(Family::V1),
            _ => of_adapters(lora),
        };
        let prediction = match said("modelspec.prediction_type") {
            Some("v") => Some(PredictionType::Velocity),
            Some("epsilon") => Some(PredictionType::Epsilon),
            _ if version == "sd_v2_v" => Some(PredictionType::Velocity),
            _ => None,
        };
        Ok(Self { family, prediction, title })
    }

    /// Names and values as kohya's `sd-scripts` and Stability's ModelSpec 1.0.0 have them. No date: equal runs write equal files.
    pub(super) fn metadata(&self) -> Vec<(String, String)> {
        let velocity = self.prediction == Some(PredictionType::Velocity);
        let mut said = vec![
            ("modelspec.sai_model_spec", "1.0.0"),
            ("modelspec.implementation", "diffusers"),
            ("modelspec.title", self.title.as_str()),
        ];
        match self.family {
            Some(Family::V1) => said.extend([
                ("ss_v2", "False"),
                ("ss_base_model_version", if velocity { "sd_v1_v" } else { "sd_v1" }),
                ("modelspec.architecture", "stable-diffusion-v1/lora"),
            ]),
            Some(Family::V2) => {
                said.extend([("ss_v2", "True"), ("ss_base_model_version", if velocity { "sd_v2_v" } else { "sd_v2" })]);
                match self.prediction {
                    Some(PredictionType::Velocity) => {
                        said.push(("modelspec.architecture", "stable-diffusion-v2-768-v/lora"))
                    }
                    Some(PredictionType::Epsilon) => {
                        said.push(("modelspec.architecture", "stable-diffusion-v2-512/lora"))
                    }
                    Some(PredictionType::Sample) | None => {}
                }
            }
            None => {}
        }
        match self.prediction {
            Some(PredictionType::Epsilon) => said.push(("modelspec.prediction_type", "epsilon")),
            Some(PredictionType::Velocity) => said.push(("modelspec.prediction_type", "v")),
            Some(PredictionType::Sample) | None => {}
        }
        said.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

/// The family by the width of the prompt's hidden states. At other widths (models made for tests), 2.x has linear layers around
/// its transformers where 1.x has convolutions.
fn of_layers(layers: &Layers) -> Option<Family> {
    let width = prompt_width(layers.unet.iter().map(|(name, shape)| (name, shape.as_slice())));
    let known = width.and_then(family_of);
    known.or_else(|| {
        let projection = layers.unet.iter().find(|(name, _)| name.ends_with(".proj_in"));
        projection.map(|(_, shape)| if shape.len() > 2 { Family::V1 } else { Family::V2 })
    })
}

fn of_adapters(lora: &Lora) -> Option<Family> {
    let shapes = |adapters: &BTreeMap<String, crate::layer::Adapter>| -> Vec<(String, Vec<i64>)> {
        adapters.iter().map(|(name, adapter)| (name.clone(), adapter.down.size())).collect()
    };
    let (unet, text) = (shapes(&lora.unet), shapes(&lora.text));
    let of_text =
        || text.iter().find(|(name, _)| name.ends_with(".q_proj")).and_then(|(_, shape)| shape.get(1).copied());
    prompt_width(unet.iter().map(|(name, shape)| (name, shape.as_slice()))).or_else(of_text).and_then(family_of)
}

/// Inputs of the first layer that reads the prompt, of shapes `[_, inputs, ..]` by name.
pub(super) fn prompt_width<'a>(mut shapes: impl Iterator<Item = (&'a String, &'a [i64])>) -> Option<i64> {
    let reads_prompt = |name: &str| name.ends_with(".attn2.to_k") || name.ends_with(".attn2.to_v");
    shapes.find(|(name, _)| reads_prompt(name)).and_then(|(_, shape)| shape.get(1).copied())
}

/// The family whose prompts are so wide.
pub(super) fn family_of(width: i64) -> Option<Family> {
    WIDTHS.iter().find(|(known, _)| *known == width).map(|(_, family)| *family)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Source, SourceOptions};

    #[test]
    fn web_uis_are_told_the_base() {
        let base = |model: &str, prediction: Option<PredictionType>| {
            let options = SourceOptions { prediction_type: prediction, ..SourceOptions::default() };
            let source = Source::open(model, options).unwrap();
            let (layers, prediction) = (source.layers().unwrap(), source.scheduler().unwrap().prediction_type);
            let base = Base::of_model(&layers, prediction, "fox".to_owned());
            let said: BTreeMap<_, _> = base.metadata().into_iter().collect();
            assert_eq!(said["modelspec.title"], "fox");
            assert_eq!(said["modelspec.sai_model_spec"], "1.0.0");
            ["ss_v2", "ss_base_model_version", "modelspec.architecture", "modelspec.prediction_type"]
                .map(|key| said[key].clone())
        };
        let velocity = Some(PredictionType::Velocity);
        assert_eq!(base("random:sd15", None), ["False", "sd_v1", "stable-diffusion-v1/lora", "epsilon"]);
        assert_eq!(base("random:sd21-base", None), ["True", "sd_v2", "stable-diffusion-v2-512/lora", "epsilon"]);
        assert_eq!(base("random:sd21-base", velocity), ["True", "sd_v2_v", "stable-diffusion-v2-768-v/lora", "v"]);
        // Of another width: linear layers around its transformers.
        assert_eq!(base("random:sd-tiny", None)[..2], ["True", "sd_v2"]);
        let unknown = Base { title: "fox".to_owned(), ..Base::default() }.metadata();
        assert!(
            unknown.iter().all(|(key, _)| !key.starts_with("ss_") && key != "modelspec.architecture"),
            "{unknown:?}"
        );
    }
}
