//! How much memory a step will take, before it takes it, and what follows. That is whether activations are computed again in the
//! backward pass, and how many images go through at a time. An estimate from the architecture, in bytes; the run itself halves
//! the micro-batch where it was too low.

use tch::Kind;

use super::config::{Checkpointing, FinetuneConfig};
use crate::{
    algorithm::Graph,
    config::{UnetConfig, VaeConfig},
};

/// What a step takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Weights that do not train.
    pub frozen: f64,
    /// What trains, with gradients, two moments and running means.
    pub trained: f64,
    /// Activations of one image that are kept for the backward pass.
    pub image: f64,
    /// The same with activations computed again.
    pub image_recomputed: f64,
}

/// What the run goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Compute activations again in the backward pass.
    pub checkpointing: bool,
    /// Images at a time.
    pub micro: usize,
}

/// Activations that a ViT-L/14 reward keeps for one image in fp32: 24 blocks of 257 tokens, about 18 times its width each.
const REWARD: f64 = 24.0 * 257.0 * 18.0 * 1024.0 * 4.0;
/// The part of the free memory that a step may fill.
const SHARE: f64 = 0.8;

impl Estimate {
    /// Estimates a micro-batch of `graph`, where all models have `parameters` together, of which `trained` train.
    pub(super) fn new(
        config: &FinetuneConfig,
        (unet, vae): (&UnetConfig, &VaeConfig),
        [parameters, trained]: [usize; 2],
        latents: [i64; 3],
        graph: Graph,
        kind: Kind,
    ) -> Self {
        let bytes = kind.elt_size_in_bytes() as f64;
        let copies = if config.ema_decay.is_some() { 5.0 } else { 4.0 };
        let (guidance, _, negative_gradient) = config.sampling();
        let branches = if graph.guided && guidance > 1.0 && negative_gradient { 2.0 } else { 1.0 };
        // All copies of an image are in one graph with it.
        let copies_at_once = graph.decoded.max(1) as f64;
        let steps = graph.predictions as f64 / copies_at_once * branches;
        let pixels = latents.map(|size| size as f64)[1..].iter().product::<f64>();
        let (kept, inputs, largest) = unet_elements(unet, pixels);
        let (decoded, decoded_inputs, decoded_largest) =
            if graph.decoded > 0 { vae_elements(vae, pixels) } else { (0.0, 0.0, 0.0) };
        let reward = if graph.decoded > 0 { REWARD } else { 0.0 };
        Self {
            frozen: (parameters - trained) as f64 * bytes,
            trained: trained as f64 * 4.0 * copies,
            image: copies_at_once * (bytes * (kept * steps + decoded) + reward),
            image_recomputed: copies_at_once * (bytes * (inputs * steps + decoded_inputs) + reward)
                + bytes * (largest * branches).max(decoded_largest),
        }
    }

    /// Bytes of a step with `choice`.
    pub fn bytes(&self, choice: Choice) -> f64 {
        let image = if choice.checkpointing { self.image_recomputed } else { self.image };
        self.frozen + self.trained + image * choice.micro as f64
    }

    /// The largest micro-batch, at most `most` of a step's `items`, that fits into `free` bytes beside the models (which are
    /// loaded already). Activations are kept if as many fit at a time, else computed again.
    pub(super) fn choose(&self, config: &FinetuneConfig, [items, most]: [usize; 2], free: Option<u64>) -> Choice {
        let given = config.gradient_accumulation.map(|parts| items.div_ceil(parts));
        let room = free.map_or(f64::INFINITY, |free| free as f64 * SHARE - self.trained).max(0.0);
        let fitting = |image: f64| given.unwrap_or_else(|| ((room / image) as usize).clamp(1, most));
        let fits = |image: f64| image * given.unwrap_or(most) as f64 <= room;
        let checkpointing = match config.gradient_checkpointing {
            Checkpointing::On => true,
            Checkpointing::Off => false,
            Checkpointing::Auto => !fits(self.image),
        };
        Choice { checkpointing, micro: fitting(if checkpointing { self.image_recomputed } else { self.image }) }
    }
}

/// Elements of a residual block's and of a transformer's activations, of `inputs` and `outputs` channels over `pixels`.
fn residual(inputs: f64, outputs: f64, pixels: f64) -> f64 {
    (2.0 * inputs + 4.0 * outputs) * pixels
}

fn transformer(channels: f64, pixels: f64) -> f64 {
    36.0 * channels * pixels
}

/// Elements that the UNet keeps for one image: all activations, only the blocks' inputs, and those of the largest block.
fn unet_elements(config: &UnetConfig, pixels: f64) -> (f64, f64, f64) {
    let (mut kept, mut inputs, mut largest) = (0.0, 0.0, 0.0_f64);
    let mut add = |channels: [f64; 2], attention: bool, pixels: f64| {
        let [before, after] = channels;
        let block = residual(before, after, pixels) + if attention { transformer(after, pixels) } else { 0.0 };
        kept += block;
        inputs += before * pixels;
        largest = largest.max(block);
    };
    let widths: Vec<f64> = config.block_out_channels.iter().map(|width| *width as f64).collect();
    let last = widths.len() - 1;
    let level_pixels = |level: usize| pixels / 4_f64.powi(level as i32);
    for (level, width) in widths.iter().enumerate() {
        for _ in 0..config.layers_per_block {
            add([*width, *width], config.down_attention[level], level_pixels(level));
        }
        for _ in 0..=config.layers_per_block {
            add([2.0 * width, *width], config.up_attention[last - level], level_pixels(level));
        }
    }
    add([widths[last], widths[last]], true, level_pixels(last));
    add([widths[last], widths[last]], false, level_pixels(last));
    (kept, inputs, largest)
}

/// The same of the VAE's decoder, whose levels are what is computed again.
fn vae_elements(config: &VaeConfig, pixels: f64) -> (f64, f64, f64) {
    let (mut kept, mut inputs, mut largest) = (0.0, 0.0, 0.0_f64);
    for (level, width) in config.block_out_channels.iter().rev().enumerate() {
        let (width, pixels) = (*width as f64, pixels * 4_f64.powi(level as i32));
        let blocks = (config.layers_per_block + 1) as f64 * residual(width, width, pixels);
        kept += blocks;
        inputs += width * pixels;
        largest = largest.max(blocks);
    }
    (kept, inputs, largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESTIMATE: Estimate = Estimate { frozen: 1e9, trained: 1e8, image: 4e9, image_recomputed: 1e9 };

    fn choice(free: f64, config: &FinetuneConfig) -> Choice {
        ESTIMATE.choose(config, [config.batch_size; 2], Some(free as u64))
    }

    #[test]
    fn activations_are_kept_where_the_whole_batch_fits() {
        let config = FinetuneConfig { batch_size: 4, ..FinetuneConfig::default() };
        assert_eq!(choice(80e9, &config), Choice { checkpointing: false, micro: 4 });
        assert_eq!(choice(10e9, &config), Choice { checkpointing: true, micro: 4 });
        assert_eq!(choice(3e9, &config), Choice { checkpointing: true, micro: 2 });
        assert_eq!(choice(1e9, &config), Choice { checkpointing: true, micro: 1 });
        assert_eq!(ESTIMATE.choose(&config, [4, 4], None), Choice { checkpointing: false, micro: 4 });
        assert_eq!(ESTIMATE.bytes(Choice { checkpointing: true, micro: 2 }), 3.1e9);
    }

    #[test]
    fn what_the_user_says_stands() {
        let config = FinetuneConfig {
            batch_size: 4,
            gradient_accumulation: Some(2),
            gradient_checkpointing: Checkpointing::Off,
            ..FinetuneConfig::default()
        };
        assert_eq!(choice(1e9, &config), Choice { checkpointing: false, micro: 2 });
    }
}
