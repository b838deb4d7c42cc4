//! The three losses on unit embeddings, one file each.

pub mod bradley_terry;
pub mod info_nce;
pub mod triplet;

use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Which loss is trained (`--loss-name`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossName {
    /// The original's: [`triplet`].
    Triplet,
    /// [`bradley_terry`].
    BradleyTerry,
    /// [`info_nce`].
    InfoNce,
}

/// One batch of unit embeddings.
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
