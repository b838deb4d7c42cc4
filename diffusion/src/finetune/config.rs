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
    algorithm::{self, Data, Method, MethodName, RewardUse},
    lora::{LoraSpec, one_or_several},
    objective::Shaping,
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
    /// Takes the place of the empty prompt in guidance.
    pub negative_prompt: String,
    /// In pixels; absent: the model's.
    pub height: Option<usize>,
    /// In pixels; absent: the model's.
    pub width: Option<usize>,
    /// Images of one optimizer step.
    pub batch_size: usize,
    /// How many of them share a prompt.
    pub images_per_prompt: usize,
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
    /// For `denoising`: share of images whose prompt is left out, so that guidance works.
    pub prompt_dropout: f64,
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
            output: None,
            train_steps: 200,
            sample_steps: 50,
            guidance_scale: None,
            eta: None,
            negative_prompt: String::new(),
            height: None,
            width: None,
            batch_size: 4,
            images_per_prompt: 1,
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

    /// Whether the method trains on pictures.
    pub(super) fn on_pictures(&self) -> bool {
        self.method().is_some_and(|method| method.data == Data::Pictures)
    }

    /// Whether the method follows rewards.
    pub(super) fn rewarded(&self) -> bool {
        self.method().is_some_and(|method| method.reward != RewardUse::None)
    }

    /// The hyper-parameters of the method.
    pub(super) fn settings(&self) -> algorithm::Settings {
        algorithm::Settings {
            sample_steps: self.sample_steps,
            truncation_steps: self.truncation_steps,
            copies: self.copies,
            snr_gamma: self.snr_gamma,
            prompt_dropout: self.prompt_dropout,
        }
    }

    /// Whether anything asks what the model was before training.
    pub(super) fn watches_base(&self) -> bool {
        self.anchor > 0.0 || self.held_out_prompts.is_some() || self.rewarded()
    }

    /// Guidance scale, eta and whether the unconditional branch has gradients: what was said, or else as published.
    pub(super) fn sampling(&self) -> (f64, f64, bool) {
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
