//! GRPO on DDIM: "Flow-GRPO", Liu et al., 2025, <https://arxiv.org/abs/2505.05470>, and "DanceGRPO", Xue et al., 2025,
//! <https://arxiv.org/abs/2505.07818>. It is the clipped policy gradient with images judged by the others of their group.
//!
//! Published: groups of 12 to 24 images a prompt, of the same noise (DanceGRPO) or each its own (Flow-GRPO). The clip range is
//! 1e-4, advantages are clipped at 5, the last step is left out, and the unconditional branch has no gradient. Flow-GRPO adds a
//! divergence from the base model with factor 0.01 to 0.04. DanceGRPO, which trained SD 1.4 with eta 1 and guidance 5, has none.

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
