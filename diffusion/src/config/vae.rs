//! The VAE's `config.json`, as diffusers' `AutoencoderKL` has it.

use serde_json::{Value, json};

use super::{
    DIFFUSERS_VERSION, Fields,
    fields::{BLOCKS, WIDTH, count},
};
use crate::{Error, Result};

/// The architecture of a VAE.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Side of the images it was trained on.
    pub sample_size: i64,
    /// Channels of each level, from the finest.
    pub block_out_channels: Vec<i64>,
    /// Residual blocks of an encoder level; the decoder has one more.
    pub layers_per_block: i64,
    /// Channels of the latents.
    pub latent_channels: i64,
    /// Groups of every GroupNorm.
    pub norm_num_groups: i64,
    /// Latents times this have about unit variance: what the UNet sees.
    pub scaling_factor: f64,
    /// Carried for saving: whether fp16 overflows in this VAE.
    pub force_upcast: Option<bool>,
}

/// The scaling factor of Stable Diffusion 1.x and 2.x, where the file does not say it.
const SCALING_FACTOR: f64 = 0.18215;

impl VaeConfig {
    /// Reads a `config.json` of diffusers.
    ///
    /// # Errors
    /// A value that is not supported, or a field that is missing.
    pub fn from_json(config: &Value) -> Result<Self> {
        let mut fields = Fields::new(config)?;
        fields.class("_class_name", "AutoencoderKL")?;
        fields.only("in_channels", json!(3), "")?;
        fields.only("out_channels", json!(3), "")?;
        let newer = "Stable Diffusion 3 or Flux";
        fields.only("latent_channels", json!(4), newer)?;
        fields.none("shift_factor", newer)?;
        fields.none("latents_mean", "another latent space")?;
        fields.none("latents_std", "another latent space")?;
        for key in ["use_quant_conv", "use_post_quant_conv"] {
            fields.only(key, json!(true), newer)?;
        }
        fields.only("mid_block_add_attention", json!(true), "")?;
        fields.only("act_fn", json!("silu"), "")?;
        let block_out_channels = fields.channels("block_out_channels")?;
        let levels = block_out_channels.len();
        fields.names("down_block_types", &["DownEncoderBlock2D"], levels)?;
        fields.names("up_block_types", &["UpDecoderBlock2D"], levels)?;
        let read = Self {
            sample_size: fields.get("sample_size", Some(512), "a side up to 65536, or a list of sides", |value| {
                // Nothing is made by it: the first of a list, as diffusers has it for tiles.
                count(value.as_array().and_then(|sides| sides.first()).unwrap_or(value), 1 << 16)
            })?,
            layers_per_block: fields.count("layers_per_block", Some(1), BLOCKS)?,
            latent_channels: 4,
            norm_num_groups: fields.count("norm_num_groups", Some(32), WIDTH)?,
            scaling_factor: fields.number("scaling_factor", SCALING_FACTOR, 1e6)?,
            force_upcast: fields.get("force_upcast", Some(None), "true or false", |value| value.as_bool().map(Some))?,
            block_out_channels,
        };
        fields.finish()?;
        if let Some(channels) = read.block_out_channels.iter().find(|channels| *channels % read.norm_num_groups != 0) {
            return Err(Error::data(format!(
                "`block_out_channels` {channels} cannot be split into {} groups (`norm_num_groups`)",
                read.norm_num_groups
            )));
        }
        Ok(read)
    }

    /// Image pixels per latent, along one side.
    pub fn factor(&self) -> i64 {
        1 << self.block_out_channels.len().saturating_sub(1)
    }

    /// What diffusers reads back.
    pub fn to_json(&self) -> Value {
        let levels = self.block_out_channels.len();
        let mut config = json!({
            "_class_name": "AutoencoderKL",
            "_diffusers_version": DIFFUSERS_VERSION,
            "act_fn": "silu",
            "block_out_channels": self.block_out_channels,
            "down_block_types": vec!["DownEncoderBlock2D"; levels],
            "in_channels": 3,
            "latent_channels": self.latent_channels,
            "layers_per_block": self.layers_per_block,
            "norm_num_groups": self.norm_num_groups,
            "out_channels": 3,
            "sample_size": self.sample_size,
            "scaling_factor": self.scaling_factor,
            "up_block_types": vec!["UpDecoderBlock2D"; levels],
        });
        if let Some(force_upcast) = self.force_upcast {
            config["force_upcast"] = json!(force_upcast);
        }
        config
    }

    /// One of [`super::PRESETS`].
    pub fn preset(name: &str) -> Option<Self> {
        let published = Self {
            sample_size: 512,
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: SCALING_FACTOR,
            force_upcast: None,
        };
        match name {
            "sd15" => Some(published),
            "sd21-base" => Some(Self { sample_size: 768, ..published }),
            "sd-tiny" => Some(Self {
                sample_size: 64,
                block_out_channels: vec![16, 32, 32, 32],
                layers_per_block: 1,
                norm_num_groups: 8,
                ..published
            }),
            "sd-toy" => Some(Self {
                sample_size: 32,
                block_out_channels: vec![16, 32, 32],
                layers_per_block: 1,
                norm_num_groups: 8,
                ..published
            }),
            _ => None,
        }
    }
}
