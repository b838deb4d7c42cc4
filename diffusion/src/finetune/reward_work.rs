//! One step of a reward method.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::{setup::Embeddings, step::Work};
use crate::{
    Result,
    algorithm::{Algorithm, Loss, Objective, Weighted},
    noise,
    policy::{Batch, Plan, Policy},
};

/// The images of one optimizer step.
pub(super) struct RewardWork<'a> {
    pub(super) policy: &'a Policy<'a>,
    pub(super) objective: &'a Objective<'a>,
    pub(super) method: &'a dyn Algorithm,
    pub(super) embeddings: &'a Embeddings,
    pub(super) plan: Plan,
    pub(super) prompts: Vec<String>,
    pub(super) seeds: Vec<u64>,
    pub(super) latents: [i64; 3],
}

impl Work for RewardWork<'_> {
    type Prepared = (Batch, Tensor);

    fn prepare(&self, micro_batches: &[Range<usize>]) -> Result<Vec<Self::Prepared>> {
        let one = |range: &Range<usize>| {
            let prompts = self.prompts[range.clone()].to_vec();
            let context = self.embeddings.of(&prompts);
            let batch = Batch::new(prompts, context, self.seeds[range.clone()].to_vec(), self.latents);
            let start = self.method.rollout(self.policy, &self.plan, &batch);
            (batch, start)
        };
        if self.plan.cut == 0 {
            return Ok(micro_batches.iter().map(one).collect());
        }
        self.policy.merged(|| Ok(micro_batches.iter().map(one).collect()))
    }

    fn loss(&self, (batch, start): Self::Prepared) -> Result<Loss> {
        self.method.loss(self.policy, &start, &self.plan, &batch, self.objective)
    }
}

/// Rewards with noise on their weights until it is dropped: maxima that a little noise removes are no preference.
pub(super) struct Perturbed {
    saved: Vec<(Tensor, Tensor)>,
}

impl Perturbed {
    /// `share`: deviation of the noise in deviations of each tensor.
    pub(super) fn new(rewards: &[Weighted], share: f64, seed: u64) -> Self {
        let mut saved = Vec::new();
        if share > 0.0 {
            let weights = rewards.iter().flat_map(|weighted| weighted.reward.weights());
            for (index, mut weight) in weights.enumerate().filter(|(_, weight)| weight.dim() > 1) {
                tch::no_grad(|| {
                    saved.push((weight.shallow_clone(), weight.copy()));
                    let noise = noise::normal(seed, &format!("weight/{index}"), &weight.size());
                    let noise = noise.to_device(weight.device()).to_kind(weight.kind());
                    weight += noise * (weight.to_kind(Kind::Float).std(true) * share).to_kind(weight.kind());
                });
            }
        }
        Self { saved }
    }
}

impl Drop for Perturbed {
    fn drop(&mut self) {
        tch::no_grad(|| {
            for (weight, before) in &self.saved {
                weight.shallow_clone().copy_(before);
            }
        });
    }
}
