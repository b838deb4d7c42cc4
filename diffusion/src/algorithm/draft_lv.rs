//! DRaFT-LV: Clark et al., 2023, <https://arxiv.org/abs/2309.17400>, section 3.2 and algorithm 2. The last step trains on the
//! sampled image and on n copies of it, noised again to the last level. This lowers the variance of the gradient.
//!
//! As published n = 2, the rest as DRaFT-1. The copies are made in latent space. A community version decodes and encodes again,
//! which is not the same and costs two passes of the VAE.

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::{Backprop, DraftK, Method};
use crate::{
    noise::Stream,
    policy::{Batch, Plan, Policy, Unrolled},
};

/// The method as users name it.
pub(super) const METHOD: Method = Method {
    name: "draft-lv",
    title: "the last step trains, on an image and noisy copies of it",
    reads: &["copies"],
    build: |settings| Box::new(DraftLv { copies: settings.copies }),
    ..Method::BACKPROP
};

/// The last step trains, on 1 + `copies` noisy versions of the image.
pub struct DraftLv {
    /// n.
    pub copies: usize,
}

impl Backprop for DraftLv {
    fn plan(&self, steps: usize, random: &mut ChaCha8Rng) -> Plan {
        DraftK { k: 1 }.plan(steps, random)
    }

    fn copies(&self) -> usize {
        self.copies + 1
    }

    fn images(&self, policy: &Policy, start: &Tensor, plan: &Plan, batch: &Batch, anchored: bool) -> Unrolled {
        let mut all = policy.unroll(start, plan, batch, anchored);
        let image = all.latents[0].detach();
        let level = policy.level(plan.cut);
        for copy in 0..self.copies {
            let noisy = level.add_noise(&image, &batch.noise(Stream::Renoise(copy)));
            let more = policy.unroll(&noisy, plan, batch, anchored);
            all.latents.extend(more.latents);
            all.anchor = all.anchor.zip(more.anchor).map(|(sum, more)| sum + more);
        }
        all.anchor = all.anchor.map(|sum| sum / all.latents.len() as f64);
        all
    }
}
