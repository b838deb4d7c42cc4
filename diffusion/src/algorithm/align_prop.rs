//! AlignProp: "Aligning Text-to-Image Diffusion Models with Reward Backpropagation", Prabhudesai et al., 2023,
//! <https://arxiv.org/abs/2310.03739>, section 4: the gradient is truncated at a random step.
//!
//! Four published versions differ. The first code and TRL draw the truncation again in every step and detach predictions. The
//! authors' later code draws one truncation point per batch (normal, mean 42 and deviation 5 of 50 steps) and detaches
//! predictions. OneTrainer detaches the latents at one random step. Here: one point per batch from that normal, scaled to the
//! steps there are and drawn again until it is one of them. The latents are detached before it, so that no graph is built in
//! front of it. As the authors have it: 50 steps, eta 1, guidance 5, LoRA of rank 4, learning rate 1e-3. At this rate 20 to 25
//! training steps are enough (more collapse).

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::{Backprop, Method};
use crate::policy::{End, Plan};

/// The method as users name it.
pub(super) const METHOD: Method = Method {
    name: "align-prop",
    title: "all steps from a random one on train",
    guidance_scale: 5.0,
    eta: 1.0,
    build: |_| Box::new(AlignProp),
    ..Method::BACKPROP
};

/// All steps from a random one on train.
pub struct AlignProp;

impl Backprop for AlignProp {
    fn plan(&self, steps: usize, random: &mut ChaCha8Rng) -> Plan {
        let scale = steps as f64 / 50.0;
        let mut draw = || -> f64 {
            let standard: f64 = StandardNormal.sample(random);
            (42.0 + 5.0 * standard) * scale
        };
        let cut = loop {
            let drawn = draw();
            if (0.0..steps as f64).contains(&drawn) {
                break drawn as usize;
            }
        };
        Plan { cut, stop: steps, trained: (cut..steps).collect(), detach_inputs: false, end: End::Latents }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{Stream, stream};

    #[test]
    fn truncation_is_near_42_of_50() {
        let cuts: Vec<usize> =
            (0..400).map(|seed| AlignProp.plan(50, &mut stream(seed, Stream::Plan(0))).cut).collect();
        let mean = cuts.iter().sum::<usize>() as f64 / 400.0;
        // The part of the normal above 50 is cut off, and whole steps are half a step below.
        assert!((mean - 41.0).abs() < 1.0, "{mean}");
        assert!(cuts.iter().all(|cut| *cut < 50));
        assert_eq!(AlignProp.plan(1, &mut stream(0, Stream::Plan(0))).trained, [0]);
    }
}
