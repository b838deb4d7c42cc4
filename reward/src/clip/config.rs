//! What a CLIP is: inferred from tensor shapes, one of the presets, or read from a folder's files ([`super::hugging_face`],
//! [`super::open_clip`]).

use std::{collections::BTreeMap, fmt, ops::RangeInclusive};

use serde::{Deserialize, Serialize};

use super::preprocessing::Preprocessing;
use crate::{Error, Result};

/// What is believed of a file: beyond the largest CLIP published by far, and little enough to compute with.
pub(super) mod bounds {
    use super::RangeInclusive;

    pub(in crate::clip) const LAYERS: RangeInclusive<usize> = 1..=512;
    pub(in crate::clip) const WIDTH: RangeInclusive<usize> = 1..=1 << 16;
    pub(in crate::clip) const MLP_WIDTH: RangeInclusive<usize> = 1..=1 << 20;
    pub(in crate::clip) const PIXELS: RangeInclusive<usize> = 1..=1 << 14;
    pub(in crate::clip) const CONTEXT: RangeInclusive<usize> = 1..=1 << 16;
    pub(in crate::clip) const VOCABULARY: RangeInclusive<usize> = 1..=1 << 24;
}

/// The MLP's nonlinearity. The two cannot be told apart by tensor shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `x · σ(1.702 x)`: OpenAI's models.
    QuickGelu,
    /// Exact GELU: the open_clip ViT-H, ViT-g and ViT-bigG.
    Gelu,
}

impl Activation {
    /// As it is written in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QuickGelu => "quick-gelu",
            Self::Gelu => "gelu",
        }
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
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
    /// What is done to a picture before the model sees it.
    pub preprocessing: Preprocessing,
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
            preprocessing: Preprocessing::default(),
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
            let number = |key: &String| key.strip_prefix(&prefix)?.split('.').next()?.parse::<usize>().ok();
            let last = shapes.keys().filter_map(|key| Some((number(key)?, key))).max();
            match last {
                Some((number, key)) => bounded(key, number.saturating_add(1), bounds::LAYERS, "blocks"),
                None => Ok(0),
            }
        };
        let (conv, projection) = (shape("visual.conv1.weight", 4)?, shape("visual.proj", 2)?);
        let vision_width = bounded("visual.conv1.weight", conv[0], bounds::WIDTH, "channels")?;
        let patch_size = bounded("visual.conv1.weight", conv[2], bounds::PIXELS, "pixels a patch")?;
        let positions = shape("visual.positional_embedding", 2)?[0];
        let grid = positions.saturating_sub(1).isqrt();
        if grid == 0 || grid * grid + 1 != positions {
            return Err(Error::data(format!(
                "`visual.positional_embedding`: {positions} positions are no square grid plus one"
            )));
        }
        let text_positions = shape("positional_embedding", 2)?;
        let context_length = bounded("positional_embedding", text_positions[0], bounds::CONTEXT, "positions")?;
        let text_width = bounded("positional_embedding", text_positions[1], bounds::WIDTH, "channels")?;
        let large = matches!(vision_width, 1280 | 1408 | 1664);
        let activation = if large { Activation::Gelu } else { Activation::QuickGelu };
        let tower = |prefix: &str, width: usize, heads: Option<usize>| -> Result<TowerConfig> {
            let heads = heads.unwrap_or(width.div_euclid(64));
            if heads == 0 || !width.is_multiple_of(heads) {
                return Err(Error::data(format!("cannot tell the number of heads of a tower of width {width}"))
                    .hint("give the architecture with --model (a Hugging Face CLIP folder of the same shape)"));
            }
            let key = format!("{prefix}transformer.resblocks.0.mlp.c_fc.weight");
            let mlp_width = bounded(&key, shape(&key, 2)?[0], bounds::MLP_WIDTH, "channels")?;
            Ok(TowerConfig { width, layers: layers(prefix)?, heads, mlp_width, activation, layer_norm_eps: 1e-5 })
        };
        Ok(Self {
            embed_dim: bounded("visual.proj", projection[1], bounds::WIDTH, "channels")?,
            vision: tower("visual.", vision_width, large.then_some(16))?,
            image_size: bounded(
                "visual.positional_embedding",
                grid.saturating_mul(patch_size),
                bounds::PIXELS,
                "pixels",
            )?,
            patch_size,
            text: tower("", text_width, None)?,
            context_length,
            vocab_size: bounded(
                "token_embedding.weight",
                shape("token_embedding.weight", 2)?[0],
                bounds::VOCABULARY,
                "tokens",
            )?,
            end_of_text: EndOfText::HighestId,
            preprocessing: Preprocessing::default(),
        })
    }

    /// The activation, of both towers where they differ.
    pub fn activation(&self) -> String {
        let (vision, text) = (self.vision.activation, self.text.activation);
        if vision == text { vision.to_string() } else { format!("{vision} (text: {text})") }
    }
}

/// `found`, if it is in `range`; `key` is the tensor that says so.
fn bounded(key: &str, found: usize, range: RangeInclusive<usize>, of: &str) -> Result<usize> {
    if range.contains(&found) {
        return Ok(found);
    }
    let (least, most) = range.into_inner();
    Err(Error::data(format!("tensor `{key}` makes it {found} {of}, want {least} to {most}")))
}

/// What was chosen, for the log: heads and activation may come from a rule.
impl fmt::Display for ClipConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        let Self { embed_dim, vision, image_size, patch_size, text, preprocessing, .. } = self;
        write!(
            formatter,
            "CLIP, {image_size} px in patches of {patch_size}, vision {} × {} with {} heads, text {} × {} with {} heads, {}, embedding {embed_dim}, {preprocessing}",
            vision.layers,
            vision.width,
            vision.heads,
            text.layers,
            text.width,
            text.heads,
            self.activation(),
        )
    }
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

    /// 1,000,001 blocks, or a width that overflows when it is tripled, would be listed parameter by parameter.
    #[test]
    fn what_a_file_claims_is_bounded_before_it_is_used() {
        let tiny = || ClipConfig::preset("tiny").unwrap().parameters().into_iter().collect::<BTreeMap<_, _>>();
        let refused = |shapes: BTreeMap<String, Vec<usize>>| ClipConfig::from_shapes(&shapes).unwrap_err().to_string();
        let mut shapes = tiny();
        shapes.insert("visual.transformer.resblocks.1000000.ln_1.bias".to_owned(), vec![128]);
        assert!(refused(shapes).contains("`visual.transformer.resblocks.1000000.ln_1.bias` makes it 1000001 blocks"));
        for (key, shape, says) in [
            ("visual.conv1.weight", vec![usize::MAX, 3, 16, 0], "makes it 18446744073709551615 channels"),
            ("visual.conv1.weight", vec![128, 3, 0, 0], "makes it 0 pixels a patch"),
            ("token_embedding.weight", vec![0, 64], "makes it 0 tokens"),
            ("visual.proj", vec![128, 0], "makes it 0 channels"),
        ] {
            let error = refused(tiny().into_iter().chain([(key.to_owned(), shape)]).collect());
            assert!(error.contains(key) && error.contains(says), "{error}");
        }
    }
}
