//! The three losses on unit embeddings, one file each.

#[cfg(feature = "torch")]
pub mod bradley_terry;
#[cfg(feature = "torch")]
pub mod info_nce;
#[cfg(feature = "torch")]
pub mod triplet;

#[cfg(feature = "torch")]
use tch::Tensor;

use crate::closed_set;

closed_set! {
    /// Which loss is trained (`--loss-name`).
    pub enum LossName: "loss" {
        /// The original's: `triplet`.
        Triplet = "triplet",
        /// `bradley_terry`.
        BradleyTerry = "bradley-terry",
        /// `info_nce`.
        InfoNce = "info-nce",
    }
}

/// One batch of unit embeddings.
#[cfg(feature = "torch")]
pub struct Embeddings {
    /// Prompts, `[B, E]`.
    pub text: Tensor,
    /// Remixed images, `[B, E]`.
    pub positive: Tensor,
    /// Images nobody remixed, `[B, E]`.
    pub negative: Tensor,
    /// Which prompt a row has, `[B]` int64: equal prompts have equal numbers.
    pub prompt: Tensor,
}

#[cfg(feature = "torch")]
impl Embeddings {
    /// No rows, of `width` numbers each.
    pub fn none(width: i64, device: tch::Device) -> Self {
        let rows = || Tensor::zeros([0, width], (tch::Kind::Float, device));
        Self {
            text: rows(),
            positive: rows(),
            negative: rows(),
            prompt: Tensor::zeros([0], (tch::Kind::Int64, device)),
        }
    }
}

#[cfg(feature = "torch")]
impl LossName {
    /// The mean loss over the batch, a scalar. `scale`: `exp(logit_scale)`; `margin`: of the triplet loss.
    pub fn mean(self, embeddings: &Embeddings, scale: &Tensor, margin: f64) -> Tensor {
        match self {
            Self::Triplet => triplet::triplet(embeddings, margin),
            Self::BradleyTerry => bradley_terry::bradley_terry(embeddings, scale),
            Self::InfoNce => info_nce::info_nce(embeddings, scale),
        }
    }

    /// Whether a row's loss depends on the other rows, so that micro-batches must see the whole effective batch.
    pub fn spans_batch(self) -> bool {
        self == Self::InfoNce
    }
}
