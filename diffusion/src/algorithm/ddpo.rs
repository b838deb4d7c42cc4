//! DDPO: "Training Diffusion Models with Reinforcement Learning", Black et al., 2023, <https://arxiv.org/abs/2305.13301>,
//! section 4.3 (DDPO-IS): the clipped policy gradient over whole trajectories.
//!
//! As ddpo-pytorch has it: 50 steps of DDIM with eta 1, guidance 5 with gradients through both branches. The clip range is 1e-4,
//! on a log-probability that is a mean and not a sum. Advantages are by each prompt's last 32 rewards, clipped at 5. The LoRA has
//! rank 4 and learning rate 3e-4; a round has 256 images and two updates. `kl` adds DPOK's distance from the base model (Fan et
//! al., 2023, <https://arxiv.org/abs/2305.16381>).

use super::{
    Method, RewardUse, Samplers,
    policy_gradient::{Anchor, Judge, PolicyGradient},
};
use crate::advantage::PromptStatistics;

/// The method as users name it.
pub(super) const METHOD: Method = Method {
    name: "ddpo",
    title: "policy gradient, images judged by those of the same prompt so far",
    reward: RewardUse::Score,
    samplers: Samplers::Stochastic,
    guidance_scale: 5.0,
    eta: 1.0,
    reads: &[
        "inner_epochs",
        "minibatches",
        "clip_range",
        "advantage_clip",
        "kl",
        "buffer_size",
        "buffer_min_count",
        "timestep_fraction",
    ],
    build: |settings| {
        let statistics = PromptStatistics::new(settings.prompts, settings.buffer_size, settings.buffer_min_count);
        Box::new(PolicyGradient {
            judge: Judge::Prompts(statistics),
            anchor: Anchor::Epsilon(settings.kl),
            drop_last: false,
            settings: *settings,
        })
    },
    ..Method::BACKPROP
};
