//! LAION's aesthetic predictor v2 (<https://github.com/christophschuhmann/improved-aesthetic-predictor>): how much people
//! like the looks of a picture, about 1 to 10, whatever the prompt.
//!
//! `sac+logos+ava1-l14-linearMSE.pth` is five linear layers with nothing but dropout between them. They are one affine map of the
//! unit image embedding of OpenAI's CLIP ViT-L/14, folded when it is loaded.

use tch::{Device, Kind, Tensor};

use super::{
    affine::Affine,
    clip::{ClipReward, Reading},
    name::RewardName,
    reward::{Reward, check},
};
use crate::{
    Result,
    weights::{Checkpoint, wrappers},
};

/// `w · unit(image) + b`.
pub struct Aesthetic {
    clip: ClipReward,
    head: Affine,
}

impl Aesthetic {
    /// Loads the head of `path` on a CLIP. `kind`: of the CLIP's weights and activations; the head is fp32.
    ///
    /// # Errors
    /// Weights cannot be read, or the head does not fit the CLIP.
    pub fn load(path: &str, clip: &Checkpoint, device: Device, kind: Kind) -> Result<Self> {
        let width = clip.config.embed_dim;
        let file = wrappers::open(path, &["layers.0.weight"])?;
        file.check(&Affine::parameters(&file, "", width), |_| false).map_err(|error| {
            error.hint(format!(
                "want LAION's sac+logos+ava1-l14-linearMSE.pth, for a CLIP ViT-L/14 of 768 channels; --clip gives one of {width}"
            ))
        })?;
        let head = Affine::read(&file, "", width, device)?;
        Ok(Self { clip: ClipReward::new(RewardName::Aesthetic, clip, Reading::default(), device, kind)?, head })
    }
}

impl Reward for Aesthetic {
    fn name(&self) -> &str {
        RewardName::Aesthetic.as_str()
    }

    /// Prompts are counted, not read.
    fn score(&self, pixels: &Tensor, prompts: &[&str]) -> Result<Tensor> {
        check(pixels, prompts)?;
        Ok(self.head.forward(&self.clip.image_embeddings(pixels)))
    }

    fn differentiable(&self) -> bool {
        true
    }

    fn set_checkpointing(&mut self, on: bool) {
        self.clip.set_checkpointing(on);
    }

    fn embeddings(&self, pixels: &Tensor) -> Option<Tensor> {
        self.clip.embeddings(pixels)
    }

    fn weights(&self) -> Vec<Tensor> {
        self.clip.weights()
    }
}
