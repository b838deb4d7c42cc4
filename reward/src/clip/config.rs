//! The shape of a CLIP: read from a Hugging Face `config.json`, inferred from tensor shapes, or one of the presets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// The MLP's nonlinearity. The two cannot be told apart by tensor shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `x · σ(1.702 x)`: OpenAI's models.
    QuickGelu,
    /// Exact GELU: the open_clip ViT-H, ViT-g and ViT-bigG.
    Gelu,
}

/// Which token of a prompt is pooled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndOfText {
    /// The highest token id (OpenAI; Hugging Face configs that say `eos_token_id: 2`).
    HighestId,
    /// The first occurrence of this id.
    Id(u32),
}

impl EndOfText {
    /// Position in `0..ids.len()` of the pooled token. `ids` must not be empty.
    pub fn position(self, ids: &[u32]) -> usize {
        match self {
            Self::HighestId => {
                let highest = ids.iter().max();
                ids.iter().position(|id| Some(id) == highest).unwrap_or(0)
            }
            // An absent end token pools position 0, as `argmax` over "is end of text" does.
            Self::Id(end) => ids.iter().position(|id| *id == end).unwrap_or(0),
        }
    }
}

/// One transformer tower.
#[derive(Debug, Clone, PartialEq)]
pub struct TowerConfig {
    /// Channels of a token.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
    /// Channels of the MLP's hidden layer.
    pub mlp_width: usize,
    /// The MLP's nonlinearity.
    pub activation: Activation,
    /// Epsilon of every LayerNorm.
    pub layer_norm_eps: f64,
}

/// A whole CLIP.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// Channels of the shared embedding.
    pub embed_dim: usize,
    /// The image tower.
    pub vision: TowerConfig,
    /// Side of the square input in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// The text tower.
    pub text: TowerConfig,
    /// Positions of the text tower, end token included.
    pub context_length: usize,
    /// Token ids are `0..vocab_size`.
    pub vocab_size: usize,
    /// The pooled token.
    pub end_of_text: EndOfText,
}

impl ClipConfig {
    /// Patches of one image plus the class token.
    pub fn vision_tokens(&self) -> usize {
        self.image_size.div_euclid(self.patch_size).pow(2) + 1
    }

    /// Multiplications of the largest product of one image: the first layer of a block's MLP.
    #[cfg(feature = "torch")]
    pub fn largest_product(&self) -> usize {
        self.vision_tokens() * self.vision.width * self.vision.mlp_width
    }

    /// Every parameter by its OpenAI key with its shape: what a checkpoint must hold, no more and no less.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let (vision, text, embed) = (&self.vision, &self.text, self.embed_dim);
        let mut all = vec![
            ("visual.class_embedding".to_owned(), vec![vision.width]),
            ("visual.positional_embedding".to_owned(), vec![self.vision_tokens(), vision.width]),
            ("visual.conv1.weight".to_owned(), vec![vision.width, 3, self.patch_size, self.patch_size]),
            ("visual.proj".to_owned(), vec![vision.width, embed]),
            ("positional_embedding".to_owned(), vec![self.context_length, text.width]),
            ("token_embedding.weight".to_owned(), vec![self.vocab_size, text.width]),
            ("text_projection".to_owned(), vec![text.width, embed]),
            ("logit_scale".to_owned(), vec![]),
        ];
        for (norm, width) in
            [("visual.ln_pre", vision.width), ("visual.ln_post", vision.width), ("ln_final", text.width)]
        {
            all.push((format!("{norm}.weight"), vec![width]));
            all.push((format!("{norm}.bias"), vec![width]));
        }
        for (prefix, tower) in [("visual.", vision), ("", text)] {
            let (width, mlp) = (tower.width, tower.mlp_width);
            for block in 0..tower.layers {
                for (name, shape) in [
                    ("ln_1.weight", vec![width]),
                    ("ln_1.bias", vec![width]),
                    ("attn.in_proj_weight", vec![3 * width, width]),
                    ("attn.in_proj_bias", vec![3 * width]),
                    ("attn.out_proj.weight", vec![width, width]),
                    ("attn.out_proj.bias", vec![width]),
                    ("ln_2.weight", vec![width]),
                    ("ln_2.bias", vec![width]),
                    ("mlp.c_fc.weight", vec![mlp, width]),
                    ("mlp.c_fc.bias", vec![mlp]),
                    ("mlp.c_proj.weight", vec![width, mlp]),
                    ("mlp.c_proj.bias", vec![width]),
                ] {
                    all.push((format!("{prefix}transformer.resblocks.{block}.{name}"), shape));
                }
            }
        }
        all
    }

    /// A preset: `tiny` (64×64 pictures, for tests), `toy` (32×32, for the demo), `vit-b-32`, `vit-l-14`, `vit-h-14`.
    pub fn preset(name: &str) -> Option<Self> {
        let tower = |width, layers, heads, activation| TowerConfig {
            width,
            layers,
            heads,
            mlp_width: 4 * width,
            activation,
            layer_norm_eps: 1e-5,
        };
        let (quick, exact) = (Activation::QuickGelu, Activation::Gelu);
        let (embed_dim, vision, image_size, patch_size, text) = match name {
            "tiny" => (64, tower(128, 4, 2, quick), 64, 16, tower(64, 3, 1, quick)),
            "toy" => (64, tower(128, 2, 2, quick), 32, 8, tower(64, 1, 1, quick)),
            "vit-b-32" => (512, tower(768, 12, 12, quick), 224, 32, tower(512, 12, 8, quick)),
            "vit-l-14" => (768, tower(1024, 24, 16, quick), 224, 14, tower(768, 12, 12, quick)),
            "vit-h-14" => (1024, tower(1280, 32, 16, exact), 224, 14, tower(1024, 24, 16, exact)),
            _ => return None,
        };
        Some(Self {
            embed_dim,
            vision,
            image_size,
            patch_size,
            text,
            context_length: 77,
            vocab_size: 49408,
            end_of_text: EndOfText::HighestId,
        })
    }

    /// Infers everything from the shapes of an OpenAI-layout state dict. Heads: the open_clip towers of width 1280
    /// (H), 1408 (g) and 1664 (bigG) have 16 in vision, every other tower width / 64. Activation: exact GELU for those
    /// three, QuickGELU otherwise.
    ///
    /// # Errors
    /// A missing key, or a width that the head rule cannot divide.
    pub fn from_shapes(shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self> {
        let shape = |key: &str, rank: usize| match shapes.get(key) {
            Some(shape) if shape.len() == rank => Ok(shape.as_slice()),
            Some(shape) => Err(Error::data(format!("tensor `{key}`: want {rank} dimensions, got {shape:?}"))),
            None => Err(Error::data(format!("no tensor `{key}`: this is not a CLIP checkpoint in OpenAI's layout"))
                .hint("models read: Hugging Face CLIP folders, OpenAI and open_clip state dicts")),
        };
        let layers = |prefix: &str| {
            let prefix = format!("{prefix}transformer.resblocks.");
            shapes
                .keys()
                .filter_map(|key| key.strip_prefix(&prefix)?.split('.').next()?.parse::<usize>().ok())
                .max()
                .map_or(0, |last| last + 1)
        };
        let (conv, projection) = (shape("visual.conv1.weight", 4)?, shape("visual.proj", 2)?);
        let (vision_width, patch_size) = (conv[0], conv[2]);
        let positions = shape("visual.positional_embedding", 2)?[0];
        let grid = positions.saturating_sub(1).isqrt();
        if grid == 0 || grid * grid + 1 != positions {
            return Err(Error::data(format!(
                "`visual.positional_embedding`: {positions} positions are no square grid plus one"
            )));
        }
        let text_positions = shape("positional_embedding", 2)?;
        let (context_length, text_width) = (text_positions[0], text_positions[1]);
        let large = matches!(vision_width, 1280 | 1408 | 1664);
        let activation = if large { Activation::Gelu } else { Activation::QuickGelu };
        let tower = |prefix: &str, width: usize, heads: Option<usize>| -> Result<TowerConfig> {
            let heads = heads.unwrap_or(width.div_euclid(64));
            if heads == 0 || !width.is_multiple_of(heads) {
                return Err(Error::data(format!("cannot tell the number of heads of a tower of width {width}"))
                    .hint("give the architecture with --model (a Hugging Face CLIP folder of the same shape)"));
            }
            let mlp_width = shape(&format!("{prefix}transformer.resblocks.0.mlp.c_fc.weight"), 2)?[0];
            Ok(TowerConfig { width, layers: layers(prefix), heads, mlp_width, activation, layer_norm_eps: 1e-5 })
        };
        Ok(Self {
            embed_dim: projection[1],
            vision: tower("visual.", vision_width, large.then_some(16))?,
            image_size: grid * patch_size,
            patch_size,
            text: tower("", text_width, None)?,
            context_length,
            vocab_size: shape("token_embedding.weight", 2)?[0],
            end_of_text: EndOfText::HighestId,
        })
    }

    /// Reads a Hugging Face `CLIPModel` config (transformers 4 and 5), with that library's defaults for absent fields.
    ///
    /// # Errors
    /// Another `model_type`, or a field whose value is not supported, by name.
    pub fn from_hugging_face(config: &Value) -> Result<Self> {
        if let Some(kind) = config.get("model_type").and_then(Value::as_str).filter(|kind| *kind != "clip") {
            return Err(Error::data(format!("config.json: model_type is `{kind}`, want `clip`")));
        }
        let text = section(config, "text_config");
        let vision = section(config, "vision_config");
        let field = |section: &Map<String, Value>, key: &str, default: u64| match section.get(key) {
            None | Some(Value::Null) => Ok(default as usize),
            Some(value) => value
                .as_u64()
                .filter(|number| *number > 0)
                .map(|number| number as usize)
                .ok_or_else(|| Error::data(format!("config.json: `{key}` is {value}, want a positive integer"))),
        };
        let tower = |section: &Map<String, Value>, defaults: [u64; 4]| -> Result<TowerConfig> {
            let activation = match section.get("hidden_act").and_then(Value::as_str) {
                None | Some("quick_gelu") => Activation::QuickGelu,
                Some("gelu") => Activation::Gelu,
                Some(other) => {
                    return Err(Error::data(format!("config.json: hidden_act `{other}` is not supported"))
                        .hint("supported: quick_gelu, gelu"));
                }
            };
            let (width, heads) =
                (field(section, "hidden_size", defaults[0])?, field(section, "num_attention_heads", defaults[1])?);
            if !width.is_multiple_of(heads) {
                return Err(Error::data(format!("config.json: {heads} heads do not divide hidden_size {width}")));
            }
            Ok(TowerConfig {
                width,
                heads,
                layers: field(section, "num_hidden_layers", defaults[2])?,
                mlp_width: field(section, "intermediate_size", defaults[3])?,
                activation,
                layer_norm_eps: section.get("layer_norm_eps").and_then(Value::as_f64).unwrap_or(1e-5),
            })
        };
        let end = text.get("eos_token_id").and_then(Value::as_u64).unwrap_or(49407);
        Ok(Self {
            embed_dim: match config.get("projection_dim") {
                Some(value) if value.is_u64() => value.as_u64().unwrap_or(512) as usize,
                _ => field(&text, "projection_dim", 512)?,
            },
            vision: tower(&vision, [768, 12, 12, 3072])?,
            image_size: field(&vision, "image_size", 224)?,
            patch_size: field(&vision, "patch_size", 32)?,
            text: tower(&text, [512, 8, 12, 2048])?,
            context_length: field(&text, "max_position_embeddings", 77)?,
            vocab_size: field(&text, "vocab_size", 49408)?,
            // 2 was written by mistake for years; transformers pools at the highest id then.
            end_of_text: if end == 2 { EndOfText::HighestId } else { EndOfText::Id(end as u32) },
        })
    }

    /// The `config.json` that `transformers.CLIPModel.from_pretrained` reads.
    pub fn to_hugging_face(&self) -> Value {
        let tower = |tower: &TowerConfig| {
            json!({
                "hidden_size": tower.width,
                "intermediate_size": tower.mlp_width,
                "num_attention_heads": tower.heads,
                "num_hidden_layers": tower.layers,
                "hidden_act": match tower.activation { Activation::QuickGelu => "quick_gelu", Activation::Gelu => "gelu" },
                "layer_norm_eps": tower.layer_norm_eps,
                "projection_dim": self.embed_dim,
                "attention_dropout": 0.0,
            })
        };
        let (mut text, mut vision) = (tower(&self.text), tower(&self.vision));
        text["model_type"] = json!("clip_text_model");
        text["max_position_embeddings"] = json!(self.context_length);
        text["vocab_size"] = json!(self.vocab_size);
        // The highest id is the end token in every CLIP vocabulary; `2` says "pool at the highest id" to transformers.
        text["eos_token_id"] = match self.end_of_text {
            EndOfText::HighestId => json!(2),
            EndOfText::Id(id) => json!(id),
        };
        text["bos_token_id"] = json!(self.vocab_size.saturating_sub(2));
        text["pad_token_id"] = json!(self.vocab_size.saturating_sub(1));
        vision["model_type"] = json!("clip_vision_model");
        vision["image_size"] = json!(self.image_size);
        vision["patch_size"] = json!(self.patch_size);
        vision["num_channels"] = json!(3);
        json!({
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.embed_dim,
            "logit_scale_init_value": 2.6592,
            "text_config": text,
            "vision_config": vision,
            "torch_dtype": "float32",
        })
    }
}

/// What was chosen, for the log: heads and activation may come from a rule.
impl std::fmt::Display for ClipConfig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { embed_dim, vision, image_size, patch_size, text, .. } = self;
        write!(
            formatter,
            "CLIP, {image_size} px in patches of {patch_size}, vision {} × {} with {} heads, text {} × {} with {} heads, {}, embedding {embed_dim}",
            vision.layers,
            vision.width,
            vision.heads,
            text.layers,
            text.width,
            text.heads,
            match vision.activation {
                Activation::QuickGelu => "quick-gelu",
                Activation::Gelu => "gelu",
            },
        )
    }
}

/// `text_config`; where there is a `text_config_dict` (OpenAI's own folders carry both), that alone, as transformers fills it
/// with defaults and lets it win.
fn section(config: &Value, name: &str) -> Map<String, Value> {
    let object = |name: &str| config.get(name).and_then(Value::as_object).cloned();
    object(&format!("{name}_dict")).or_else(|| object(name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_every_preset_give_the_preset_back() {
        for name in ["tiny", "toy", "vit-b-32", "vit-l-14", "vit-h-14"] {
            let config = ClipConfig::preset(name).unwrap();
            let shapes = config.parameters().into_iter().collect();
            assert_eq!(ClipConfig::from_shapes(&shapes).unwrap(), config, "{name}");
            assert_eq!(ClipConfig::from_hugging_face(&config.to_hugging_face()).unwrap(), config, "{name}");
        }
    }

    #[test]
    fn vit_l_14_has_the_published_number_of_parameters() {
        let count = |name| -> usize {
            let parameters = ClipConfig::preset(name).unwrap().parameters();
            parameters.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
        };
        assert_eq!(count("vit-l-14"), 427_616_513);
        assert_eq!(count("vit-b-32"), 151_277_313);
    }

    #[test]
    fn unsupported_values_are_named() {
        let error = ClipConfig::from_hugging_face(&json!({"text_config": {"hidden_act": "relu"}})).unwrap_err();
        assert!(error.to_string().contains("hidden_act `relu`"), "{error}");
    }
}
