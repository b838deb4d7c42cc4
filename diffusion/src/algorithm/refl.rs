//! ReFL: "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation", Xu et al., 2023,
//! <https://arxiv.org/abs/2304.05977>, section 3 and algorithm 1. One late step, drawn at random, trains, and its predicted x₀ is
//! what the reward sees.
//!
//! As published: 40 steps with DDPM's noise (here DDIM with eta 1, the same step), the trained one among the last ten, no
//! guidance. The loss is 1e-3 · relu(2 − r), with AdamW at 1e-5 on the full UNet, for 100 steps of 64 images. The paper's
//! pre-training term is in its text but not in its code: here it is the method `denoising`, or the ε-anchor.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::{Backprop, Method};
use crate::policy::{End, Plan};

/// The method as users name it.
pub(super) const METHOD: Method = Method {
    name: "refl",
    title: "one late step trains, its predicted image is scored",
    guidance_scale: 1.0,
    eta: 1.0,
    build: |_| Box::new(Refl),
    ..Method::BACKPROP
};

/// One of the last quarter of the steps trains.
pub struct Refl;

impl Backprop for Refl {
    fn plan(&self, steps: usize, random: &mut ChaCha8Rng) -> Plan {
        let first = ((0.75 * steps as f64).round() as usize).min(steps.saturating_sub(1));
        let step = random.random_range(first..steps.max(1));
        Plan { cut: step, stop: step + 1, trained: vec![step], detach_inputs: false, end: End::Original }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::noise::{Stream, stream};

    #[test]
    fn of_40_steps_30_to_39_train() {
        let steps: BTreeSet<usize> =
            (0..300).map(|seed| Refl.plan(40, &mut stream(seed, Stream::Plan(0))).cut).collect();
        assert_eq!(steps, (30..40).collect());
        assert_eq!(Refl.plan(1, &mut stream(0, Stream::Plan(0))).trained, [0]);
    }
}
