//! The levels of the UNet, with diffusers' names: `CrossAttnDownBlock2D`, `DownBlock2D`, `UNetMidBlock2DCrossAttn`,
//! `CrossAttnUpBlock2D`, `UpBlock2D`. Where a level has no transformers, `attentions` is empty.

use reward::native::checkpoint;
use tch::Tensor;

use super::transformer::{Context, Transformer};
use crate::{
    layer::{Conv2d, Handle},
    residual::{ResidualBlock, enlarged},
};

/// What every block of one call of the UNet gets.
pub(super) struct Call<'a> {
    /// SiLU of the time embedding, `[B, width]`.
    pub(super) time: Tensor,
    /// The prompts.
    pub(super) context: &'a Context,
    /// The tensors that train, where blocks keep only their input for the backward pass and compute the rest again.
    pub(super) recomputed: Option<Vec<Tensor>>,
}

/// A residual block and the transformer that may follow it. `x`: `[B, in, H, W]`; gives `[B, out, H, W]`.
fn stage(x: &Tensor, call: &Call, resnet: &ResidualBlock, attention: Option<&Transformer>) -> Tensor {
    let run =
        |x: &Tensor, resnet: &ResidualBlock, attention: Option<&Transformer>, time: &Tensor, context: &Context| {
            let x = resnet.forward(x, Some(time));
            attention.map_or_else(|| x.shallow_clone(), |attention| attention.forward(&x, context))
        };
    let Some(trained) = &call.recomputed else { return run(x, resnet, attention, &call.time, call.context) };
    let (resnet, attention) = (resnet.handle(), attention.map(Handle::handle));
    let (time, context) = (call.time.handle(), call.context.handle());
    checkpoint(x, trained, move |x| run(x, &resnet, attention.as_ref(), &time, &context))
}

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
    /// `x`: `[B, in, H, W]`. Gives what goes further down, and adds what the way up needs to `skips`.
    pub(super) fn forward(&self, x: &Tensor, call: &Call, skips: &mut Vec<Tensor>) -> Tensor {
        let mut x = x.shallow_clone();
        for (index, resnet) in self.resnets.iter().enumerate() {
            x = stage(&x, call, resnet, self.attentions.get(index));
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
    pub(super) fn forward(&self, x: &Tensor, call: &Call) -> Tensor {
        let x = stage(x, call, &self.resnets[0], Some(&self.attention));
        stage(&x, call, &self.resnets[1], None)
    }
}

impl UpBlock {
    /// `x`: `[B, previous, H, W]`; `skips`: one for each residual block, the one it takes first last; `size`: height and
    /// width of what comes next, where this level enlarges.
    pub(super) fn forward(&self, x: &Tensor, call: &Call, skips: Vec<Tensor>, size: [i64; 2]) -> Tensor {
        let mut x = x.shallow_clone();
        for (index, (resnet, skip)) in self.resnets.iter().zip(skips.into_iter().rev()).enumerate() {
            x = stage(&Tensor::cat(&[x, skip], 1), call, resnet, self.attentions.get(index));
        }
        match &self.upsampler {
            Some(upsampler) => upsampler.forward(&enlarged(&x, size)),
            None => x,
        }
    }
}
