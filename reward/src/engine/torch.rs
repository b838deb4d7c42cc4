//! Scoring on libtorch, CPU or CUDA.

use tch::{Device, Kind, Tensor};

use super::Engine;
use crate::{
    Error, Result,
    clip::{
        config::ClipConfig,
        model::{Clip, Depth, unit},
        tokenizer::Tokens,
    },
    device::DeviceName,
    native::guarded,
    weights::Checkpoint,
};

/// A CLIP in fp32 without gradients.
pub(super) struct Torch {
    clip: Clip,
    label: String,
}

impl Torch {
    pub(super) fn load(checkpoint: &Checkpoint, device: DeviceName) -> Result<Self> {
        let clip = Clip::load(checkpoint, device.resolve(0)?, Kind::Float, |_| false)?;
        Ok(Self { clip, label: checkpoint.label() })
    }
}

impl Engine for Torch {
    fn config(&self) -> &ClipConfig {
        &self.clip.config
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn images(&self, pictures: &[&[u8]]) -> Result<Vec<Vec<f32>>> {
        rows(|| self.clip.image_suffix(&self.clip.pixels(pictures), Depth::Input))
    }

    fn texts(&self, prompts: &[&Tokens]) -> Result<Vec<Vec<f32>>> {
        let (ids, ends) = self.clip.token_ids(prompts);
        rows(|| self.clip.text_suffix(&ids, &ends, Depth::Input))
    }
}

/// Runs `embed` without a graph and gives the unit rows of its `[n, E]` answer.
fn rows(embed: impl FnOnce() -> Tensor) -> Result<Vec<Vec<f32>>> {
    let embedded = guarded(|| tch::no_grad(|| unit(&embed()).to_device(Device::Cpu))).map_err(|failure| {
        Error::data(format!("libtorch: {failure}")).hint("a smaller --batch-size needs less memory")
    })?;
    Vec::try_from(embedded).map_err(|error| Error::data("embeddings cannot be read back").caused_by(error))
}
