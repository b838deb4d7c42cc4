//! The UNet of Stable Diffusion 1.x and 2.x (Rombach et al., 2022, <https://arxiv.org/abs/2112.10752>), constructed from
//! weights under the key names of diffusers' `UNet2DConditionModel`.

mod block;
mod build;
mod time;
mod transformer;

use tch::{Kind, Tensor};

use crate::{
    conditioning::Conditioning,
    config::UnetConfig,
    layer::{Conv2d, GroupNorm},
    residual::side,
    weights::Parameters,
};
use block::{Call, DownBlock, MidBlock, UpBlock};
use time::TimeEmbedding;
pub use transformer::Context;

/// A UNet: what it predicts (the noise, or `v`) is the scheduler's to know.
#[derive(Debug)]
pub struct Unet {
    /// The architecture.
    pub config: UnetConfig,
    /// Handles on every weight and adapter, and the adapters' switch.
    pub parameters: Parameters,
    /// Keep only the input of each block for the backward pass, and compute the block again there.
    pub checkpointing: bool,
    time: TimeEmbedding,
    conv_in: Conv2d,
    down: Vec<DownBlock>,
    mid: Option<MidBlock>,
    up: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Unet {
    /// Prepares prompts for many calls: each cross-attention's keys and values are computed once. Not for training, and only
    /// as long as weights and adapters stay as they are.
    pub fn context(&self, prompts: &Conditioning) -> Context {
        let mut context = Context::new(prompts.hidden.to_kind(self.parameters.kind));
        let down = self.down.iter().flat_map(|block| &block.attentions);
        let up = self.up.iter().flat_map(|block| &block.attentions);
        let mid = self.mid.iter().map(|block| &block.attention);
        for attention in down.chain(mid).chain(up) {
            attention.project(&mut context);
        }
        context
    }

    /// What the model predicts for `latents` at `timesteps`.
    ///
    /// `latents`: `[B, 4, h, w]`; `timesteps`: `[B]`, int64 or float; `prompts`: B of them. Gives `[B, 4, h, w]` in fp32.
    pub fn forward(&self, latents: &Tensor, timesteps: &Tensor, prompts: &Conditioning) -> Tensor {
        self.forward_with(latents, timesteps, &Context::new(prompts.hidden.to_kind(self.parameters.kind)))
    }

    /// As [`Unet::forward`], for prompts prepared by [`Unet::context`].
    pub fn forward_with(&self, latents: &Tensor, timesteps: &Tensor, context: &Context) -> Tensor {
        let kind = self.parameters.kind;
        let time = self.time.forward(timesteps, kind);
        let recomputed = self.checkpointing.then(|| {
            // The time embedding's own layers get their gradient through `time`, once.
            let trained =
                self.parameters.trained().into_iter().filter(|(name, _)| !name.starts_with("time_embedding."));
            trained.map(|(_, tensor)| tensor).chain([time.shallow_clone()]).collect()
        });
        let call = Call { time, context, recomputed };
        let mut x = self.conv_in.forward(&latents.to_kind(kind));
        let mut skips = vec![x.shallow_clone()];
        for block in &self.down {
            x = block.forward(&x, &call, &mut skips);
        }
        if let Some(mid) = &self.mid {
            x = mid.forward(&x, &call);
        }
        for block in &self.up {
            let own = skips.split_off(skips.len().saturating_sub(block.resnets.len()));
            let size = skips.last().map_or(side(&x), side);
            x = block.forward(&x, &call, own, size);
        }
        self.conv_out.forward(&self.norm_out.forward_silu(&x)).to_kind(Kind::Float)
    }
}
