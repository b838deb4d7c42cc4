//! DRaFT-K: "Directly Fine-Tuning Diffusion Models on Differentiable Rewards", Clark et al., 2023,
//! <https://arxiv.org/abs/2309.17400>, section 3.2: the gradient is truncated to the last K sampling steps.
//!
//! As published: 50 steps of DDIM (eta 0), guidance 7.5, gradients through both branches, LoRA of rank 8 or 32, AdamW at 4e-4
//! or 2e-4; K = 1 gave the best reward for the compute. NeMo-Aligner's DRaFT+ adds the ε-anchor with coefficient 1.

use rand_chacha::ChaCha8Rng;

use super::{Backprop, Method};
use crate::policy::{End, Plan};

/// The method as users name it.
pub(super) const METHOD: Method = Method {
    name: "draft-k",
    title: "the last K sampling steps train",
    reads: &["truncation_steps"],
    build: |settings| Box::new(DraftK { k: settings.truncation_steps.unwrap_or(1) }),
    ..Method::BACKPROP
};

/// The last `k` of the sampling steps train; `k` = steps is the whole gradient.
pub struct DraftK {
    /// K.
    pub k: usize,
}

impl Backprop for DraftK {
    fn plan(&self, steps: usize, _: &mut ChaCha8Rng) -> Plan {
        let cut = steps.saturating_sub(self.k);
        Plan { cut, stop: steps, trained: (cut..steps).collect(), detach_inputs: false, end: End::Latents }
    }
}
