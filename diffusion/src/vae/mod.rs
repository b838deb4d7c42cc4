//! The VAE of Stable Diffusion 1.x and 2.x (Rombach et al., 2022, section 3.1), constructed from weights under the key names
//! of diffusers' `AutoencoderKL`.

mod level;
mod tiles;

use std::borrow::Cow;

use reward::native::checkpoint;
use tch::{Kind, Tensor};

use crate::{
    Result,
    config::VaeConfig,
    layer::{Conv2d, GroupNorm, Handle},
    residual::Norms,
    weights::{Parameters, Weights},
};
use level::{Level, Middle};
pub use tiles::DecodeOptions;

/// Epsilon of every GroupNorm: fixed in diffusers.
const NORM_EPS: f64 = 1e-6;

/// A variational autoencoder between pixels and latents.
#[derive(Debug)]
pub struct Vae {
    /// The architecture.
    pub config: VaeConfig,
    /// Handles on every weight.
    pub parameters: Parameters,
    /// Keep only the input of each level of the decoder for the backward pass, and compute the level again there. For a VAE
    /// that does not train.
    pub checkpointing: bool,
    encoder: Half,
    quant_conv: Conv2d,
    post_quant_conv: Conv2d,
    decoder: Half,
}

/// The encoder or the decoder.
#[derive(Debug)]
struct Half {
    conv_in: Conv2d,
    levels: Vec<Level>,
    middle: Middle,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Half {
    fn encoder(weights: &mut Weights, config: &VaeConfig) -> Self {
        let widths = &config.block_out_channels;
        let norms = Norms { groups: config.norm_num_groups, eps: NORM_EPS };
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let level = |weights: &mut Weights, level: usize| {
            let channels = [widths[level.saturating_sub(1)], widths[level]];
            Level::down(weights, level, channels, config.layers_per_block, level + 1 == widths.len(), norms)
        };
        Self {
            conv_in: weights.conv2d("encoder.conv_in", 3, first, 3, 1, 1),
            levels: (0..widths.len()).map(|index| level(weights, index)).collect(),
            middle: Middle::new(weights, "encoder.mid_block", last, norms),
            conv_norm_out: weights.group_norm("encoder.conv_norm_out", norms.groups, last, norms.eps),
            conv_out: weights.conv2d("encoder.conv_out", last, 2 * config.latent_channels, 3, 1, 1),
        }
    }

    fn decoder(weights: &mut Weights, config: &VaeConfig) -> Self {
        let widths: Vec<i64> = config.block_out_channels.iter().rev().copied().collect();
        let norms = Norms { groups: config.norm_num_groups, eps: NORM_EPS };
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let level = |weights: &mut Weights, level: usize| {
            let channels = [widths[level.saturating_sub(1)], widths[level]];
            Level::up(weights, level, channels, config.layers_per_block + 1, level + 1 == widths.len(), norms)
        };
        Self {
            conv_in: weights.conv2d("decoder.conv_in", config.latent_channels, first, 3, 1, 1),
            middle: Middle::new(weights, "decoder.mid_block", first, norms),
            levels: (0..widths.len()).map(|index| level(weights, index)).collect(),
            conv_norm_out: weights.group_norm("decoder.conv_norm_out", norms.groups, last, norms.eps),
            conv_out: weights.conv2d("decoder.conv_out", last, 3, 3, 1, 1),
        }
    }

    fn finish(&self, x: &Tensor) -> Tensor {
        self.conv_out.forward(&self.conv_norm_out.forward_silu(x))
    }
}

impl Vae {
    /// Takes every tensor of the architecture from `weights`; the attention's keys may be of diffusers before 0.15 (`query`,
    /// `key`, `value`, `proj_attn`).
    ///
    /// # Errors
    /// As [`Weights::finish`].
    pub fn new(config: &VaeConfig, weights: Weights) -> Result<Self> {
        let mut weights = weights.renamed(|key| current_key(key).into_owned());
        let latent = config.latent_channels;
        let (encoder, decoder) = (Half::encoder(&mut weights, config), Half::decoder(&mut weights, config));
        let quant_conv = weights.conv2d("quant_conv", 2 * latent, 2 * latent, 1, 1, 0);
        let post_quant_conv = weights.conv2d("post_quant_conv", latent, latent, 1, 1, 0);
        let parameters = weights.finish()?;
        let (config, checkpointing) = (config.clone(), false);
        Ok(Self { config, parameters, checkpointing, encoder, quant_conv, post_quant_conv, decoder })
    }

    /// The distribution of an image's latents.
    ///
    /// `pixels`: `[B, 3, H, W]` in -1..=1, sides divisible by [`VaeConfig::factor`]. Gives mean and logarithm of the variance
    /// (within -30..=20), each `[B, 4, h, w]` in fp32, not scaled.
    pub fn encode(&self, pixels: &Tensor) -> (Tensor, Tensor) {
        let encoder = &self.encoder;
        let mut x = encoder.conv_in.forward(&pixels.to_kind(self.parameters.kind));
        for level in &encoder.levels {
            x = level.forward(&x);
        }
        let moments = self.quant_conv.forward(&encoder.finish(&encoder.middle.forward(&x))).to_kind(Kind::Float);
        let parts = moments.chunk(2, 1);
        (parts[0].shallow_clone(), parts[1].clamp(-30.0, 20.0))
    }

    /// The image of `latents`: `[B, 4, h, w]`, already divided by the scaling factor. Gives `[B, 3, H, W]` in fp32, about
    /// -1..=1 and not clamped.
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        let decoder = &self.decoder;
        let x = self.post_quant_conv.forward(&latents.to_kind(self.parameters.kind));
        let mut x = decoder.conv_in.forward(&x);
        if self.checkpointing {
            let middle = decoder.middle.handle();
            x = checkpoint(&x, &[], move |x| middle.forward(x));
            for level in decoder.levels.handle() {
                x = checkpoint(&x, &[], move |x| level.forward(x));
            }
        } else {
            x = decoder.middle.forward(&x);
            for level in &decoder.levels {
                x = level.forward(&x);
            }
        }
        decoder.finish(&x).to_kind(Kind::Float)
    }
}

/// A key of the VAE as current diffusers writes it; before 0.15 its attention had other names.
pub fn current_key(key: &str) -> Cow<'_, str> {
    let renamed = [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];
    if let Some((place, layer)) = key.split_once(".attentions.0.") {
        for (old, new) in renamed {
            if let Some(part @ (".weight" | ".bias")) = layer.strip_prefix(old) {
                return format!("{place}.attentions.0.{new}{part}").into();
            }
        }
    }
    key.into()
}
