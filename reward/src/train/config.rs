//! Everything a reward training run is told. One struct: the TOML file, the flags and the saved `config.toml` share its
//! names.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::trainable::TrainingMode;
use crate::{
    Error, Result,
    clip::config::Activation,
    data::loader,
    data::preflight::{Level, OnBadImage},
    device::DeviceName,
    device::Precision,
    loss::LossName,
    optim::Schedule,
    run::{changed_settings, place::Settings},
};

/// The settings of `reward train`. Defaults are the original trainer's where it has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Parquet files or globs with the training triplets.
    pub training_file: Vec<String>,
    /// What trains.
    pub training_mode: Option<TrainingMode>,
    /// Triplets of one optimizer step.
    pub batch_size: usize,
    /// Passes over the training triplets.
    pub n_epochs: usize,
    /// Receives checkpoints, metrics and the final model.
    pub save_folder: Option<PathBuf>,
    /// The loss.
    pub loss_name: LossName,
    /// Checkpoint to start from instead of the base.
    pub checkout_path: Option<String>,
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// Base model; with `checkout_path`, only its architecture counts.
    pub model: Option<String>,
    /// Parquet files or globs with held-out triplets.
    pub validation_file: Vec<String>,
    /// Validate every so many steps, besides once per epoch; 0: only per epoch.
    pub validate_every: usize,
    /// Write a checkpoint every so many steps, besides once per epoch; 0: only per epoch.
    pub checkpoint_every: usize,
    /// How many checkpoints stay on disk; 0: all.
    pub keep_checkpoints: usize,
    /// Micro-batches that one batch is split into; absent: see [`TrainConfig::micro_batches`].
    pub gradient_accumulation: Option<usize>,
    /// Gradients with a larger norm are scaled down to it; absent: never.
    pub clip_norm: Option<f64>,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// Stop after so many steps, whatever `n_epochs` says.
    pub max_steps: Option<usize>,
    /// Margin of the triplet loss.
    pub margin: f64,
    /// Pictures with more pixels are refused; absent: Pillow's limit.
    pub max_pixels: Option<u64>,
    /// Apply the EXIF orientation (the original does not).
    pub exif_rotate: bool,
    /// Overrides the model's activation.
    pub activation: Option<Activation>,
    /// Which model of a checkpoint that holds several.
    pub weights: Option<String>,
    /// Recompute activations in the backward pass to save memory.
    pub gradient_checkpointing: bool,
    /// Kind of activations and frozen weights.
    pub precision: Precision,
    /// Where the frozen prefix's activations are kept: `off`, `ram` or a folder.
    pub cache: String,
    /// Budget of the cache in GB; absent: a quarter of the free memory, or 100 GB on disk.
    pub cache_gb: Option<f64>,
    /// Threads that decode images; absent: one per core.
    pub num_workers: Option<usize>,
    /// Relative image paths resolve against this folder instead of the parquet's.
    pub image_root: Option<PathBuf>,
    /// What an unreadable image does.
    pub on_bad_image: OnBadImage,
    /// How much is checked before training.
    pub preflight: Level,
    /// Turns the preflight's warnings into errors.
    pub strict: bool,
    /// Decode large JPEGs at a fraction of their size.
    pub fast_decode: bool,
    /// Where to compute.
    pub device: DeviceName,
    /// Seed of the shuffling and of `random:` weights.
    #[serde(with = "crate::seed")]
    pub seed: u64,
    /// CPU threads to compute with; absent: see [`crate::threads::settle`].
    pub threads: Option<NonZeroUsize>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            training_file: Vec::new(),
            training_mode: None,
            batch_size: 32,
            n_epochs: 10,
            save_folder: None,
            loss_name: LossName::Triplet,
            checkout_path: None,
            learning_rate: 3e-5,
            model: None,
            validation_file: Vec::new(),
            validate_every: 0,
            checkpoint_every: 800,
            keep_checkpoints: 3,
            gradient_accumulation: None,
            clip_norm: None,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            max_steps: None,
            margin: 0.3,
            max_pixels: None,
            exif_rotate: false,
            activation: None,
            weights: None,
            gradient_checkpointing: false,
            precision: Precision::Fp32,
            cache: "ram".to_owned(),
            cache_gb: None,
            num_workers: None,
            image_root: None,
            on_bad_image: OnBadImage::Stop,
            preflight: Level::Headers,
            strict: false,
            fast_decode: false,
            device: DeviceName::Auto,
            seed: 0,
            threads: None,
        }
    }
}

/// Far more triplets, epochs or steps than a run has, and few enough to count.
const MOST: usize = 100_000_000;

/// Settings that may differ when a run is resumed: they change where and how fast, not what is computed. Of data and models
/// the content counts ([`Inputs`](crate::run::inputs::Inputs)), not the path.
const FREE_ON_RESUME: [&str; 18] = [
    "training_file",
    "validation_file",
    "checkout_path",
    "model",
    "image_root",
    "gradient_accumulation",
    "gradient_checkpointing",
    "save_folder",
    "validate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "cache",
    "cache_gb",
    "num_workers",
    "preflight",
    "strict",
    "device",
    "threads",
];

impl TrainConfig {
    /// Checks what no single field can.
    ///
    /// # Errors
    /// A usage error that names the setting.
    pub fn check(&self) -> Result<()> {
        let require = |there: bool, name: &str, what: &str| {
            if there {
                return Ok(());
            }
            let flag = name.replace('_', "-");
            Err(Error::usage(format!("--{flag} is missing: {what}"))
                .hint(format!("or `{name} = …` in the --config file")))
        };
        require(!self.training_file.is_empty(), "training_file", "a parquet file of triplets")?;
        require(
            self.training_mode.is_some(),
            "training_mode",
            "what to train, for example visual_upper_layers_textual_upper_layers",
        )?;
        require(self.save_folder.is_some(), "save_folder", "a folder for checkpoints and the final model")?;
        let positive = |holds: bool, name: &str, value: &dyn std::fmt::Display, wanted: &str| {
            if holds { Ok(()) } else { Err(Error::usage(format!("{name} = {value}: want {wanted}"))) }
        };
        let above_zero = |value: f64| value > 0.0 && value.is_finite();
        for (name, value) in
            [("batch_size", self.batch_size), ("n_epochs", self.n_epochs), ("max_steps", self.max_steps.unwrap_or(1))]
        {
            positive((1..=MOST).contains(&value), name, &value, &format!("1 to {MOST}"))?;
        }
        positive(above_zero(self.learning_rate), "learning_rate", &self.learning_rate, "a positive number")?;
        positive(
            self.margin >= 0.0 && self.margin.is_finite(),
            "margin",
            &self.margin,
            "a number that is not negative",
        )?;
        positive(
            self.gradient_accumulation.is_none_or(|parts| (1..=self.batch_size).contains(&parts)),
            "gradient_accumulation",
            &self.gradient_accumulation.unwrap_or_default(),
            "1 up to the batch size",
        )?;
        for (name, value) in [("clip_norm", self.clip_norm), ("cache_gb", self.cache_gb)] {
            positive(value.is_none_or(above_zero), name, &value.unwrap_or_default(), "a positive number")?;
        }
        positive(self.max_pixels != Some(0), "max_pixels", &0, "at least 1")
    }

    /// The number of micro-batches that a batch is split into on `device`. Unless the user says, on a CPU none is larger than 16
    /// triplets where the loss of a row is its own. These are as fast as 32 there and take half the memory.
    pub fn micro_batches(&self, device: tch::Device) -> usize {
        const TRIPLETS: usize = 16;
        let worth_it = device == tch::Device::Cpu && !self.loss_name.spans_batch();
        self.gradient_accumulation.unwrap_or(if worth_it { self.batch_size.div_ceil(TRIPLETS) } else { 1 })
    }

    /// Names of the settings that differ from `earlier` and would make a resumed run another run.
    pub fn changed_since(&self, earlier: &Self) -> Vec<String> {
        let mut names = changed_settings(self, earlier, &FREE_ON_RESUME);
        // A constant rate does not know how long the run is.
        let longer = self.schedule == Schedule::Constant && earlier.schedule == Schedule::Constant;
        names.retain(|name| !(longer && (name == "n_epochs" || name == "max_steps")));
        if self.validation_file.is_empty() != earlier.validation_file.is_empty() {
            names.push("validation_file".to_owned());
        }
        names
    }
}

impl TrainConfig {
    /// Threads that decode.
    pub(super) fn workers(&self) -> usize {
        loader::workers(self.num_workers)
    }
}

impl Settings for TrainConfig {
    const FLAG: &'static str = "save-folder";

    fn folder(&self) -> &Path {
        self.save_folder.as_deref().unwrap_or(Path::new(""))
    }

    fn folders(&self) -> &'static [&'static str] {
        &["best", "final"]
    }

    fn result(&self) -> &'static str {
        "final"
    }

    fn changed(&self, earlier: &Self) -> Vec<String> {
        self.changed_since(earlier)
    }

    fn checkpoint_every(&self) -> usize {
        self.checkpoint_every
    }

    fn tensor_files(&self) -> &'static [&'static str] {
        &["model.safetensors", "optimizer.safetensors"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> TrainConfig {
        TrainConfig {
            training_file: vec!["T.parquet".to_owned()],
            training_mode: Some(TrainingMode::Visual),
            save_folder: Some("out".into()),
            ..TrainConfig::default()
        }
    }

    #[test]
    fn each_bad_value_is_named() {
        complete().check().unwrap();
        for (name, config) in [
            ("training-file", TrainConfig { training_file: Vec::new(), ..complete() }),
            ("batch_size", TrainConfig { batch_size: 0, ..complete() }),
            ("batch_size", TrainConfig { batch_size: MOST + 1, ..complete() }),
            ("n_epochs", TrainConfig { n_epochs: usize::MAX, ..complete() }),
            ("max_steps", TrainConfig { max_steps: Some(0), ..complete() }),
            ("learning_rate", TrainConfig { learning_rate: -1.0, ..complete() }),
            ("learning_rate", TrainConfig { learning_rate: f64::NAN, ..complete() }),
            ("gradient_accumulation", TrainConfig { gradient_accumulation: Some(33), ..complete() }),
            ("clip_norm", TrainConfig { clip_norm: Some(0.0), ..complete() }),
        ] {
            let error = config.check().unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(error.kind(), crate::ErrorKind::Usage);
        }
    }

    #[test]
    fn a_cpu_takes_at_most_16_triplets_at_a_time() {
        let parts = |config: TrainConfig, device| config.micro_batches(device);
        let given = TrainConfig { gradient_accumulation: Some(1), ..complete() };
        assert_eq!(parts(complete(), tch::Device::Cpu), 2);
        assert_eq!(parts(complete(), tch::Device::Cuda(0)), 1);
        assert_eq!(parts(TrainConfig { batch_size: 33, ..complete() }, tch::Device::Cpu), 3);
        assert_eq!(parts(TrainConfig { loss_name: LossName::InfoNce, ..complete() }, tch::Device::Cpu), 1);
        assert_eq!(parts(given, tch::Device::Cpu), 1);
    }

    #[test]
    fn a_resumed_run_may_be_longer_but_not_another() {
        let longer = TrainConfig { n_epochs: 20, num_workers: Some(3), ..complete() };
        assert_eq!(longer.changed_since(&complete()), Vec::<String>::new());
        let other = TrainConfig { margin: 0.1, batch_size: 8, ..complete() };
        assert_eq!(other.changed_since(&complete()), ["batch_size", "margin"]);
        let spelled =
            TrainConfig { training_file: vec!["./T.parquet".to_owned()], image_root: Some("x".into()), ..complete() };
        assert_eq!(spelled.changed_since(&complete()), Vec::<String>::new());
        let validated = TrainConfig { validation_file: vec!["V.parquet".to_owned()], ..complete() };
        assert_eq!(validated.changed_since(&complete()), ["validation_file"]);
        let cosine = TrainConfig { schedule: Schedule::Cosine, ..complete() };
        assert_eq!(TrainConfig { n_epochs: 3, ..cosine.clone() }.changed_since(&cosine), ["n_epochs"]);
    }
}
