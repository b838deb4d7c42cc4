//! Builds a UNet from its weights.

use super::{
    Unet,
    block::{DownBlock, MidBlock, UpBlock},
    time::TimeEmbedding,
    transformer::{Shape, Transformer},
};
use crate::{
    Result,
    config::UnetConfig,
    residual::{Norms, ResidualBlock},
    weights::Weights,
};

/// What all levels are built with; counts the transformers.
struct Build<'a> {
    config: &'a UnetConfig,
    weights: Weights,
    transformers: usize,
}

impl Build<'_> {
    fn resnet(&mut self, prefix: &str, channels: [i64; 2]) -> ResidualBlock {
        let norms = Norms { groups: self.config.norm_num_groups, eps: self.config.norm_eps };
        ResidualBlock::new(&mut self.weights, prefix, channels, norms, Some(TimeEmbedding::width(self.config)))
    }

    fn transformer(&mut self, prefix: &str, level: usize) -> Transformer {
        let shape = Shape {
            channels: self.config.block_out_channels[level],
            heads: self.config.heads[level],
            context: self.config.cross_attention_dim,
            groups: self.config.norm_num_groups,
            linear_projection: self.config.use_linear_projection,
        };
        self.transformers += 1;
        Transformer::new(&mut self.weights, prefix, shape, self.transformers - 1)
    }

    fn down(&mut self, level: usize) -> DownBlock {
        let widths = &self.config.block_out_channels;
        let (before, width, layers) = (widths[level.saturating_sub(1)], widths[level], self.config.layers_per_block);
        let (attention, is_last) = (self.config.down_attention[level], level + 1 == widths.len());
        let prefix = format!("down_blocks.{level}");
        let inputs = |layer| if layer == 0 { before } else { width };
        DownBlock {
            resnets: (0..layers)
                .map(|layer| self.resnet(&format!("{prefix}.resnets.{layer}"), [inputs(layer), width]))
                .collect(),
            attentions: (0..if attention { layers } else { 0 })
                .map(|layer| self.transformer(&format!("{prefix}.attentions.{layer}"), level))
                .collect(),
            downsampler: (!is_last)
                .then(|| self.weights.conv2d(&format!("{prefix}.downsamplers.0.conv"), width, width, 3, 2, 1)),
        }
    }

    fn mid(&mut self) -> MidBlock {
        let level = self.config.block_out_channels.len() - 1;
        let width = self.config.block_out_channels[level];
        MidBlock {
            resnets: [0, 1].map(|layer| self.resnet(&format!("mid_block.resnets.{layer}"), [width, width])),
            attention: self.transformer("mid_block.attentions.0", level),
        }
    }

    /// `index` counts from the coarsest level.
    fn up(&mut self, index: usize) -> UpBlock {
        let widths = &self.config.block_out_channels;
        let level = widths.len() - 1 - index;
        let coarser = widths[(level + 1).min(widths.len() - 1)];
        let (width, finer, layers) = (widths[level], widths[level.saturating_sub(1)], self.config.layers_per_block + 1);
        let (attention, prefix) = (self.config.up_attention[index], format!("up_blocks.{index}"));
        // What comes from below or from the block before, and the skip.
        let inputs = |layer| {
            let own = if layer == 0 { coarser } else { width };
            own + if layer + 1 == layers { finer } else { width }
        };
        UpBlock {
            resnets: (0..layers)
                .map(|layer| self.resnet(&format!("{prefix}.resnets.{layer}"), [inputs(layer), width]))
                .collect(),
            attentions: (0..if attention { layers } else { 0 })
                .map(|layer| self.transformer(&format!("{prefix}.attentions.{layer}"), level))
                .collect(),
            upsampler: (level > 0)
                .then(|| self.weights.conv2d(&format!("{prefix}.upsamplers.0.conv"), width, width, 3, 1, 1)),
        }
    }
}

impl Unet {
    /// Takes every tensor of the architecture from `weights`.
    ///
    /// # Errors
    /// As [`Weights::finish`].
    pub fn new(config: &UnetConfig, weights: Weights) -> Result<Self> {
        // Measured with 64 and 128 channels; Stable Diffusion has 320 to 1,280.
        const WIDE: i64 = 256;
        let mut weights = weights.contiguous(config.block_out_channels.iter().all(|channels| *channels < WIDE));
        reward::threads::settle(config.largest_product());
        let (first, channels) = (config.block_out_channels[0], config.channels);
        let time = TimeEmbedding::new(&mut weights, config);
        let conv_in = weights.conv2d("conv_in", channels, first, 3, 1, 1);
        let norm_out = weights.group_norm("conv_norm_out", config.norm_num_groups, first, config.norm_eps);
        let conv_out = weights.conv2d("conv_out", first, channels, 3, 1, 1);
        let mut build = Build { config, weights, transformers: 0 };
        let levels = config.block_out_channels.len();
        let down = (0..levels).map(|level| build.down(level)).collect();
        let mid = config.mid_block.then(|| build.mid());
        let up = (0..levels).map(|index| build.up(index)).collect();
        let parameters = build.weights.finish()?;
        Ok(Self {
            config: config.clone(),
            parameters,
            checkpointing: false,
            time,
            conv_in,
            down,
            mid,
            up,
            norm_out,
            conv_out,
        })
    }
}
