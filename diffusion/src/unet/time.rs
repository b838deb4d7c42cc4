//! What the UNet knows of the time step: sinusoids (Vaswani et al., 2017, section 3.5) and two layers on them.

use tch::{Kind, Tensor};

use crate::{
    config::UnetConfig,
    layer::{Handle, Linear},
    weights::Weights,
};

/// Sinusoids of the time step, then a two-layer network.
#[derive(Debug)]
pub(super) struct TimeEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    channels: i64,
    flip_sin_to_cos: bool,
    freq_shift: f64,
}

impl Handle for TimeEmbedding {
    fn handle(&self) -> Self {
        Self { linear_1: self.linear_1.handle(), linear_2: self.linear_2.handle(), ..*self }
    }
}

impl TimeEmbedding {
    pub(super) fn new(weights: &mut Weights, config: &UnetConfig) -> Self {
        let (channels, width) = (config.block_out_channels[0], Self::width(config));
        Self {
            linear_1: weights.linear("time_embedding.linear_1", channels, width, true),
            linear_2: weights.linear("time_embedding.linear_2", width, width, true),
            channels,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        }
    }

    /// Width of the embedding.
    pub(super) fn width(config: &UnetConfig) -> i64 {
        4 * config.block_out_channels[0]
    }

    /// `timesteps`: `[B]`; gives SiLU of the embedding, `[B, width]`, in `kind`: every block uses it so.
    pub(super) fn forward(&self, timesteps: &Tensor, kind: Kind) -> Tensor {
        let embedding = self.linear_1.forward(&self.sinusoids(timesteps).to_kind(kind)).silu();
        self.linear_2.forward(&embedding).silu()
    }

    /// `[B]` to `[B, channels]`, fp32: frequencies from 1 down to 1/10000.
    fn sinusoids(&self, timesteps: &Tensor) -> Tensor {
        let half = self.channels.div_euclid(2);
        let exponents = Tensor::arange(half, (Kind::Float, timesteps.device())) * -(10_000_f64.ln())
            / (half as f64 - self.freq_shift);
        let angles = timesteps.to_kind(Kind::Float).unsqueeze(1) * exponents.exp().unsqueeze(0);
        let (sines, cosines) = (angles.sin(), angles.cos());
        let parts = if self.flip_sin_to_cos { [cosines, sines] } else { [sines, cosines] };
        Tensor::cat(&parts, 1).constant_pad_nd([0, self.channels % 2])
    }
}
