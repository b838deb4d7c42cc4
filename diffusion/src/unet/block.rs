//! The levels of the UNet, with diffusers' names: `CrossAttnDownBlock2D`, `DownBlock2D`, `UNetMidBlock2DCrossAttn`,
//! `CrossAttnUpBlock2D`, `UpBlock2D`. Where a level has no transformers, `attentions` is empty.

use tch::Tensor;

use super::transformer::{Context, Transformer};
use crate::{
    layer::{Conv2d, Handle},
    residual::{ResidualBlock, enlarged},
};

/// A level on the way down.
#[derive(Debug)]
pub(super) struct DownBlock {
    pub(super) resnets: Vec<ResidualBlock>,
    pub(super) attentions: Vec<Transformer>,
    pub(super) downsampler: Option<Conv2d>,
}

/// The coarsest level.
#[derive(Debug)]
pub(super) struct MidBlock {
    pub(super) resnets: [ResidualBlock; 2],
    pub(super) attention: Transformer,
}

/// A level on the way up.
#[derive(Debug)]
pub(super) struct UpBlock {
    pub(super) resnets: Vec<ResidualBlock>,
    pub(super) attentions: Vec<Transformer>,
    pub(super) upsampler: Option<Conv2d>,
}

impl Handle for DownBlock {
    fn handle(&self) -> Self {
        Self {
            resnets: self.resnets.handle(),
            attentions: self.attentions.handle(),
            downsampler: self.downsampler.handle(),
        }
    }
}

impl Handle for MidBlock {
    fn handle(&self) -> Self {
        let [first, second] = &self.resnets;
        Self { resnets: [first.handle(), second.handle()], attention: self.attention.handle() }
    }
}

impl Handle for UpBlock {
    fn handle(&self) -> Self {
        Self {
            resnets: self.resnets.handle(),
            attentions: self.attentions.handle(),
            upsampler: self.upsampler.handle(),
        }
    }
}

impl DownBlock {
    /// `x`: `[B, in, H, W]`; `time`: `[B, width]`. Gives what goes further down, and adds what the way up needs to `skips`.
    pub(super) fn forward(&self, x: &Tensor, time: &Tensor, context: &Context, skips: &mut Vec<Tensor>) -> Tensor {
        let mut x = x.shallow_clone();
        for (index, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(&x, Some(time));
            if let Some(attention) = self.attentions.get(index) {
                x = attention.forward(&x, context);
            }
            skips.push(x.shallow_clone());
        }
        if let Some(downsampler) = &self.downsampler {
            x = downsampler.forward(&x);
            skips.push(x.shallow_clone());
        }
        x
    }
}

impl MidBlock {
    /// `x`: `[B, C, H, W]`; gives the same shape.
    pub(super) fn forward(&self, x: &Tensor, time: &Tensor, context: &Context) -> Tensor {
        let x = self.resnets[0].forward(x, Some(time));
        let x = self.attention.forward(&x, context);
        self.resnets[1].forward(&x, Some(time))
    }
}

impl UpBlock {
    /// `x`: `[B, previous, H, W]`; `skips`: one for each residual block, the one it takes first last; `size`: height and
    /// width of what comes next, where this level enlarges.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        time: &Tensor,
        context: &Context,
        skips: Vec<Tensor>,
        size: [i64; 2],
    ) -> Tensor {
        let mut x = x.shallow_clone();
        for (index, (resnet, skip)) in self.resnets.iter().zip(skips.into_iter().rev()).enumerate() {
            x = resnet.forward(&Tensor::cat(&[x, skip], 1), Some(time));
            if let Some(attention) = self.attentions.get(index) {
                x = attention.forward(&x, context);
            }
        }
        match &self.upsampler {
            Some(upsampler) => upsampler.forward(&enlarged(&x, size)),
            None => x,
        }
    }
}
