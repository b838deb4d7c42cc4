//! The UNet's `config.json`, as diffusers' `UNet2DConditionModel` has it.

use serde_json::{Value, json};

use super::{
    DIFFUSERS_VERSION, Fields,
    fields::{BLOCKS, WIDTH, count},
};
use crate::{Error, Result};

/// Keys that diffusers' `EMAModel` writes into the config of a model that it saves: no part of the architecture.
const AVERAGE: [&str; 8] = [
    "decay",
    "min_decay",
    "inv_gamma",
    "power",
    "optimization_step",
    "update_after_step",
    "use_ema_warmup",
    "collected_params",
];

/// The architecture of a UNet.
#[derive(Debug, Clone, PartialEq)]
pub struct UnetConfig {
    /// Height and width of the latents it was trained on.
    pub sample_size: [i64; 2],
    /// Channels of the latents, in and out.
    pub channels: i64,
    /// Channels of each level, from the finest.
    pub block_out_channels: Vec<i64>,
    /// Which levels of the way down have transformers.
    pub down_attention: Vec<bool>,
    /// Whether there are blocks between the ways down and up; every published model has them.
    pub mid_block: bool,
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
        let [height, width] = self.sample_size;
        (9 * height * width * channels.pow(2)).max(0) as usize
    }

    /// Reads a `config.json` of diffusers.
    ///
    /// # Errors
    /// A value that is not supported, or a field that is missing.
    pub fn from_json(config: &Value) -> Result<Self> {
        Ok(Self::read(config)?.0)
    }

    /// As [`Self::from_json`], with what the user should know about how it was read.
    pub(crate) fn read(config: &Value) -> Result<(Self, Vec<String>)> {
        let mut fields = Fields::new(config)?;
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
        fields.only("reverse_transformer_layers_per_block", json!(1), sdxl)?;
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
        fields.unread(&AVERAGE, "an average of weights (EMA) was saved with them, as diffusers' EMAModel does");
        // Absent means the usual one; null means none, as diffusers has it.
        let mid_block = !matches!(fields.raw("mid_block_type"), Some(Value::Null));
        fields.only("mid_block_type", json!("UNetMidBlock2DCrossAttn"), "")?;
        let block_out_channels = fields.channels("block_out_channels")?;
        let levels = block_out_channels.len();
        let attention = |indices: Vec<usize>| indices.into_iter().map(|index| index == 1).collect();
        let heads =
            fields.get("attention_head_dim", Some(vec![8; levels]), "head counts, one or one a level", |value| {
                match value {
                    Value::Array(list) => list.iter().map(|value| count(value, WIDTH)).collect(),
                    scalar => Some(vec![count(scalar, WIDTH)?; levels]),
                }
            })?;
        let mut read = Self {
            sample_size: fields.get(
                "sample_size",
                Some([64; 2]),
                "a side up to 4096, or a height and a width",
                sides,
            )?,
            channels: 4,
            down_attention: attention(fields.names(
                "down_block_types",
                &["DownBlock2D", "CrossAttnDownBlock2D"],
                levels,
            )?),
            mid_block,
            up_attention: attention(fields.names("up_block_types", &["UpBlock2D", "CrossAttnUpBlock2D"], levels)?),
            layers_per_block: fields.count_of_all("layers_per_block", 2, BLOCKS, levels)?,
            heads,
            cross_attention_dim: fields.count_of_all("cross_attention_dim", 1280, WIDTH, levels)?,
            use_linear_projection: fields.flag("use_linear_projection", false)?,
            upcast_attention: fields.flag("upcast_attention", false)?,
            norm_num_groups: fields.count("norm_num_groups", Some(32), WIDTH)?,
            norm_eps: fields.number("norm_eps", 1e-5, 1.0)?,
            flip_sin_to_cos: fields.flag("flip_sin_to_cos", true)?,
            // Subtracted from half the channels, by which is divided.
            freq_shift: fields.get(
                "freq_shift",
                Some(0.0),
                "a number below half the first level's channels",
                |value| value.as_f64().filter(|shift| shift.abs() < block_out_channels[0] as f64 / 2.0),
            )?,
            block_out_channels,
        };
        let mut remarks = fields.finish()?;
        read.check()?;
        if let Some(remark) = read.old_size(config) {
            remarks.push(remark);
        }
        Ok((read, remarks))
    }

    /// Folders converted before diffusers 0.9 say 32 where 64 is meant, and its pipeline puts that right; so here.
    fn old_size(&mut self, config: &Value) -> Option<String> {
        let side = config["sample_size"].as_i64().filter(|side| *side < 64)?;
        let version = config["_diffusers_version"].as_str()?;
        let mut numbers = version.split('.').map(|part| {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u32>().unwrap_or(0)
        });
        if (numbers.next(), numbers.next().unwrap_or(0)) >= (Some(0), 9) {
            return None;
        }
        self.sample_size = [64; 2];
        Some(format!(
            "`sample_size` {side} of diffusers {version} is taken as 64, as diffusers does: before 0.9 it was often wrong"
        ))
    }

    fn check(&self) -> Result<()> {
        if self.heads.len() != self.block_out_channels.len() {
            return Err(Error::data(format!(
                "`attention_head_dim` has {} entries, `block_out_channels` {}",
                self.heads.len(),
                self.block_out_channels.len()
            )));
        }
        for (channels, heads) in self.block_out_channels.iter().zip(&self.heads) {
            let groups = self.norm_num_groups;
            if channels % heads != 0 || channels % groups != 0 {
                return Err(Error::data(format!(
                    "`block_out_channels` {channels} cannot be split into {heads} heads (`attention_head_dim`) and \
                     {groups} groups (`norm_num_groups`)"
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
        let [height, width] = self.sample_size;
        let mut config = json!({
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": DIFFUSERS_VERSION,
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
            "sample_size": if height == width { json!(height) } else { json!([height, width]) },
            "up_block_types": names(&self.up_attention, "Up"),
            "upcast_attention": self.upcast_attention,
            "use_linear_projection": self.use_linear_projection,
        });
        if !self.mid_block {
            config["mid_block_type"] = Value::Null;
        }
        config
    }

    /// One of [`super::PRESETS`]: `sd15` as <https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5>, `sd21-base` as
    /// <https://huggingface.co/stabilityai/stable-diffusion-2-1-base>, `sd-tiny` for tests, `sd-toy` for the demo.
    pub fn preset(name: &str) -> Option<Self> {
        let published = Self {
            sample_size: [64; 2],
            channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            down_attention: vec![true, true, true, false],
            mid_block: true,
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
                sample_size: [8; 2],
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
                sample_size: [8; 2],
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

/// One side, or height and width.
fn sides(value: &Value) -> Option<[i64; 2]> {
    let side = |value: &Value| count(value, 4096);
    match value.as_array().map(Vec::as_slice) {
        None => Some([side(value)?; 2]),
        Some([height, width]) => Some([side(height)?, side(width)?]),
        Some(_) => None,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Value {
        UnetConfig::preset("sd-tiny").unwrap().to_json()
    }

    fn with(key: &str, value: Value) -> Value {
        let mut config = tiny();
        config[key] = value;
        config
    }

    /// diffusers 0.42.1, `StableDiffusionPipeline.__init__`: below 0.9.0, an integer under 64 becomes 64.
    #[test]
    fn small_sizes_of_old_versions_are_64() {
        for (version, size, wanted) in [
            (json!("0.7.2"), json!(32), [64, 64]),
            (json!("0.8.0.dev0"), json!(32), [64, 64]),
            (json!("0.9.0.dev0"), json!(32), [32, 32]),
            (json!("0.10.2"), json!(32), [32, 32]),
            (json!("1.0.0"), json!(32), [32, 32]),
            (Value::Null, json!(32), [32, 32]),
            (json!("0.6.0"), json!([32, 48]), [32, 48]),
            (json!("0.6.0"), json!(96), [96, 96]),
        ] {
            let mut config = with("sample_size", size.clone());
            config["_diffusers_version"] = version.clone();
            let (read, remarks) = UnetConfig::read(&config).unwrap();
            assert_eq!(read.sample_size, wanted, "{version} {size}");
            assert_eq!(remarks.len(), usize::from(size == 32 && wanted == [64, 64]));
        }
    }

    #[test]
    fn what_we_write_keeps_its_size_in_diffusers() {
        assert_eq!(UnetConfig::read(&tiny()).unwrap(), (UnetConfig::preset("sd-tiny").unwrap(), Vec::new()));
        let oblong = UnetConfig { sample_size: [48, 64], mid_block: false, ..UnetConfig::preset("sd-tiny").unwrap() };
        assert_eq!(oblong.to_json()["sample_size"], json!([48, 64]));
        assert_eq!(oblong.to_json().get("mid_block_type"), Some(&Value::Null));
        assert_eq!(UnetConfig::from_json(&oblong.to_json()).unwrap(), oblong);
    }

    #[test]
    fn an_average_of_weights_is_a_remark() {
        let mut config = with("optimization_step", json!(1));
        config["decay"] = json!(0.9999);
        config["only_cross_attention"] = json!([false, false]);
        config["transformer_layers_per_block"] = json!([1, 1]);
        config["layers_per_block"] = json!([1, 1]);
        let (read, remarks) = UnetConfig::read(&config).unwrap();
        assert_eq!(read, UnetConfig::preset("sd-tiny").unwrap());
        assert!(remarks[0].starts_with("`decay`, `optimization_step` not read"), "{remarks:?}");
    }

    #[test]
    fn numbers_have_bounds() {
        for (key, value) in [
            ("layers_per_block", json!(1_000_000_000)),
            ("block_out_channels", json!([1_000_000_000, 96])),
            ("block_out_channels", json!(vec![64; 1000])),
            ("attention_head_dim", json!(1_000_000_000)),
            ("norm_num_groups", json!(1_000_000_000)),
            ("norm_num_groups", Value::Null),
            ("cross_attention_dim", json!(1_000_000_000)),
            ("sample_size", json!(1_000_000_000)),
            ("sample_size", json!([64])),
            ("norm_eps", json!("1e-5")),
            ("norm_eps", json!(-1.0)),
            ("freq_shift", json!(32)),
            ("mid_block_type", json!("UNetMidBlock2D")),
            ("_class_name", json!(3)),
        ] {
            let error = UnetConfig::from_json(&with(key, value.clone())).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")) && !error.contains('\n'), "{error}");
        }
    }
}
