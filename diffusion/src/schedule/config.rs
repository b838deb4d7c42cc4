//! `scheduler_config.json`: what a model folder says about its noise schedule, whichever scheduler class wrote it.
//!
//! The class name is not binding: stock folders name PNDM, and every sampler here reads the same file. A key that is present
//! wins. What the file lacks takes diffusers' default of the sampler that reads it, so those defaults stand in the samplers' own
//! files. Keys of other classes are kept and not read; a value that a key we read cannot have is an error.

use serde_json::{Map, Value};

use super::prediction::PredictionType;
use crate::{Error, Result};

/// How beta, the variance added per training step, grows over the training steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BetaSchedule {
    /// Straight from `beta_start` to `beta_end` (Ho et al., 2020, section 4).
    Linear,
    /// Straight in the square root of beta (latent diffusion; Rombach et al., 2022).
    ScaledLinear,
    /// From a squared cosine of ā, capped at 0.999 (Nichol and Dhariwal, 2021, equation 17).
    SquaredCosine,
}

/// How sampling steps are spread over training steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    /// Multiples of `train / steps` from 0 (plus `steps_offset`): never reaches the last training step.
    Leading,
    /// Multiples of `train / steps` back from the last training step.
    Trailing,
    /// Evenly from 0 to the last training step, both included.
    Linspace,
}

/// Most training steps; published models have 1,000.
const MOST_TIMESTEPS: usize = 100_000;

/// A scheduler config as it was read, with the keys that every sampler shares checked.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    file: Map<String, Value>,
    /// Steps the model was trained with; timesteps are 0 to this minus one.
    pub num_train_timesteps: usize,
    /// Beta of the first training step.
    pub beta_start: f64,
    /// Beta of the last training step.
    pub beta_end: f64,
    /// How beta gets from one to the other.
    pub beta_schedule: BetaSchedule,
    /// Betas given one by one; they replace the three above.
    pub trained_betas: Option<Vec<f64>>,
    /// Whether the betas are rescaled so that the last step is pure noise (Lin et al., 2023, algorithm 1).
    pub rescale_betas_zero_snr: bool,
    /// What the model's output is.
    pub prediction_type: PredictionType,
    /// Added to the timesteps of leading spacing.
    pub steps_offset: usize,
    /// How sampling steps are spread over training steps; where the file is silent, the sampler decides.
    pub timestep_spacing: Option<Spacing>,
}

impl SchedulerConfig {
    /// The schedule that Stable Diffusion 1.x and 2.x were trained with, as DDIM's file says it, for single-file checkpoints,
    /// which carry no scheduler config. Values of stable-diffusion-v1-5's and stable-diffusion-2-1-base's folders.
    pub fn stable_diffusion(prediction_type: PredictionType) -> Self {
        let file = serde_json::json!({
            "_class_name": "DDIMScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": false,
            "num_train_timesteps": 1000,
            "prediction_type": prediction_type.as_str(),
            "set_alpha_to_one": false,
            "steps_offset": 1,
        });
        Self {
            file: file.as_object().cloned().unwrap_or_default(),
            num_train_timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            trained_betas: None,
            rescale_betas_zero_snr: false,
            prediction_type,
            steps_offset: 1,
            timestep_spacing: None,
        }
    }

    /// Reads the text of a `scheduler_config.json`.
    ///
    /// Python writes `NaN` and `Infinity`, which JSON does not know. One key has such a value by default, DPM-Solver's
    /// `lambda_min_clipped` (`-Infinity`): read as absent. Anywhere else they are errors.
    ///
    /// # Errors
    /// Not JSON, or as [`Self::from_json`].
    pub fn from_text(text: &str) -> Result<Self> {
        let invalid = |error: serde_json::Error| Error::data(format!("not JSON: {error}"));
        let error = match serde_json::from_str(text) {
            Ok(value) => return Self::from_json(&value),
            Err(error) => error,
        };
        let pattern = regex::Regex::new(r"([:\[,]\s*)(-?Infinity|NaN)(\s*[,}\]])")
            .map_err(|error| Error::data("scheduler config").caused_by(error))?;
        // Twice: what ends one value begins the next in a list.
        let quoted = pattern.replace_all(text, r#"$1"$2"$3"#);
        let quoted = pattern.replace_all(&quoted, r#"$1"$2"$3"#);
        let mut value: Value = serde_json::from_str(&quoted).map_err(|_| invalid(error))?;
        if let Some(file) = value.as_object_mut() {
            if file.get("lambda_min_clipped").is_some_and(|value| value == "-Infinity") {
                file.shift_remove("lambda_min_clipped");
            }
            let unreal = |value: &&Value| ["NaN", "Infinity", "-Infinity"].iter().any(|name| *value == name);
            let found = file.iter().find_map(|(key, value)| {
                let inside = value.as_array().into_iter().flatten();
                Some((key, std::iter::once(value).chain(inside).find(unreal)?.as_str()?))
            });
            if let Some((key, name)) = found {
                return Err(Error::data(format!("`{key}` is {name}, want a finite number")));
            }
        }
        Self::from_json(&value)
    }

    /// The same schedule as diffusers' pipeline of Stable Diffusion 1.x and 2.x takes it, whatever the file says or lacks. There
    /// is no clipping, and the offset is 1. With it, sentences that say what was changed.
    ///
    /// A PNDM file that lacks `set_alpha_to_one` means false, the default of that class only, and what these models want.
    pub(crate) fn in_pipeline(mut self) -> (Self, Vec<String>) {
        let mut changed = Vec::new();
        let class = self.class_name().unwrap_or_default().to_owned();
        let clips = match self.file.get("clip_sample") {
            Some(Value::Bool(clips)) => *clips,
            _ => class.starts_with("DDIM"),
        };
        if clips {
            changed.push("`clip_sample` is true or absent, taken as false".to_owned());
        }
        if self.steps_offset != 1 && matches!(self.timestep_spacing, None | Some(Spacing::Leading)) {
            changed.push(format!("`steps_offset` is {}, taken as 1", self.steps_offset));
        }
        self.steps_offset = 1;
        self.file.insert("clip_sample".to_owned(), Value::Bool(false));
        self.file.insert("steps_offset".to_owned(), Value::from(1));
        if class == "PNDMScheduler" {
            self.file.entry("set_alpha_to_one").or_insert(Value::Bool(false));
        }
        (self, changed)
    }

    /// The same schedule rescaled so that the last step is pure noise, with the spacing that reaches it (Lin et al., 2023).
    #[must_use]
    pub(crate) fn with_zero_terminal_snr(mut self) -> Self {
        self.file.insert("rescale_betas_zero_snr".to_owned(), Value::Bool(true));
        self.file.insert("timestep_spacing".to_owned(), Value::from("trailing"));
        (self.rescale_betas_zero_snr, self.timestep_spacing) = (true, Some(Spacing::Trailing));
        self
    }

    /// Reads the JSON value of a `scheduler_config.json`.
    ///
    /// # Errors
    /// Names the key, its value and what is supported.
    pub fn from_json(value: &Value) -> Result<Self> {
        let file = value.as_object().ok_or_else(|| Error::data("not a JSON object, as a scheduler config is"))?.clone();
        if let Some(class) = file.get("_class_name").and_then(Value::as_str)
            && class.starts_with("Flow")
        {
            return Err(Error::data(format!(
                "`_class_name` is {class}: flow-matching models are not supported, want Stable Diffusion 1.x or 2.x"
            )));
        }
        let keys = Keys(&file);
        let num_train_timesteps = keys.integer("num_train_timesteps", 1000)?;
        if !(2..=MOST_TIMESTEPS).contains(&num_train_timesteps) {
            let range = format!("a whole number from 2 to {MOST_TIMESTEPS}");
            return Err(refused("num_train_timesteps", &file["num_train_timesteps"], &range));
        }
        let trained_betas = keys.betas("trained_betas", num_train_timesteps)?;
        let beta_start = keys.number("beta_start", 0.0001)?;
        let beta_end = keys.number("beta_end", 0.02)?;
        for (key, beta) in [("beta_start", beta_start), ("beta_end", beta_end)] {
            if !(beta > 0.0 && beta < 1.0) {
                return Err(refused(key, &Value::from(beta), "a number between 0 and 1"));
            }
        }
        let beta_schedule = keys.choice(
            "beta_schedule",
            BetaSchedule::Linear,
            &[
                ("linear", BetaSchedule::Linear),
                ("scaled_linear", BetaSchedule::ScaledLinear),
                ("squaredcos_cap_v2", BetaSchedule::SquaredCosine),
            ],
        )?;
        let prediction_type = keys.choice(
            "prediction_type",
            PredictionType::Epsilon,
            &PredictionType::ALL.map(|kind| (kind.as_str(), kind)),
        )?;
        let timestep_spacing = keys.choice(
            "timestep_spacing",
            None,
            &[
                ("leading", Some(Spacing::Leading)),
                ("trailing", Some(Spacing::Trailing)),
                ("linspace", Some(Spacing::Linspace)),
            ],
        )?;
        // Samplers take it from the file; what it may be is checked for all of them.
        keys.flag("clip_sample", true)?;
        Ok(Self {
            num_train_timesteps,
            beta_start,
            beta_end,
            beta_schedule,
            trained_betas,
            rescale_betas_zero_snr: keys.flag("rescale_betas_zero_snr", false)?,
            prediction_type,
            steps_offset: keys.integer("steps_offset", 0)?,
            timestep_spacing,
            file,
        })
    }

    /// The file as it was read, with the prediction type that is in force.
    pub fn to_json(&self) -> Value {
        Value::Object(self.file.clone())
    }

    /// The same schedule for a model with another kind of output (`--prediction-type`).
    #[must_use]
    pub fn with_prediction_type(mut self, prediction_type: PredictionType) -> Self {
        self.file.insert("prediction_type".to_owned(), Value::from(prediction_type.as_str()));
        self.prediction_type = prediction_type;
        self
    }

    /// The class that wrote the file, e.g. `PNDMScheduler`.
    pub fn class_name(&self) -> Option<&str> {
        self.file.get("_class_name").and_then(Value::as_str)
    }

    /// The keys that only some samplers read.
    pub(super) fn keys(&self) -> Keys<'_> {
        Keys(&self.file)
    }
}

/// Typed access to the file; null counts as absent.
pub(super) struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| refused(key, value, "true or false"))
    }

    pub(super) fn number(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.optional_number(key)?.unwrap_or(default))
    }

    pub(super) fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| refused(key, value, "a number"))
    }

    pub(super) fn integer(&self, key: &str, default: usize) -> Result<usize> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value
            .as_u64()
            .and_then(|value| usize::try_from(value).ok())
            .ok_or_else(|| refused(key, value, "a whole number, 0 or more"))
    }

    /// One of a closed set, by the name it has in the file.
    pub(super) fn choice<T: Copy>(&self, key: &str, default: T, known: &[(&str, T)]) -> Result<T> {
        let Some(value) = self.get(key) else { return Ok(default) };
        known.iter().find(|(name, _)| value.as_str() == Some(name)).map(|(_, choice)| *choice).ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            refused(key, value, &names.join(", "))
        })
    }

    /// A switch of diffusers' that this crate does not have.
    pub(super) fn not_supported(&self, key: &str) -> Result<()> {
        match self.flag(key, false)? {
            true => Err(refused(key, &Value::Bool(true), "false")),
            false => Ok(()),
        }
    }

    fn betas(&self, key: &str, count: usize) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let betas: Option<Vec<f64>> =
            value.as_array().and_then(|betas| betas.iter().map(Value::as_f64).collect::<Option<_>>());
        let want = format!("null or {count} numbers (`num_train_timesteps`), each above 0 and at most 1");
        match betas {
            Some(betas) if betas.len() == count && betas.iter().all(|beta| *beta > 0.0 && *beta <= 1.0) => {
                Ok(Some(betas))
            }
            Some(betas) => Err(Error::data(format!("`{key}` is {} numbers, want {want}", betas.len()))),
            None => Err(Error::data(format!("`{key}`: want {want}"))),
        }
    }
}

pub(super) fn refused(key: &str, value: &Value, supported: &str) -> Error {
    Error::data(format!("`{key}` is {value}, supported: {supported}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stock_folder_says_is_read_and_kept() {
        let text = r#"{"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "skip_prk_steps": true,
            "trained_betas": null, "steps_offset": 1, "lambda_min_clipped": -Infinity}"#;
        let config = SchedulerConfig::from_text(text).unwrap();
        assert_eq!(config.class_name(), Some("PNDMScheduler"));
        assert_eq!((config.beta_schedule, config.steps_offset), (BetaSchedule::ScaledLinear, 1));
        assert_eq!((config.num_train_timesteps, config.beta_end), (1000, 0.02));
        assert_eq!(config.timestep_spacing, None);
        assert_eq!(config.to_json().get("lambda_min_clipped"), None);
        let saved = config.with_prediction_type(PredictionType::Velocity).to_json();
        assert_eq!(saved["skip_prk_steps"], Value::Bool(true));
        assert_eq!(saved["prediction_type"], "v_prediction");
    }

    #[test]
    fn our_own_config_is_what_its_json_says() {
        let config = SchedulerConfig::stable_diffusion(PredictionType::Velocity);
        assert_eq!(SchedulerConfig::from_json(&config.to_json()).unwrap(), config);
    }

    /// diffusers 0.42.1, `StableDiffusionPipeline.__init__`.
    #[test]
    fn the_pipeline_does_not_clip_and_begins_at_1() {
        let read = |text: &str| SchedulerConfig::from_text(text).unwrap().in_pipeline();
        for (text, remarks) in [
            (r#"{"_class_name": "DDIMScheduler", "clip_sample": true, "steps_offset": 0}"#, 2),
            (r#"{"_class_name": "DDIMScheduler", "steps_offset": 1}"#, 1),
            (r#"{"_class_name": "PNDMScheduler", "skip_prk_steps": true}"#, 1),
            (r#"{"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace"}"#, 0),
            (r#"{"_class_name": "DDIMScheduler", "clip_sample": false, "steps_offset": 1}"#, 0),
        ] {
            let (config, found) = read(text);
            assert_eq!(found.len(), remarks, "{text} {found:?}");
            assert_eq!((config.steps_offset, config.keys().flag("clip_sample", true).unwrap()), (1, false));
            let again = SchedulerConfig::from_json(&config.to_json()).unwrap().in_pipeline();
            assert_eq!(again, (config, Vec::new()));
        }
        let pndm = read(r#"{"_class_name": "PNDMScheduler"}"#).0;
        assert!(!pndm.keys().flag("set_alpha_to_one", true).unwrap());
        let ddim = read(r#"{"_class_name": "DDIMScheduler"}"#).0;
        assert!(ddim.keys().flag("set_alpha_to_one", true).unwrap());
    }

    #[test]
    fn zero_terminal_snr_is_what_its_json_says() {
        let config = SchedulerConfig::stable_diffusion(PredictionType::Velocity).with_zero_terminal_snr();
        assert_eq!(SchedulerConfig::from_json(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn an_unknown_value_is_named_with_what_is_supported() {
        for (text, message) in [
            (
                r#"{"beta_schedule": "sigmoid"}"#,
                r#"`beta_schedule` is "sigmoid", supported: linear, scaled_linear, squaredcos_cap_v2"#,
            ),
            (
                r#"{"prediction_type": "flow_prediction"}"#,
                r#"`prediction_type` is "flow_prediction", supported: epsilon, v_prediction, sample"#,
            ),
            (r#"{"steps_offset": -1}"#, "`steps_offset` is -1, supported: a whole number, 0 or more"),
            (r#"{"beta_end": 1.5}"#, "`beta_end` is 1.5, supported: a number between 0 and 1"),
            ("[]", "not a JSON object, as a scheduler config is"),
            (
                r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#,
                "`_class_name` is FlowMatchEulerDiscreteScheduler: flow-matching models are not supported, want Stable Diffusion 1.x or 2.x",
            ),
            (
                r#"{"trained_betas": [0.1]}"#,
                "`trained_betas` is 1 numbers, want null or 1000 numbers (`num_train_timesteps`), each above 0 and at most 1",
            ),
        ] {
            assert_eq!(SchedulerConfig::from_text(text).unwrap_err().to_string(), message);
        }
    }
}
