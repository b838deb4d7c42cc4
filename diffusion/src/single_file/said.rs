//! What a single-file checkpoint says about its noise schedule, and where: shapes cannot tell what a UNet predicts.
//!
//! - Keys `v_pred` and `ztsnr` without values, as ComfyUI saves them.
//! - `modelspec.prediction_type` (Stability's model specification, kohya) and `modelspec.predict_key` (ComfyUI) in the metadata of
//!   a safetensors file.
//! - A yaml of the same name beside it, as CompVis' and Stability's programs and AUTOMATIC1111's read it.
//! - For 2.x, where none of these says anything: `modelspec.architecture`, then the step that Stability's own files were saved at
//!   (`global_step`). In diffusers 0.42.1, 875000 stands for 2.0-base, which predicts epsilon, and every other step for v. A
//!   model that was trained on has any step, so only the published steps count here.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use reward::weights::file::TensorFile;
use serde_json::{Map, Value, json};

use super::{Family, yaml};
use crate::{
    Error, Result,
    metadata::metadata,
    remark::Remark,
    schedule::{PredictionType, SchedulerConfig},
};

/// Keys of tensors that say something and hold nothing.
pub(super) const KEYS: [&str; 3] = [V_PREDICTION, ZERO_SNR, "global_step"];
const V_PREDICTION: &str = "v_pred";
const ZERO_SNR: &str = "ztsnr";

/// Steps at which Stability saved 2.x: 2.0-base and 2.1-base predict epsilon, 2.1 at 768 pixels v.
const STEPS: [(i64, PredictionType); 3] =
    [(875_000, PredictionType::Epsilon), (220_000, PredictionType::Epsilon), (110_000, PredictionType::Velocity)];

/// Bytes of a PyTorch archive in which its pickle is looked for: it comes before the tensors.
const PICKLE: u64 = 4 << 20;

/// What one place says.
#[derive(Debug, Clone, PartialEq)]
struct Statement {
    /// The key and its value, in words for the user.
    place: String,
    /// What it means; `None`: a prediction that this program does not have.
    prediction: Option<PredictionType>,
}

/// All that a file says, and the yaml beside it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Said {
    path: PathBuf,
    family: Family,
    statements: Vec<Statement>,
    /// What counts where no statement is.
    hint: Option<Statement>,
    /// The betas are rescaled to zero terminal SNR.
    zero_snr: bool,
    /// Keys of the schedule from the yaml, as a scheduler config has them.
    schedule: Map<String, Value>,
    /// Height and width in pixels that the model was trained at.
    pub(super) resolution: Option<[i64; 2]>,
}

impl Said {
    /// Reads the metadata of `file`, and what stands beside it.
    ///
    /// # Errors
    /// The yaml beside it cannot be understood, or wants what this program does not have.
    pub(super) fn read(file: &TensorFile, family: Family) -> Result<Self> {
        let path = file.path();
        let metadata = metadata(path)?;
        let text = |key: &str| metadata.get(key).and_then(Value::as_str);
        let has = |key: &str| file.shapes().contains_key(key);
        let mut statements = Vec::new();
        if has(V_PREDICTION) {
            let place = format!("its key `{V_PREDICTION}`");
            statements.push(Statement { place, prediction: Some(PredictionType::Velocity) });
        }
        for key in ["modelspec.prediction_type", "modelspec.predict_key"] {
            if let Some(value) = text(key).filter(|value| !value.trim().is_empty()) {
                statements.push(Statement { place: format!("`{key}` \"{value}\""), prediction: named(value) });
            }
        }
        let architecture = text("modelspec.architecture").filter(|_| family == Family::V2).and_then(|value| {
            let prediction = match value {
                "stable-diffusion-v2-768-v" => PredictionType::Velocity,
                "stable-diffusion-v2-512" => PredictionType::Epsilon,
                _ => return None,
            };
            let place = format!("`modelspec.architecture` \"{value}\"");
            Some(Statement { place, prediction: Some(prediction) })
        });
        let said = Self {
            path: path.to_owned(),
            family,
            statements,
            hint: architecture.or_else(|| (family == Family::V2).then(|| saved_at(path)).flatten()),
            zero_snr: has(ZERO_SNR),
            schedule: Map::new(),
            resolution: text("modelspec.resolution").and_then(resolution),
        };
        let beside = path.with_extension("yaml");
        if beside.is_file() { said.with_yaml(&beside) } else { Ok(said) }
    }

    fn with_yaml(mut self, path: &Path) -> Result<Self> {
        let found = yaml::scalars(&reward::text::read(path, "a yaml file")?, path)?;
        let get = |key: &str| found.get(&format!("model.params.{key}")).map(String::as_str);
        let refused = |key: &str, value: &str, wanted: &str| {
            Error::data(format!("{}: `{key}` is {value}, want {wanted}", path.display()))
        };
        if let Some(value) = get("parameterization") {
            let place = format!("`parameterization` \"{value}\" in {}", path.display());
            self.statements.push(Statement { place, prediction: named(value) });
        } else if self.hint.is_none() && found.keys().any(|key| key.starts_with("model.params.")) {
            let place = format!("no `parameterization` in {}, which means eps", path.display());
            self.hint = Some(Statement { place, prediction: Some(PredictionType::Epsilon) });
        }
        if let Some(value) = get("timesteps") {
            let count: u64 = value.parse().map_err(|_| refused("timesteps", value, "a whole number"))?;
            self.schedule.insert("num_train_timesteps".to_owned(), json!(count));
        }
        for (key, ours) in [("linear_start", "beta_start"), ("linear_end", "beta_end")] {
            if let Some(value) = get(key) {
                let beta: f64 = value.parse().map_err(|_| refused(key, value, "a number"))?;
                self.schedule.insert(ours.to_owned(), json!(beta));
            }
        }
        if let Some(value) = get("beta_schedule").filter(|value| *value != "linear") {
            return Err(refused("beta_schedule", value, "linear"));
        }
        let layer = get("cond_stage_config.params.layer");
        let wanted = match self.family {
            Family::V1 => "last",
            Family::V2 => "penultimate",
        };
        if let Some(layer) = layer.filter(|layer| *layer != wanted) {
            return Err(refused("cond_stage_config.params.layer", layer, wanted)
                .hint("this program reads the prompt from that layer of the text encoder only"));
        }
        Ok(self)
    }

    /// What is predicted, and by whose word. `asked` is the user's own.
    fn prediction(&self, asked: Option<PredictionType>) -> Result<(PredictionType, Option<&Statement>)> {
        if let Some(asked) = asked {
            return Ok((asked, None));
        }
        let file = self.path.display();
        let hint = "--prediction-type epsilon or --prediction-type v_prediction decides";
        if let Some(other) = self.statements.iter().find(|said| said.prediction.is_none()) {
            let text = format!("{file}: {}: no prediction type that this program has", other.place);
            return Err(Error::data(text).hint(hint));
        }
        let mut said = self.statements.iter().chain(&self.hint).filter_map(|said| Some((said.prediction?, said)));
        let Some((prediction, first)) = said.next() else { return Ok((PredictionType::Epsilon, None)) };
        if let Some(other) = self.statements.iter().find(|said| said.prediction != Some(prediction)) {
            let text = format!("{file} contradicts itself: {}, but {}", first.place, other.place);
            return Err(Error::data(text).hint(hint));
        }
        Ok((prediction, Some(first)))
    }

    /// The noise schedule.
    ///
    /// # Errors
    /// The places contradict each other, or say what this program does not have.
    pub(super) fn scheduler(&self, asked: Option<PredictionType>) -> Result<SchedulerConfig> {
        let (prediction, _) = self.prediction(asked)?;
        let file = self.path.display();
        let mut config = SchedulerConfig::stable_diffusion(prediction);
        if !self.schedule.is_empty() {
            let mut keys = config.to_json().as_object().cloned().unwrap_or_default();
            keys.extend(self.schedule.clone());
            let beside = self.path.with_extension("yaml");
            config = SchedulerConfig::from_json(&Value::Object(keys))
                .map_err(|error| Error::data(format!("{}: {error}", beside.display())))?;
        }
        if !self.zero_snr {
            return Ok(config);
        }
        if prediction == PredictionType::Epsilon {
            let text =
                format!("{file}: key `{ZERO_SNR}`: a schedule that ends in pure noise needs a model that predicts v");
            return Err(Error::data(text).hint("--prediction-type v_prediction if it does"));
        }
        Ok(config.with_zero_terminal_snr())
    }

    /// What the user should know of it.
    pub(super) fn remarks(&self, asked: Option<PredictionType>) -> Result<Vec<Remark>> {
        let (prediction, by) = self.prediction(asked)?;
        let (name, file) = (prediction.as_str(), self.path.display());
        let mut remarks = vec![match (asked, by) {
            (Some(_), _) => {
                let other = self.statements.iter().find(|said| said.prediction != Some(prediction));
                let but = other.map_or(String::new(), |other| format!(" (the file says otherwise: {})", other.place));
                Remark::Note(format!("prediction type: {name}, as asked{but}"))
            }
            (None, Some(by)) => Remark::Note(format!("prediction type: {name}, as {file} says ({})", by.place)),
            (None, None) if self.family == Family::V2 => Remark::Warning(format!(
                "{file} does not say what it predicts: epsilon is assumed, as in 2.0-base and 2.1-base; 2.x models for 768 \
                 pixels predict v and need --prediction-type v_prediction"
            )),
            (None, None) => {
                Remark::Note(format!("prediction type: {name} ({file} does not say another; --prediction-type does)"))
            }
        }];
        if self.zero_snr {
            let text =
                format!("zero terminal SNR, as {file} says (key `{ZERO_SNR}`): betas rescaled, trailing spacing");
            remarks.push(Remark::Note(text));
        }
        Ok(remarks)
    }
}

/// The prediction type by the names that programs give it.
fn named(value: &str) -> Option<PredictionType> {
    match value.trim().to_ascii_lowercase().as_str() {
        "epsilon" | "eps" => Some(PredictionType::Epsilon),
        "v" | "v_prediction" | "v-prediction" | "v_pred" | "velocity" => Some(PredictionType::Velocity),
        "sample" | "x0" => Some(PredictionType::Sample),
        _ => None,
    }
}

/// Width by height (`768x768`) as height and width, where a UNet can have it.
fn resolution(text: &str) -> Option<[i64; 2]> {
    let (width, height) = text.split_once('x')?;
    let side = |text: &str| text.trim().parse::<i64>().ok().filter(|side| (64..=4096).contains(side) && side % 64 == 0);
    Some([side(height)?, side(width)?])
}

/// What the training step of a published 2.x checkpoint says.
fn saved_at(path: &Path) -> Option<Statement> {
    let mut head = Vec::new();
    fs_err::File::open(path).ok()?.take(PICKLE).read_to_end(&mut head).ok()?;
    let step = head.starts_with(b"PK").then(|| pickled_integer(&head, "global_step")).flatten()?;
    let (_, prediction) = STEPS.iter().find(|(known, _)| *known == step)?;
    Some(Statement { place: format!("`global_step` {step}"), prediction: Some(*prediction) })
}

/// The whole number behind `key` in a pickle, as Python writes a dictionary: the string, what remembers it, the number.
fn pickled_integer(bytes: &[u8], key: &str) -> Option<i64> {
    let short = [&[0x8c, key.len() as u8], key.as_bytes()].concat();
    let long = [&b"X"[..], &(key.len() as u32).to_le_bytes(), key.as_bytes()].concat();
    let after = [short, long].iter().find_map(|text| {
        let at = bytes.windows(text.len()).position(|window| window == text)?;
        bytes.get(at + text.len()..)
    })?;
    let number = match after {
        [b'q', _, rest @ ..] | [b'r', _, _, _, _, rest @ ..] | [0x94, rest @ ..] => rest,
        rest => rest,
    };
    match *number {
        [b'K', byte, ..] => Some(byte.into()),
        [b'M', a, b, ..] => Some(u16::from_le_bytes([a, b]).into()),
        [b'J', a, b, c, d, ..] => Some(i32::from_le_bytes([a, b, c, d]).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_in_a_pickle_by_hand() {
        // pickle.dumps({"global_step": 875000}, 2), and of 7 with protocol 4.
        let two = b"\x80\x02}q\x00X\x0b\x00\x00\x00global_stepq\x01J\xf8Y\r\x00s.";
        assert_eq!(pickled_integer(two, "global_step"), Some(875_000));
        let four = b"\x80\x04\x95\x14\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x0bglobal_step\x94K\x07s.";
        assert_eq!(pickled_integer(four, "global_step"), Some(7));
        assert_eq!(pickled_integer(b"X\x0b\x00\x00\x00global_step", "global_step"), None);
    }

    #[test]
    fn resolutions_are_width_by_height() {
        assert_eq!(resolution("768x512"), Some([512, 768]));
        for other in ["768", "768x", "0x0", "100x100", "99999999999999999999x64"] {
            assert_eq!(resolution(other), None, "{other}");
        }
    }
}
