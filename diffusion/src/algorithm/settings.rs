//! The hyper-parameters of all methods.

use crate::{
    advantage::Deviation,
    preference::{PreferenceLoss, Utility},
};

/// The hyper-parameters of all methods.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Sampling steps of an image.
    pub sample_steps: usize,
    /// Images of a round, or pairs.
    pub batch_size: usize,
    /// Images of one prompt in a round.
    pub group: usize,
    /// Distinct prompts of the run.
    pub prompts: usize,
    /// K of the methods that truncate the gradient to K steps, if the user says it.
    pub truncation_steps: Option<usize>,
    /// Copies of an image that are noised again.
    pub copies: usize,
    /// γ of min-SNR weighting, if it is asked for.
    pub snr_gamma: Option<f64>,
    /// Share of pictures whose prompt is left out.
    pub prompt_dropout: f64,
    /// Passes over a roll-out.
    pub inner_epochs: usize,
    /// Optimizer steps of a pass.
    pub minibatches: usize,
    /// How far a probability ratio counts.
    pub clip_range: f64,
    /// How far an advantage counts.
    pub advantage_clip: f64,
    /// Factor on the distance from the base model.
    pub kl: f64,
    /// Rewards that are remembered of each prompt.
    pub buffer_size: usize,
    /// The fewest of them that make a statistic.
    pub buffer_min_count: usize,
    /// Whether images of a group begin with the same noise.
    pub same_noise: bool,
    /// Share of the sampling steps that train.
    pub timestep_fraction: f64,
    /// Whose deviation advantages are divided by.
    pub deviation: Deviation,
    /// Whether several rewards are normalised one by one within their groups.
    pub combine_groups: bool,
    /// Strength of the comparison with a reference.
    pub beta: f64,
    /// τ of reward-weighted regression.
    pub temperature: f64,
    /// How a preference becomes a loss.
    pub preference_loss: PreferenceLoss,
    /// How a like becomes a loss.
    pub utility: Utility,
    /// Optimizer steps after which the reference becomes the policy; 0: never.
    pub reference_every: usize,
}
