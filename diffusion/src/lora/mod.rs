//! LoRA (Hu et al., 2021, <https://arxiv.org/abs/2106.09685>, equation 3: `W + alpha/r · B A`) as files. They are read strictly
//! from the files of diffusers, PEFT, kohya, ComfyUI and OneTrainer, several as their sum. They are merged into weights and taken
//! out again, and written in diffusers' and kohya's form.

mod base;
mod fresh;
mod keys;
mod kinds;
mod locate;
mod merge;
mod names;
mod read;
mod save;
mod scaling;
mod spec;

use std::collections::BTreeMap;

use tch::Tensor;

use crate::{layer::Adapter, weights::Parameters};

pub use base::Base;
pub use fresh::fresh;
pub(crate) use locate::locate;
pub(crate) use merge::check;
pub(crate) use merge::delta;
pub use merge::{Merged, merge};
pub use read::LoraFile;
pub use save::{diffusers, kohya};
pub use spec::LoraSpec;
pub(crate) use spec::one_or_several;

/// The layers of a model that an adapter may be for: shapes of their weights by layer name, `[out, in]` or `[out, in, k, k]`.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// Layers of the UNet, by diffusers' names.
    pub unet: BTreeMap<String, Vec<i64>>,
    /// Layers of the text encoder, by transformers' names with `text_model.`.
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

/// The adapters of one file, or the sum of several, by layer name; every one has its layer, with fitting shapes.
#[derive(Debug, Default)]
pub struct Lora {
    /// For the UNet.
    pub unet: BTreeMap<String, Adapter>,
    /// For the text encoder.
    pub text: BTreeMap<String, Adapter>,
}

impl Lora {
    /// One update that is the sum of both. A layer that both have gets an adapter of the sum of their ranks, exact and in the
    /// form of any other.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { unet: sum(self.unet, other.unet), text: sum(self.text, other.text) }
    }
}

fn sum(mut left: BTreeMap<String, Adapter>, right: BTreeMap<String, Adapter>) -> BTreeMap<String, Adapter> {
    for (layer, b) in right {
        let joined = match left.remove(&layer) {
            None => b,
            Some(a) => Adapter {
                down: Tensor::cat(&[&a.down, &b.down], 0),
                up: Tensor::cat(&[&a.up * a.scale, &b.up * b.scale], 1),
                scale: 1.0,
            },
        };
        left.insert(layer, joined);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2·[1 2]ᵀ[3 4] + 0.5·[−2 0]ᵀ[1 1] = [[6 8] [12 16]] − [[1 1] [0 0]], in a shared layer; others stay.
    #[test]
    fn a_sum_adds_what_its_parts_add() {
        let adapter = |down: [f32; 2], up: [f32; 2], scale| Adapter {
            down: Tensor::from_slice(&down).view([1, 2]),
            up: Tensor::from_slice(&up).view([2, 1]),
            scale,
        };
        let of = |layers: Vec<(&str, Adapter)>| {
            let unet = layers.into_iter().map(|(name, adapter)| (name.to_owned(), adapter)).collect();
            Lora { unet, text: BTreeMap::new() }
        };
        let left =
            of(vec![("shared", adapter([3.0, 4.0], [1.0, 2.0], 2.0)), ("left", adapter([1.0, 1.0], [1.0, 1.0], 3.0))]);
        let right = of(vec![("shared", adapter([1.0, 1.0], [-2.0, 0.0], 0.5))]);
        let sum = left.plus(right);
        let values = |layer: &str| Vec::<f32>::try_from(delta(&sum.unet[layer]).view(-1)).unwrap();
        assert_eq!(values("shared"), [5.0, 7.0, 12.0, 16.0]);
        assert_eq!(values("left"), [3.0; 4]);
        assert_eq!(sum.unet["shared"].down.size(), [2, 2]);
    }
}
