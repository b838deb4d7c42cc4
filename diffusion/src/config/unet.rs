//! The UNet's `config.json`, as diffusers' `UNet2DConditionModel` has it.

use serde_json::{Value, json};

use super::Fields;
use crate::{Error, Result};

/// The architecture of a UNet.
#[derive(Debug, Clone, PartialEq)]
pub struct UnetConfig {
    /// Side of the latents it was trained on.
    pub sample_size: i64,
    /// Channels of the latents, in and out.
    pub channels: i64,
    /// Channels of each level, from the finest.
    pub block_out_channels: Vec<i64>,
    /// Which levels of the way down have transformers.
    pub down_attention: Vec<bool>,
    /// Which levels of the way up have transformers, from the coarsest.
    pub up_attention: Vec<bool>,
    /// Residual blocks of a level on the way down; on the way up it is one more.
    pub layers_per_block: i64,
    /// Attention heads of each level, from the finest: the field `attention_head_dim`, which in these models is the number
    /// of heads (diffusers issue 2011).
    pub heads: Vec<i64>,
    /// Width of the text encoder's hidden states.
    pub cross_attention_dim: i64,
    /// The projections around a transformer are linear layers (SD 2) instead of 1×1 convolutions (SD 1).
    pub use_linear_projection: bool,
    /// Carried for saving: fused attention accumulates in fp32 anyway.
    pub upcast_attention: bool,
    /// Groups of every GroupNorm.
    pub norm_num_groups: i64,
    /// Epsilon of the residual blocks' GroupNorms.
    pub norm_eps: f64,
    /// Cosines come before sines in the time embedding.
    pub flip_sin_to_cos: bool,
    /// Subtracted from the count of frequencies of the time embedding.
    pub freq_shift: f64,
}

impl UnetConfig {
    /// Multiplications of the largest product of one image of the native size: a 3×3 convolution of the finest level.
    pub fn largest_product(&self) -> usize {
        let channels = self.block_out_channels.first().copied().unwrap_or(0);
        (9 * self.sample_size.pow(2) * channels.pow(2)).max(0) as usize
    }

    /// Reads a `config.json` of diffusers.
    ///
    /// # Errors
    /// A value that is not supported, or a field that is missing.
    pub fn from_json(config: &Value) -> Result<Self> {
        let mut fields = Fields::new("UNet", config)?;
        fields.class("_class_name", "UNet2DConditionModel")?;
        let sdxl = "Stable Diffusion XL";
        fields.none("addition_embed_type", sdxl)?;
        fields.none("addition_time_embed_dim", sdxl)?;
        fields.none("projection_class_embeddings_input_dim", sdxl)?;
        fields.only("in_channels", json!(4), channels_note(config))?;
        fields.only("out_channels", json!(4), "")?;
        fields.none("num_class_embeds", "upscaling")?;
        fields.none("class_embed_type", "unCLIP")?;
        fields.none("encoder_hid_dim", "Kandinsky or IF")?;
        for key in [
            "encoder_hid_dim_type",
            "num_attention_heads",
            "reverse_transformer_layers_per_block",
            "time_embedding_dim",
            "time_embedding_act_fn",
            "timestep_post_act",
            "cross_attention_norm",
            "center_input_sample",
            "dual_cross_attention",
            "only_cross_attention",
            "mid_block_only_cross_attention",
            "resnet_skip_time_act",
            "class_embeddings_concat",
        ] {
            fields.none(key, "")?;
        }
        fields.none("time_cond_proj_dim", "latent consistency model")?;
        fields.only("transformer_layers_per_block", json!(1), sdxl)?;
        fields.only("mid_block_type", json!("UNetMidBlock2DCrossAttn"), "")?;
        fields.only("act_fn", json!("silu"), "")?;
        fields.only("dropout", json!(0.0), "")?;
        fields.only("downsample_padding", json!(1), "")?;
        fields.only("mid_block_scale_factor", json!(1), "")?;
        fields.only("resnet_time_scale_shift", json!("default"), "")?;
        fields.only("resnet_out_scale_factor", json!(1.0), "")?;
        fields.only("time_embedding_type", json!("positional"), "")?;
        fields.only("conv_in_kernel", json!(3), "")?;
        fields.only("conv_out_kernel", json!(3), "")?;
        fields.only("attention_type", json!("default"), "GLIGEN")?;
        fields.only("addition_embed_type_num_heads", json!(64), "")?;
        let block_out_channels = fields.counts("block_out_channels")?;
        let levels = block_out_channels.len();
        let attention = |indices: Vec<usize>| indices.into_iter().map(|index| index == 1).collect();
        let heads =
            fields.get("attention_head_dim", Some(vec![8; levels]), "head counts, one or one a level", |value| {
                match value {
                    Value::Array(list) => list.iter().map(super::count).collect(),
                    scalar => Some(vec![super::count(scalar)?; levels]),
                }
            })?;
        let read = Self {
            sample_size: fields.count("sample_size", Some(64))?,
            channels: 4,
            down_attention: attention(fields.names(
                "down_block_types",
                &["DownBlock2D", "CrossAttnDownBlock2D"],
                levels,
            )?),
            up_attention: attention(fields.names("up_block_types", &["UpBlock2D", "CrossAttnUpBlock2D"], levels)?),
            layers_per_block: fields.count("layers_per_block", Some(2))?,
            heads,
            cross_attention_dim: fields.count("cross_attention_dim", Some(1280))?,
            use_linear_projection: fields.flag("use_linear_projection", false)?,
            upcast_attention: fields.flag("upcast_attention", false)?,
            norm_num_groups: fields.count("norm_num_groups", Some(32))?,
            norm_eps: fields.number("norm_eps", 1e-5)?,
            flip_sin_to_cos: fields.flag("flip_sin_to_cos", true)?,
            freq_shift: fields.number("freq_shift", 0.0)?,
            block_out_channels,
        };
        fields.finish()?;
        read.check()?;
        Ok(read)
    }

    fn check(&self) -> Result<()> {
        if self.heads.len() != self.block_out_channels.len() {
            return Err(Error::data(format!(
                "UNet config: `attention_head_dim` has {} entries, `block_out_channels` {}",
                self.heads.len(),
                self.block_out_channels.len()
            )));
        }
        for (channels, heads) in self.block_out_channels.iter().zip(&self.heads) {
            if channels % heads != 0 || channels % self.norm_num_groups != 0 {
                return Err(Error::data(format!(
                    "UNet config: {channels} channels cannot be split into {heads} heads and {} groups",
                    self.norm_num_groups
                )));
            }
        }
        Ok(())
    }

    /// What diffusers reads back.
    pub fn to_json(&self) -> Value {
        let same = self.heads.iter().all(|heads| *heads == self.heads[0]);
        let names = |attention: &[bool], way: &str| {
            let name = |with: &bool| format!("{}{way}Block2D", if *with { "CrossAttn" } else { "" });
            attention.iter().map(name).collect::<Vec<_>>()
        };
        json!({
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": "0.6.0",
            "act_fn": "silu",
            "attention_head_dim": if same { json!(self.heads[0]) } else { json!(self.heads) },
            "block_out_channels": self.block_out_channels,
            "center_input_sample": false,
            "cross_attention_dim": self.cross_attention_dim,
            "down_block_types": names(&self.down_attention, "Down"),
            "downsample_padding": 1,
            "dual_cross_attention": false,
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "freq_shift": whole(self.freq_shift),
            "in_channels": self.channels,
            "layers_per_block": self.layers_per_block,
            "mid_block_scale_factor": 1,
            "norm_eps": self.norm_eps,
            "norm_num_groups": self.norm_num_groups,
            "out_channels": self.channels,
            "sample_size": self.sample_size,
            "up_block_types": names(&self.up_attention, "Up"),
            "upcast_attention": self.upcast_attention,
            "use_linear_projection": self.use_linear_projection,
        })
    }

    /// One of [`super::PRESETS`]: `sd15` as <https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5>, `sd21-base` as
    /// <https://huggingface.co/stabilityai/stable-diffusion-2-1-base>, `sd-tiny` for tests, `sd-toy` for the demo.
    pub fn preset(name: &str) -> Option<Self> {
        let published = Self {
            sample_size: 64,
            channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            down_attention: vec![true, true, true, false],
            up_attention: vec![false, true, true, true],
            layers_per_block: 2,
            heads: vec![8; 4],
            cross_attention_dim: 768,
            use_linear_projection: false,
            upcast_attention: false,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
        };
        match name {
            "sd15" => Some(published),
            "sd21-base" => Some(Self {
                heads: vec![5, 10, 20, 20],
                cross_attention_dim: 1024,
                use_linear_projection: true,
                ..published
            }),
            "sd-tiny" => Some(Self {
                sample_size: 8,
                block_out_channels: vec![64, 96],
                down_attention: vec![true, false],
                up_attention: vec![false, true],
                layers_per_block: 1,
                heads: vec![2, 4],
                cross_attention_dim: 32,
                use_linear_projection: true,
                ..published
            }),
            "sd-toy" => Some(Self {
                sample_size: 8,
                block_out_channels: vec![64, 128],
                down_attention: vec![true, true],
                up_attention: vec![true, true],
                layers_per_block: 1,
                heads: vec![2, 4],
                cross_attention_dim: 64,
                use_linear_projection: true,
                ..published
            }),
            _ => None,
        }
    }
}

fn channels_note(config: &Value) -> &'static str {
    match config["in_channels"].as_i64() {
        Some(9) => "inpainting",
        Some(8) => "InstructPix2Pix",
        Some(7) => "upscaling",
        Some(5) => "depth to image",
        _ => "",
    }
}

/// Without `.0` where it is a whole number, as the published files have it.
fn whole(number: f64) -> Value {
    if number.fract() == 0.0 { json!(number as i64) } else { json!(number) }
}
