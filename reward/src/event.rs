//! What libraries say while they work: events, which the binary turns into progress bars and lines.

use std::path::Path;

use crate::{data::preflight::Report, statistics::pairwise::Validation};

/// Something happened.
pub enum Event<'a> {
    /// A fact worth a line.
    Note(&'a str),
    /// Something the user may want to change.
    Warning(&'a str),
    /// `done` of `total` units of the named phase.
    Progress {
        /// The phase, for example `validation`.
        phase: &'static str,
        /// Units done.
        done: usize,
        /// Units in all.
        total: usize,
    },
    /// The preflight is through.
    Preflight(&'a Report),
    /// One optimizer step is done.
    Step(&'a Step),
    /// One optimizer step of fine-tuning is done.
    Tuned(&'a TunedStep),
    /// The model was validated after `step` steps.
    Validated {
        /// Optimizer steps so far.
        step: usize,
        /// The figures.
        validation: &'a Validation,
        /// Whether this is the best accuracy so far.
        best: bool,
    },
    /// Images are being made.
    Generating {
        /// Images that are on disk.
        done: usize,
        /// Images of the whole run.
        total: usize,
        /// Denoising steps of the batch under way that are done.
        step: usize,
        /// Denoising steps of a batch.
        steps: usize,
        /// Since the start of this process, counting the batch under way by its steps.
        images_per_second: f64,
    },
    /// A checkpoint is complete on disk.
    Saved(&'a Path),
}

/// The figures of one optimizer step: a line of `metrics.jsonl`.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Step {
    /// Counted from 1.
    pub step: usize,
    /// Steps of the whole run.
    #[serde(skip)]
    pub total: usize,
    /// Counted from 1.
    pub epoch: usize,
    /// Mean over the effective batch, before the update.
    pub loss: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Euclidean norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Triplets of this batch per second.
    pub triplets_per_second: f64,
}

/// The figures of one optimizer step of fine-tuning: a line of `metrics.jsonl`.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct TunedStep {
    /// Counted from 1.
    pub step: usize,
    /// Steps of the whole run.
    #[serde(skip)]
    pub total: usize,
    /// Mean over the effective batch, before the update.
    pub loss: f64,
    /// Mean of the raw reward over the batch; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_mean: Option<f64>,
    /// Standard deviation of the raw reward over the batch; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_std: Option<f64>,
    /// Euclidean norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Training images of this step per second.
    pub images_per_second: f64,
    /// The most memory taken so far.
    pub peak_memory_bytes: u64,
    /// Seconds of sampling without a graph.
    pub rollout_seconds: f64,
    /// Seconds of forward passes with a graph: the steps that train, decoding and the reward.
    pub forward_seconds: f64,
    /// Seconds of backward passes.
    pub backward_seconds: f64,
    /// Seconds of the optimizer.
    pub optimizer_seconds: f64,
}

/// Listens.
pub trait Observer: Sync {
    /// Called from the thread that works, and from worker threads for progress.
    fn event(&self, event: &Event);
}

/// Listens to nothing.
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _: &Event) {}
}
