//! GRPO on DDIM: "Flow-GRPO", Liu et al., 2025, <https://arxiv.org/abs/2505.05470>, and "DanceGRPO", Xue et al., 2025,
//! <https://arxiv.org/abs/2505.07818>: the clipped policy gradient with images judged by the others of their group.
//!
//! Published: groups of 12 to 24 images a prompt, of the same noise (DanceGRPO) or each its own (Flow-GRPO), clip range 1e-4,
//! advantages clipped at 5, the last step left out, the unconditional branch without gradient, a divergence from the base model
//! with factor 0.01 to 0.04 (Flow-GRPO) or none (DanceGRPO, which trained SD 1.4 with eta 1 and guidance 5).

use super::{
    Method, RewardUse, Samplers,
    policy_gradient::{Anchor, Judge, PolicyGradient},
};

/// The method as users name it.
pub(super) const METHOD: Method = Method {
    name: "grpo",
    title: "policy gradient, images judged by the others of their group",
    reward: RewardUse::Score,
    grouped: true,
    samplers: Samplers::Stochastic,
    guidance_scale: 5.0,
    eta: 1.0,
    negative_branch_gradient: false,
    kl: 0.01,
    reads: &[
        "inner_epochs",
        "minibatches",
        "clip_range",
        "advantage_clip",
        "kl",
        "same_noise",
        "timestep_fraction",
        "deviation",
        "reward_combination",
    ],
    build: |settings| {
        Box::new(PolicyGradient {
            judge: Judge::Groups {
                size: settings.group,
                deviation: settings.deviation,
                combined: settings.combine_groups,
            },
            anchor: Anchor::Divergence(settings.kl),
            drop_last: true,
            settings: *settings,
        })
    },
    ..Method::BACKPROP
};
