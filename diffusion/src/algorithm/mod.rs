//! The ways to fine-tune against a differentiable reward, one file each. All of them sample by DDIM and differ in which steps
//! train and where the image comes from; [`Objective`] turns images into a loss.

mod align_prop;
pub mod denoising;
mod draft_k;
mod draft_lv;
mod drtune;
mod objective;
mod refl;

use std::{fmt, str::FromStr};

use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use crate::{
    Error, Result,
    policy::{Batch, Plan, Policy, Unrolled},
};

pub use align_prop::AlignProp;
pub use draft_k::DraftK;
pub use draft_lv::DraftLv;
pub use drtune::DrTune;
pub(crate) use objective::numbers;
pub use objective::{Loss, Objective, Scale, Shaping, Weighted};
pub use refl::Refl;

/// A method that follows the gradient of the reward.
pub trait Algorithm {
    /// Which of `steps` sampling steps run and train in one optimizer step; `random` is this step's own stream.
    fn plan(&self, steps: usize, random: &mut ChaCha8Rng) -> Plan;

    /// The latents that training starts from, without a graph.
    fn rollout(&self, policy: &Policy, plan: &Plan, batch: &Batch) -> Tensor {
        policy.roll(&batch.noise("latents"), 0..plan.cut, batch)
    }

    /// The latents of images with a graph, from what [`Algorithm::rollout`] gave. `anchored`: also the distance to the base.
    fn images(&self, policy: &Policy, start: &Tensor, plan: &Plan, batch: &Batch, anchored: bool) -> Unrolled {
        policy.unroll(start, plan, batch, anchored)
    }

    /// The mean loss over a micro-batch, from what [`Algorithm::rollout`] gave.
    ///
    /// # Errors
    /// A reward fails.
    fn loss(&self, policy: &Policy, start: &Tensor, plan: &Plan, batch: &Batch, objective: &Objective) -> Result<Loss> {
        let unrolled = self.images(policy, start, plan, batch, objective.anchor > 0.0);
        objective.loss(&unrolled, batch)
    }
}

/// The methods by the names they have in a config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlgorithmName {
    /// `refl`.
    Refl,
    /// `draft-k`.
    DraftK,
    /// `draft-lv`.
    DraftLv,
    /// `drtune`.
    DrTune,
    /// `align-prop`.
    AlignProp,
    /// `denoising`: no reward, but the supervised loss.
    Denoising,
}

impl AlgorithmName {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Refl, Self::DraftK, Self::DraftLv, Self::DrTune, Self::AlignProp, Self::Denoising];

    /// Its name in a config.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refl => "refl",
            Self::DraftK => "draft-k",
            Self::DraftLv => "draft-lv",
            Self::DrTune => "drtune",
            Self::AlignProp => "align-prop",
            Self::Denoising => "denoising",
        }
    }
}

impl fmt::Display for AlgorithmName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for AlgorithmName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            let error = Error::usage(format!("unknown algorithm `{text}`, want one of {}", names.join(", ")));
            match reward::error::did_you_mean(text, names) {
                Some(hint) => error.hint(hint),
                None => error,
            }
        })
    }
}
