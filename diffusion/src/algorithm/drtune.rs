//! DRTune: "Deep Reward Supervisions for Tuning Text-to-Image Diffusion Models", Wu et al., 2024,
//! <https://arxiv.org/abs/2405.00760>, section 4 and algorithm 1. The UNet's input is detached in every step. So gradients reach
//! each trained prediction, early ones included, through the sampler's linear steps alone. K steps train, and sampling stops
//! early at random.
//!
//! As in FlowBP's re-implementation (the authors' code is not public): K = 3, learning rate 1e-5, relu(c − r), guidance 3.5 with
//! the unconditional branch detached. Which steps train is our choice: equally spaced over the steps that run, from a random
//! start.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::{Backprop, Method};
use crate::policy::{End, Plan};

/// The method as users name it.
pub(super) const METHOD: Method = Method {
    name: "drtune",
    title: "K steps train, the UNet's input detached",
    guidance_scale: 3.5,
    negative_branch_gradient: false,
    reads: &["truncation_steps"],
    build: |settings| Box::new(DrTune { k: settings.truncation_steps.unwrap_or(3).min(settings.sample_steps) }),
    ..Method::BACKPROP
};

/// `k` equally spaced steps train.
pub struct DrTune {
    /// K.
    pub k: usize,
}

impl Backprop for DrTune {
    /// stop = T − U{1..round(0.4 T)}, stride = stop / K, start = U{0..stop − (K − 1) · stride − 1}.
    fn plan(&self, steps: usize, random: &mut ChaCha8Rng) -> Plan {
        let most = ((0.4 * steps as f64).round() as usize).max(1);
        let stop = steps.saturating_sub(random.random_range(1..=most)).max(1);
        let k = self.k.clamp(1, stop);
        let stride = stop.div_euclid(k);
        let start = random.random_range(0..stop - (k - 1) * stride);
        let trained = (0..k).map(|step| start + step * stride).collect();
        Plan { cut: start, stop, trained, detach_inputs: true, end: End::Original }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{Stream, stream};

    #[test]
    fn plans_stay_in_range_and_reach_every_step() {
        let mut reached = [false; 20];
        for step in 0..500 {
            let plan = DrTune { k: 3 }.plan(20, &mut stream(step, Stream::Plan(0)));
            assert!((12..=19).contains(&plan.stop), "{plan:?}");
            assert_eq!(plan.trained.len(), 3);
            assert_eq!(plan.trained[2] - plan.trained[1], plan.stop.div_euclid(3));
            assert!(plan.trained[2] < plan.stop && plan.cut == plan.trained[0]);
            plan.trained.iter().for_each(|step| reached[*step] = true);
        }
        assert!(reached[..19].iter().all(|reached| *reached) && !reached[19], "{reached:?}");
        // One sampling step, and a K beyond the steps there are.
        assert_eq!(DrTune { k: 3 }.plan(2, &mut stream(0, Stream::Plan(0))).trained, [0]);
    }
}
