//! The text encoder's `config.json`, as transformers' `CLIPTextModel` has it.

use serde_json::{Value, json};

use super::{
    Fields,
    fields::{BLOCKS, WIDTH},
};
use crate::{Error, Result};

/// Most tokens of a vocabulary.
const VOCABULARY: i64 = 1 << 24;

/// The activation of the MLPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x·σ(1.702 x)`: OpenAI's CLIP, so SD 1.
    QuickGelu,
    /// Exact GELU: OpenCLIP, so SD 2.
    Gelu,
}

impl Activation {
    fn name(self) -> &'static str {
        match self {
            Self::QuickGelu => "quick_gelu",
            Self::Gelu => "gelu",
        }
    }
}

/// The architecture of a text encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Tokens in the vocabulary.
    pub vocab_size: i64,
    /// Longest prompt in tokens.
    pub max_position_embeddings: i64,
    /// Width of the hidden states.
    pub hidden_size: i64,
    /// Width of the MLPs.
    pub intermediate_size: i64,
    /// Transformer blocks; may be 0.
    pub num_hidden_layers: i64,
    /// Attention heads.
    pub num_attention_heads: i64,
    /// Activation of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of every LayerNorm.
    pub layer_norm_eps: f64,
    /// Carried for saving: width of a projection that Stable Diffusion does not use.
    pub projection_dim: i64,
    /// Carried for saving.
    pub bos_token_id: i64,
    /// Carried for saving; 2 in files older than transformers 4.31.
    pub eos_token_id: i64,
    /// Carried for saving.
    pub pad_token_id: i64,
}

impl TextConfig {
    /// Reads a `config.json` of transformers. Fields that say nothing about the architecture are ignored.
    ///
    /// # Errors
    /// A value that is not supported, or a field that is missing.
    pub fn from_json(config: &Value) -> Result<Self> {
        let mut fields = Fields::new(config)?;
        fields.only("model_type", json!("clip_text_model"), "")?;
        fields.class("architectures", "CLIPTextModel")?;
        let activation = |value: &Value| {
            [Activation::QuickGelu, Activation::Gelu].into_iter().find(|known| value.as_str() == Some(known.name()))
        };
        let token = |value: &Value| value.as_i64();
        let blocks = |value: &Value| value.as_i64().filter(|blocks| (0..=BLOCKS).contains(blocks));
        let read = Self {
            vocab_size: fields.count("vocab_size", Some(49408), VOCABULARY)?,
            max_position_embeddings: fields.count("max_position_embeddings", Some(77), WIDTH)?,
            hidden_size: fields.count("hidden_size", None, WIDTH)?,
            intermediate_size: fields.count("intermediate_size", None, 4 * WIDTH)?,
            num_hidden_layers: fields.get(
                "num_hidden_layers",
                None,
                &format!("a whole number from 0 to {BLOCKS}"),
                blocks,
            )?,
            num_attention_heads: fields.count("num_attention_heads", None, WIDTH)?,
            hidden_act: fields.get("hidden_act", Some(Activation::QuickGelu), "quick_gelu or gelu", activation)?,
            layer_norm_eps: fields.number("layer_norm_eps", 1e-5, 1.0)?,
            projection_dim: fields.count("projection_dim", Some(512), WIDTH)?,
            bos_token_id: fields.get("bos_token_id", Some(0), "a token", token)?,
            eos_token_id: fields.get("eos_token_id", Some(2), "a token", token)?,
            pad_token_id: fields.get("pad_token_id", Some(1), "a token", token)?,
        };
        if read.hidden_size % read.num_attention_heads != 0 {
            return Err(Error::data(format!(
                "`hidden_size` {} cannot be split into {} heads (`num_attention_heads`)",
                read.hidden_size, read.num_attention_heads
            )));
        }
        Ok(read)
    }

    /// What transformers reads back.
    pub fn to_json(&self) -> Value {
        let Self {
            vocab_size,
            max_position_embeddings,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            hidden_act,
            layer_norm_eps,
            projection_dim,
            bos_token_id,
            eos_token_id,
            pad_token_id,
        } = self;
        json!({
            "architectures": ["CLIPTextModel"],
            "attention_dropout": 0.0,
            "bos_token_id": bos_token_id,
            "dropout": 0.0,
            "eos_token_id": eos_token_id,
            "hidden_act": hidden_act.name(),
            "hidden_size": hidden_size,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": intermediate_size,
            "layer_norm_eps": layer_norm_eps,
            "max_position_embeddings": max_position_embeddings,
            "model_type": "clip_text_model",
            "num_attention_heads": num_attention_heads,
            "num_hidden_layers": num_hidden_layers,
            "pad_token_id": pad_token_id,
            "projection_dim": projection_dim,
            "vocab_size": vocab_size,
        })
    }

    /// One of [`super::PRESETS`].
    pub fn preset(name: &str) -> Option<Self> {
        let published = Self {
            vocab_size: 49408,
            max_position_embeddings: 77,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            projection_dim: 768,
            bos_token_id: 0,
            eos_token_id: 2,
            pad_token_id: 1,
        };
        match name {
            "sd15" => Some(published),
            "sd21-base" => Some(Self {
                hidden_size: 1024,
                intermediate_size: 4096,
                num_hidden_layers: 23,
                num_attention_heads: 16,
                hidden_act: Activation::Gelu,
                projection_dim: 512,
                ..published
            }),
            "sd-tiny" => Some(Self {
                hidden_size: 32,
                intermediate_size: 64,
                num_hidden_layers: 2,
                num_attention_heads: 2,
                hidden_act: Activation::Gelu,
                projection_dim: 32,
                ..published
            }),
            // The text tower of `reward`'s CLIP `toy` short of its last block, as in SD 2. That is its only one, so words are
            // embedded each by itself: what the UNet learns of one combination of words holds in all others.
            "sd-toy" => Some(Self {
                hidden_size: 64,
                intermediate_size: 256,
                num_hidden_layers: 0,
                num_attention_heads: 1,
                projection_dim: 64,
                ..published
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoder_may_be_embeddings_alone() {
        let toy = TextConfig::preset("sd-toy").unwrap();
        let mut config = toy.to_json();
        assert_eq!(config["num_hidden_layers"], 0);
        assert_eq!(TextConfig::from_json(&config).unwrap(), toy);
        config["num_hidden_layers"] = json!(-1);
        let error = TextConfig::from_json(&config).unwrap_err().to_string();
        assert!(error.contains("`num_hidden_layers` is -1"), "{error}");
    }

    #[test]
    fn numbers_have_bounds_and_types() {
        for (key, value) in [
            ("num_hidden_layers", json!(1_000_000_000)),
            ("vocab_size", json!(1_000_000_000)),
            ("hidden_size", json!(1_000_000_000)),
            ("max_position_embeddings", json!("77")),
            ("hidden_act", json!(3)),
            ("layer_norm_eps", json!("12")),
            ("layer_norm_eps", Value::Null),
            ("hidden_size", json!(33)),
        ] {
            let mut config = TextConfig::preset("sd-tiny").unwrap().to_json();
            config[key] = value;
            let error = TextConfig::from_json(&config).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")) && !error.contains('\n'), "{error}");
        }
    }
}
