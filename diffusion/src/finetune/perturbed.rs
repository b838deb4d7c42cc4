//! Noise on the weights of rewards, against maxima that are none of the preference.

use tch::{Kind, Tensor};

use crate::{
    noise::{self, Stream},
    objective::Weighted,
};

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
                    let noise = noise::normal(seed, Stream::Weight(index), &weight.size());
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
