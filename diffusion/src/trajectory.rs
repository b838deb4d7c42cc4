//! Roll-outs whose steps a policy gradient looks at again.

use reward::world::World;
use tch::Tensor;

use crate::{
    Result,
    policy::{Batch, Policy},
};

/// Images on their way from noise, with the probability of every step.
pub struct Trajectory {
    /// Latents before each step and after the last, `[B, T + 1, C, h, w]`, fp32.
    pub latents: Tensor,
    /// Log-probability of each step under the policy that took it, `[B, T]`, fp32: the mean over C·h·w.
    pub log_probabilities: Tensor,
    /// Standard deviation of each step; one of 0 has no probability.
    pub deviations: Vec<f64>,
}

impl Trajectory {
    /// Rolls out all steps from unit-variance noise `start` `[B, C, h, w]`. Adapters stay apart from the weights: what they add
    /// has to be computed as it will be in training.
    pub fn roll(policy: &Policy, start: &Tensor, batch: &Batch) -> Self {
        let mut latents = vec![start * policy.sampler.init_noise_sigma()];
        let (mut log_probabilities, mut deviations) = (Vec::new(), Vec::new());
        let steps = policy.sampler.timesteps().len();
        drop(policy.roll_watched(start, 0..steps, batch, false, |step, next| {
            log_probabilities.push(step.log_probability(next));
            deviations.push(step.std);
            latents.push(next.shallow_clone());
        }));
        let log_probabilities = Tensor::stack(&log_probabilities, 1);
        Self { latents: Tensor::stack(&latents, 1), log_probabilities, deviations }
    }

    /// The images of several, one after the other, and those of the other ranks.
    ///
    /// # Errors
    /// Another rank is lost.
    pub fn cat(world: &World, parts: &[Self]) -> Result<Self> {
        let all = |of: fn(&Self) -> &Tensor| {
            world.concatenated(&parts.iter().map(|part| of(part).shallow_clone()).collect::<Vec<_>>())
        };
        let deviations = parts.first().map_or(Vec::new(), |part| part.deviations.clone());
        let (latents, log_probabilities) = (all(|part| &part.latents)?, all(|part| &part.log_probabilities)?);
        Ok(Self { latents, log_probabilities, deviations })
    }

    /// The finished latents, `[B, C, h, w]`.
    pub fn last(&self) -> Tensor {
        self.latents.select(1, -1)
    }
}
