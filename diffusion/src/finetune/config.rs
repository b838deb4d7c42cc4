//! Everything `diffusion finetune` is told. One struct: the TOML file, the flags and the saved `config.toml` share its names.

use std::{num::NonZeroUsize, path::PathBuf};

use reward::{
    clip::config::Activation,
    closed_set,
    device::{DeviceName, Precision},
    optim::Schedule,
    rewards::{external::Limits, spec::RewardSpec},
    run::changed_settings,
};
use serde::{Deserialize, Serialize};

use crate::{
    advantage::Deviation,
    algorithm::{self, Data, Method, MethodName, RewardUse},
    lora::{LoraSpec, one_or_several},
    objective::Shaping,
    preference::{PreferenceLoss, Utility},
    schedule::SamplerName,
};

closed_set! {
    /// What trains.
    pub enum Train: "choice of weights" {
        /// Adapters over frozen weights.
        Lora = "lora",
        /// Every weight of the UNet.
        Full = "full",
    }
}

closed_set! {
    /// In which unit rewards are maximised.
    pub enum RewardScale: "reward scale" {
        /// (r − μ) / σ with mean and deviation of the base model's images.
        Standardised = "standardised",
        /// As the reward gives it.
        Raw = "raw",
    }
}

closed_set! {
    /// How several rewards become one.
    pub enum RewardCombination: "reward combination" {
        /// Their weighted sum, each in its own unit.
        Sum = "sum",
        /// Each normalised within its group, then added, then normalised over the batch (GDPO).
        Group = "group",
    }
}

closed_set! {
    /// Whether activations are computed again in the backward pass.
    pub enum Checkpointing: "gradient checkpointing" {
        /// Where the memory planner finds that the device needs it.
        Auto = "auto",
        /// Always.
        On = "on",
        /// Never.
        Off = "off",
    }
}

/// The settings of `diffusion finetune`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinetuneConfig {
    /// The method.
    pub algorithm: Option<MethodName>,
    /// The model: folder, single file, hub id or `random:NAME`.
    pub model: Option<String>,
    /// Rewards with weights: `[NAME=]PATH[@WEIGHT]`, `command:LABEL=CMD[@WEIGHT]`, `http:LABEL=URL[@WEIGHT]`.
    pub reward: Vec<RewardSpec>,
    /// The CLIP that a reward stands on whose file has none: `aesthetic`.
    pub clip: Option<String>,
    /// Overrides the activation of a reward's CLIP that may have either.
    pub activation: Option<Activation>,
    /// The longest silence of a command or a server while an answer is due, in seconds.
    pub reward_timeout: f64,
    /// How often in a run a command is started again, or a request to a server sent again.
    pub reward_restarts: usize,
    /// In which unit rewards are maximised.
    pub reward_scale: RewardScale,
    /// Images of the base model that give the scale.
    pub scale_images: usize,
    /// A file of training prompts.
    pub prompts: Option<PathBuf>,
    /// A file of prompts that are never trained on, to watch the run by.
    pub held_out_prompts: Option<PathBuf>,
    /// Images made of the held-out prompts at every evaluation.
    pub held_out_images: usize,
    /// For `denoising`: a table of images and prompts (`prompt`, `path`: parquet, CSV or JSON lines).
    pub images: Option<PathBuf>,
    /// For `dpo` and `kto`: the reward trainer's triplets (paths, globs, folders of parquet files).
    pub training_file: Vec<String>,
    /// For `kto`: a table of pictures that people liked or did not (`prompt`, `path`, `liked`, and `weight` if there is one).
    pub labels: Option<PathBuf>,
    /// Where relative paths of `training_file` and `labels` start; absent: at each table's own folder.
    pub image_root: Option<PathBuf>,
    /// Receives adapters or weights, checkpoints, samples and metrics.
    pub output: Option<PathBuf>,
    /// Optimizer steps.
    pub train_steps: usize,
    /// Sampling steps of an image.
    pub sample_steps: usize,
    /// Classifier-free guidance; absent: the method's.
    pub guidance_scale: Option<f64>,
    /// DDIM's noise, 0..=1; absent: the method's.
    pub eta: Option<f64>,
    /// The sampler of roll-outs and held-out images; methods that look into its steps take `ddim` alone.
    pub scheduler: SamplerName,
    /// Takes the place of the empty prompt in guidance.
    pub negative_prompt: String,
    /// In pixels; absent: the model's.
    pub height: Option<usize>,
    /// In pixels; absent: the model's.
    pub width: Option<usize>,
    /// Images of one optimizer step.
    pub batch_size: usize,
    /// How many images of a batch share a prompt. Absent: 1 or, where a method compares images of one prompt, the largest divisor
    /// of the batch size up to 8.
    pub images_per_prompt: Option<usize>,
    /// Micro-batches that one batch is split into; absent: as the memory planner finds.
    pub gradient_accumulation: Option<usize>,
    /// Learning rate after the warm-up.
    pub learning_rate: f64,
    /// AdamW's.
    pub weight_decay: f64,
    /// Gradients with a larger norm are scaled down to it; 0: never.
    pub clip_norm: f64,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// What trains.
    pub train: Train,
    /// Rank of new adapters.
    pub lora_rank: usize,
    /// Alpha of new adapters; absent: the rank.
    pub lora_alpha: Option<f64>,
    /// Ends of the names of the layers that get one.
    pub lora_targets: Vec<String>,
    /// Adapters to start from, in place of new ones; the sum of several.
    #[serde(deserialize_with = "one_or_several")]
    pub lora: Vec<LoraSpec>,
    /// K of `draft-k` (1) and `drtune` (3).
    pub truncation_steps: Option<usize>,
    /// n of `draft-lv`.
    pub copies: usize,
    /// Whether gradients flow through the unconditional pass; absent: the method's.
    pub negative_branch_gradient: Option<bool>,
    /// Factor on the mean squared distance of ε from the base model's.
    pub anchor: f64,
    /// How a reward becomes a loss.
    pub shaping: Shaping,
    /// c of `shaping = "relu"`.
    pub margin: f64,
    /// Factor on the reward's part of the loss.
    pub loss_scale: f64,
    /// Standard deviation of noise on the pixels that the reward sees (0..=1 in all).
    pub pixel_noise: f64,
    /// Noise on the reward's weights, as a share of each tensor's own deviation.
    pub weight_noise: f64,
    /// γ of min-SNR weighting in `denoising`.
    pub snr_gamma: Option<f64>,
    /// For `denoising`: optimizer steps that train the VAE first; 0 leaves it as it is.
    pub vae_steps: usize,
    /// Learning rate of those, with `schedule` and `warmup_steps` as the other.
    pub vae_learning_rate: f64,
    /// Share of pictures whose prompt is left out, so that guidance works: `denoising`, `dpo`, `kto`.
    pub prompt_dropout: f64,
    /// Passes over a roll-out.
    pub inner_epochs: usize,
    /// Optimizer steps of a pass.
    pub minibatches: usize,
    /// How far a probability ratio counts, beside 1: `ddpo`, `grpo`.
    pub clip_range: f64,
    /// How far an advantage counts: `ddpo`, `grpo`, `nft`.
    pub advantage_clip: f64,
    /// Factor on the distance from the base model: `ddpo`, `grpo`, `nft`; absent: the method's.
    pub kl: Option<f64>,
    /// For `ddpo`: rewards that are remembered of each prompt.
    pub buffer_size: usize,
    /// For `ddpo`: the fewest of them that an image is judged by.
    pub buffer_min_count: usize,
    /// For `grpo`: images of a group begin with the same noise.
    pub same_noise: bool,
    /// Share of the sampling steps that train: `ddpo`, `grpo`, `nft`.
    pub timestep_fraction: f64,
    /// Whose deviation advantages are divided by: `grpo`, `nft`.
    pub deviation: Deviation,
    /// How several rewards become one: `grpo` and `nft` take either.
    pub reward_combination: RewardCombination,
    /// Strength of the comparison with a reference: `nft`, `dpo`, `kto`; absent: the method's.
    pub beta: Option<f64>,
    /// τ of `rwr`.
    pub temperature: f64,
    /// How a preference becomes a loss: `dpo`.
    pub preference_loss: PreferenceLoss,
    /// How a like becomes a loss: `kto`.
    pub utility: Utility,
    /// Share of a batch that people liked: `kto`.
    pub liked_share: f64,
    /// For `dpo` on own images: optimizer steps after which the reference becomes the model; 0: never.
    pub reference_every: usize,
    /// Decay of a running mean of what trains, which is evaluated and saved; absent: none.
    pub ema_decay: Option<f64>,
    /// Whether activations are computed again in the backward pass.
    pub gradient_checkpointing: Checkpointing,
    /// Kind of frozen weights and activations; absent: as [`default_precision`](crate::pipeline::default_precision).
    pub precision: Option<Precision>,
    /// What the model predicts; absent: what its files say.
    pub prediction_type: Option<String>,
    /// Evaluate on held-out prompts every so many steps, besides before the first and after the last; 0: only then.
    pub evaluate_every: usize,
    /// Stop, and go back to the best checkpoint, once the target has risen while so many other measures fell beyond their
    /// noise; absent: only warn.
    pub stop_after_falls: Option<usize>,
    /// Write a checkpoint every so many steps, besides after the last; 0: only then.
    pub checkpoint_every: usize,
    /// How many checkpoints stay on disk; 0: all.
    pub keep_checkpoints: usize,
    /// Where to compute.
    pub device: DeviceName,
    /// Seed of adapters, prompts' order and noise.
    #[serde(with = "reward::seed")]
    pub seed: u64,
    /// CPU threads to compute with; absent: see [`reward::threads::settle`].
    pub threads: Option<NonZeroUsize>,
}

impl Default for FinetuneConfig {
    fn default() -> Self {
        Self {
            algorithm: None,
            model: None,
            reward: Vec::new(),
            clip: None,
            activation: None,
            reward_timeout: Limits::default().timeout_seconds,
            reward_restarts: Limits::default().restarts,
            reward_scale: RewardScale::Standardised,
            scale_images: 64,
            prompts: None,
            held_out_prompts: None,
            held_out_images: 16,
            images: None,
            training_file: Vec::new(),
            labels: None,
            image_root: None,
            output: None,
            train_steps: 200,
            sample_steps: 50,
            guidance_scale: None,
            eta: None,
            scheduler: SamplerName::Ddim,
            negative_prompt: String::new(),
            height: None,
            width: None,
            batch_size: 4,
            images_per_prompt: None,
            gradient_accumulation: None,
            learning_rate: 1e-4,
            weight_decay: 0.0,
            clip_norm: 1.0,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            train: Train::Lora,
            lora_rank: 8,
            lora_alpha: None,
            lora_targets: ["to_q", "to_k", "to_v", "to_out.0"].map(str::to_owned).to_vec(),
            lora: Vec::new(),
            truncation_steps: None,
            copies: 2,
            negative_branch_gradient: None,
            anchor: 0.0,
            shaping: Shaping::Negative,
            margin: 2.0,
            loss_scale: 1.0,
            pixel_noise: 0.0,
            weight_noise: 0.0,
            snr_gamma: None,
            vae_steps: 0,
            vae_learning_rate: 1e-3,
            prompt_dropout: 0.1,
            inner_epochs: 1,
            minibatches: 1,
            clip_range: 1e-4,
            advantage_clip: 5.0,
            kl: None,
            buffer_size: 32,
            buffer_min_count: 16,
            same_noise: false,
            timestep_fraction: 1.0,
            deviation: Deviation::Batch,
            reward_combination: RewardCombination::Sum,
            beta: None,
            temperature: 0.2,
            preference_loss: PreferenceLoss::Sigmoid,
            utility: Utility::Sigmoid,
            liked_share: 0.8,
            reference_every: 0,
            ema_decay: None,
            gradient_checkpointing: Checkpointing::Auto,
            precision: None,
            prediction_type: None,
            evaluate_every: 50,
            stop_after_falls: None,
            checkpoint_every: 100,
            keep_checkpoints: 3,
            device: DeviceName::Auto,
            seed: 0,
            threads: None,
        }
    }
}

/// Settings that may differ when a run is resumed: they change where and how fast, not what is computed.
const FREE_ON_RESUME: [&str; 11] = [
    "output",
    "reward_timeout",
    "reward_restarts",
    "checkpoint_every",
    "evaluate_every",
    "keep_checkpoints",
    "gradient_accumulation",
    "gradient_checkpointing",
    "stop_after_falls",
    "device",
    "threads",
];

impl FinetuneConfig {
    /// The method; `None` only before [`Self::check`].
    pub fn method(&self) -> Option<&'static Method> {
        self.algorithm.map(|MethodName(method)| method)
    }

    /// What the method trains on: the first kind of data that it takes and that is given.
    pub(super) fn data(&self) -> Option<Data> {
        let given = |data: &Data| match data {
            Data::Prompts => self.prompts.is_some(),
            Data::Pictures => self.images.is_some(),
            Data::Triplets => !self.training_file.is_empty(),
            Data::Labels => self.labels.is_some(),
        };
        self.method()?.data.iter().copied().find(given)
    }

    /// Whether the method trains on pictures.
    pub(super) fn on_pictures(&self) -> bool {
        self.data().is_some_and(|data| data != Data::Prompts)
    }

    /// Whether the method follows rewards.
    pub(super) fn rewarded(&self) -> bool {
        self.method().is_some_and(|method| method.reward != RewardUse::None) && !self.on_pictures()
    }

    /// Images of one prompt in a batch.
    pub(super) fn group(&self) -> usize {
        let grouped = self.rewarded() && self.method().is_some_and(|method| method.grouped);
        let largest = || (1..=self.batch_size.min(8)).rev().find(|size| self.batch_size.is_multiple_of(*size));
        self.images_per_prompt.unwrap_or_else(|| if grouped { largest().unwrap_or(1) } else { 1 })
    }

    /// The hyper-parameters of the method, for a run of so many distinct prompts.
    pub fn settings(&self, prompts: usize) -> algorithm::Settings {
        let (kl, beta) = self.method().map_or((0.0, 1.0), |method| (method.kl, method.beta));
        algorithm::Settings {
            sample_steps: self.sample_steps,
            batch_size: self.batch_size,
            group: self.group(),
            prompts,
            truncation_steps: self.truncation_steps,
            copies: self.copies,
            snr_gamma: self.snr_gamma,
            prompt_dropout: self.prompt_dropout,
            inner_epochs: self.inner_epochs,
            minibatches: self.minibatches,
            clip_range: self.clip_range,
            advantage_clip: self.advantage_clip,
            kl: self.kl.unwrap_or(kl),
            buffer_size: self.buffer_size,
            buffer_min_count: self.buffer_min_count,
            same_noise: self.same_noise,
            timestep_fraction: self.timestep_fraction,
            deviation: self.deviation,
            combine_groups: self.reward_combination == RewardCombination::Group,
            beta: self.beta.unwrap_or(beta),
            temperature: self.temperature,
            preference_loss: self.preference_loss,
            utility: self.utility,
            reference_every: self.reference_every,
        }
    }

    /// Whether anything asks what the model was before training.
    pub(super) fn watches_base(&self) -> bool {
        let settings = self.settings(0);
        let compared = self.data().is_some_and(|data| matches!(data, Data::Triplets | Data::Labels));
        self.anchor > 0.0 || self.held_out_prompts.is_some() || self.rewarded() || compared || settings.kl > 0.0
    }

    /// Guidance scale, eta and whether the unconditional branch has gradients: what was said, or else as published.
    pub fn sampling(&self) -> (f64, f64, bool) {
        let (guidance, eta, negative) = self
            .method()
            .map_or((7.5, 0.0, true), |method| (method.guidance_scale, method.eta, method.negative_branch_gradient));
        (
            self.guidance_scale.unwrap_or(guidance),
            self.eta.unwrap_or(eta),
            self.negative_branch_gradient.unwrap_or(negative),
        )
    }

    /// How long commands and servers are waited for.
    pub(super) fn limits(&self) -> Limits {
        Limits { timeout_seconds: self.reward_timeout, restarts: self.reward_restarts }
    }

    /// Names of the settings that differ from `earlier` and would make a resumed run another run.
    pub fn changed_since(&self, earlier: &Self) -> Vec<String> {
        let mut names = changed_settings(&self.without_paths(), &earlier.without_paths(), &FREE_ON_RESUME);
        // A constant rate does not know how long the run is.
        let longer = self.schedule == Schedule::Constant && earlier.schedule == Schedule::Constant;
        names.retain(|name| !(longer && name == "train_steps"));
        names
    }

    /// Data and models as given or not: of those that are, the content counts ([`Inputs`](reward::run::inputs::Inputs)).
    fn without_paths(&self) -> Self {
        let given = |path: &Option<PathBuf>| path.as_ref().map(|_| PathBuf::new());
        Self {
            model: None,
            reward: self.reward.iter().map(|spec| RewardSpec { path: String::new(), ..spec.clone() }).collect(),
            clip: self.clip.as_ref().map(|_| String::new()),
            prompts: given(&self.prompts),
            held_out_prompts: given(&self.held_out_prompts),
            images: given(&self.images),
            training_file: self.training_file.iter().map(|_| String::new()).collect(),
            labels: given(&self.labels),
            image_root: given(&self.image_root),
            lora: self.lora.iter().map(|spec| LoraSpec { path: PathBuf::new(), ..spec.clone() }).collect(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn named(name: &str) -> MethodName {
        name.parse().unwrap()
    }

    /// Settings that lack nothing.
    pub(crate) fn complete() -> FinetuneConfig {
        FinetuneConfig {
            algorithm: Some(named("draft-k")),
            model: Some("random:sd-tiny".to_owned()),
            reward: vec!["random:tiny".parse().unwrap()],
            prompts: Some("prompts.txt".into()),
            output: Some("out".into()),
            ..FinetuneConfig::default()
        }
    }

    #[test]
    fn a_resumed_run_may_be_longer_but_not_another() {
        let longer = FinetuneConfig {
            train_steps: 500,
            gradient_accumulation: Some(2),
            reward_timeout: 1.0,
            reward_restarts: 1,
            ..complete()
        };
        assert_eq!(longer.changed_since(&complete()), Vec::<String>::new());
        let other = FinetuneConfig { learning_rate: 1.0, seed: 2, ..complete() };
        assert_eq!(other.changed_since(&complete()), ["learning_rate", "seed"]);
        let spelled = FinetuneConfig { prompts: Some("./prompts.txt".into()), model: Some("./m".into()), ..complete() };
        assert_eq!(spelled.changed_since(&complete()), Vec::<String>::new());
        let watched = FinetuneConfig { held_out_prompts: Some("h.txt".into()), ..complete() };
        assert_eq!(watched.changed_since(&complete()), ["held_out_prompts"]);
        let weighted = FinetuneConfig { reward: vec!["random:tiny@2".parse().unwrap()], ..complete() };
        assert_eq!(weighted.changed_since(&complete()), ["reward"]);
    }

    #[test]
    fn what_is_not_said_is_as_published() {
        let of = |name| FinetuneConfig { algorithm: Some(named(name)), ..complete() }.sampling();
        assert_eq!(of("draft-k"), (7.5, 0.0, true));
        assert_eq!(of("refl"), (1.0, 1.0, true));
        assert_eq!(of("drtune"), (3.5, 0.0, false));
        let said = FinetuneConfig { guidance_scale: Some(2.0), negative_branch_gradient: Some(false), ..complete() };
        assert_eq!(said.sampling(), (2.0, 0.0, false));
    }
}
