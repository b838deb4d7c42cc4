//! LoRA (Hu et al., 2021, <https://arxiv.org/abs/2106.09685>, equation 3: `W + alpha/r · B A`) as files: read strictly from diffusers,
//! PEFT and kohya files, merged into weights and taken out again, written in both forms.

mod fresh;
mod keys;
mod merge;
mod read;
mod save;

use std::collections::BTreeMap;

use tch::Tensor;

use crate::{layer::Adapter, weights::Parameters};

pub use fresh::fresh;
pub(crate) use merge::delta;
pub use merge::{Merged, merge};
pub(crate) use read::locate;
pub use save::{diffusers, kohya};

/// The layers of a model that an adapter may be for: shapes of their weights by layer name, `[out, in]` or `[out, in, k, k]`.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// Of the UNet, by diffusers' names.
    pub unet: BTreeMap<String, Vec<i64>>,
    /// Of the text encoder, by transformers' names with `text_model.`.
    pub text: BTreeMap<String, Vec<i64>>,
}

impl Layers {
    /// Those of built models: every weight that is a matrix or a kernel, embeddings apart.
    pub fn of(unet: &Parameters, text: &Parameters) -> Self {
        Self { unet: weights(&unet.tensors), text: weights(&text.tensors) }
    }
}

fn weights(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Vec<i64>> {
    let layers = tensors.iter().filter_map(|(key, tensor)| Some((key.strip_suffix(".weight")?, tensor.size())));
    let adaptable = layers.filter(|(name, shape)| shape.len() >= 2 && !name.contains(".embeddings."));
    adaptable.map(|(name, shape)| (name.to_owned(), shape)).collect()
}

/// Which model an adapter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Model {
    Unet,
    Text,
}

/// The adapters of one file, by layer name; every one has its layer, with fitting shapes.
#[derive(Debug, Default)]
pub struct Lora {
    /// For the UNet.
    pub unet: BTreeMap<String, Adapter>,
    /// For the text encoder.
    pub text: BTreeMap<String, Adapter>,
}
