//! BLIP's BERT: post-norm encoder layers, each with cross-attention to the picture between self-attention and MLP, without
//! token types. `models/med.py` of <https://github.com/salesforce/BLIP>.

use std::path::Path;

use tch::{Kind, Tensor};

use crate::{
    Result,
    clip::block::{LayerNorm, Linear, Parameters},
    json::{self, Section},
};

pub(super) const PREFIX: &str = "blip.text_encoder.";

/// What is read of `med_config.json`; the rest of it concerns training.
#[derive(Debug, Clone)]
pub(super) struct BertConfig {
    pub(super) hidden_size: usize,
    pub(super) vocab_size: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    layer_norm_eps: f64,
}

impl BertConfig {
    pub(super) fn read(path: &Path) -> Result<Self> {
        Self::parse(path).map_err(|error| error.hint("want med_config.json of THUDM/ImageReward"))
    }

    fn parse(path: &Path) -> Result<Self> {
        let document = json::read(path)?;
        let config = Section::of(path.display().to_string(), &document)?;
        let given = |key: &str, range| config.whole(key, range)?.ok_or_else(|| config.wrong(key, "a number"));
        if config.text("hidden_act")? != Some("gelu") {
            return Err(config.wrong("hidden_act", "\"gelu\""));
        }
        let hidden_size = given("hidden_size", 1..=1 << 16)?;
        let num_attention_heads = given("num_attention_heads", 1..=hidden_size)?;
        if !hidden_size.is_multiple_of(num_attention_heads) {
            return Err(config.wrong("num_attention_heads", format!("a divisor of `hidden_size` {hidden_size}")));
        }
        let layer_norm_eps = config.number("layer_norm_eps", f64::MIN_POSITIVE..=1.0)?;
        Ok(Self {
            hidden_size,
            num_attention_heads,
            vocab_size: given("vocab_size", 1..=1 << 24)?,
            num_hidden_layers: given("num_hidden_layers", 1..=512)?,
            intermediate_size: given("intermediate_size", 1..=1 << 20)?,
            max_position_embeddings: given("max_position_embeddings", super::MAX_LENGTH..=1 << 16)?,
            layer_norm_eps: layer_norm_eps.ok_or_else(|| config.wrong("layer_norm_eps", "a number"))?,
        })
    }

    /// Every parameter with its shape. `picture`: channels of the picture's tokens.
    pub(super) fn parameters(&self, prefix: &str, picture: usize) -> Vec<(String, Vec<usize>)> {
        let width = self.hidden_size;
        let linear = |name: String, output: usize, input: usize| {
            [(format!("{prefix}{name}.weight"), vec![output, input]), (format!("{prefix}{name}.bias"), vec![output])]
        };
        let norm = |name: String| ["weight", "bias"].map(|part| (format!("{prefix}{name}.{part}"), vec![width]));
        let mut all = vec![
            (format!("{prefix}embeddings.word_embeddings.weight"), vec![self.vocab_size, width]),
            (format!("{prefix}embeddings.position_embeddings.weight"), vec![self.max_position_embeddings, width]),
        ];
        all.extend(norm("embeddings.LayerNorm".to_owned()));
        for layer in (0..self.num_hidden_layers).map(|layer| format!("encoder.layer.{layer}")) {
            for (attention, read) in [("attention", width), ("crossattention", picture)] {
                let attention = format!("{layer}.{attention}");
                all.extend(linear(format!("{attention}.self.query"), width, width));
                all.extend(linear(format!("{attention}.self.key"), width, read));
                all.extend(linear(format!("{attention}.self.value"), width, read));
                all.extend(linear(format!("{attention}.output.dense"), width, width));
                all.extend(norm(format!("{attention}.output.LayerNorm")));
            }
            all.extend(linear(format!("{layer}.intermediate.dense"), self.intermediate_size, width));
            all.extend(linear(format!("{layer}.output.dense"), width, self.intermediate_size));
            all.extend(norm(format!("{layer}.output.LayerNorm")));
        }
        all
    }
}

/// The encoder.
pub(super) struct Bert {
    words: Tensor,
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

struct Layer {
    attention: Attention,
    cross: Attention,
    intermediate: Linear,
    output: Linear,
    norm: LayerNorm,
}

struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    norm: LayerNorm,
    heads: i64,
}

impl Bert {
    pub(super) fn new(parameters: &Parameters, config: &BertConfig) -> Self {
        let tensor = |name: &str| parameters[&format!("{PREFIX}embeddings.{name}.weight")].shallow_clone();
        let norm = |name: &str| LayerNorm::new(parameters, &format!("{PREFIX}{name}"), config.layer_norm_eps);
        let linear = |name: &str| Linear::named(parameters, &format!("{PREFIX}{name}"));
        let attention = |name: &str| Attention {
            query: linear(&format!("{name}.self.query")),
            key: linear(&format!("{name}.self.key")),
            value: linear(&format!("{name}.self.value")),
            dense: linear(&format!("{name}.output.dense")),
            norm: norm(&format!("{name}.output.LayerNorm")),
            heads: config.num_attention_heads as i64,
        };
        let layer = |index: usize| {
            let name = format!("encoder.layer.{index}");
            Layer {
                attention: attention(&format!("{name}.attention")),
                cross: attention(&format!("{name}.crossattention")),
                intermediate: linear(&format!("{name}.intermediate.dense")),
                output: linear(&format!("{name}.output.dense")),
                norm: norm(&format!("{name}.output.LayerNorm")),
            }
        };
        Self {
            words: tensor("word_embeddings"),
            positions: tensor("position_embeddings"),
            norm: norm("embeddings.LayerNorm"),
            layers: (0..config.num_hidden_layers).map(layer).collect(),
        }
    }

    /// `ids`: `[B, T]` int64; `stands`: `[B, T]` bool, false at padding; `picture`: `[B, P, picture width]`; gives
    /// `[B, T, width]`.
    pub(super) fn forward(&self, ids: &Tensor, stands: &Tensor, picture: &Tensor) -> Tensor {
        let words = Tensor::embedding(&self.words, ids, -1, false, false);
        let mut x = self.norm.forward(&(words + self.positions.narrow(0, 0, ids.size()[1])));
        // [B, 1, 1, T]
        let stands = stands.unsqueeze(1).unsqueeze(1).to_kind(Kind::Bool);
        for layer in &self.layers {
            x = layer.attention.forward(&x, &x, Some(&stands));
            x = layer.cross.forward(&x, picture, None);
            let hidden = layer.intermediate.forward(&x).gelu("none");
            x = layer.norm.forward(&(layer.output.forward(&hidden) + x));
        }
        x
    }
}

impl Attention {
    /// `x`: `[B, T, width]`; `read`: `[B, P, ..]`, what it attends to; gives the shape of `x`.
    fn forward(&self, x: &Tensor, read: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let split = |x: Tensor| {
            let [batch, tokens, width] = x.size()[..] else { unreachable!("tokens are [B, T, width]") };
            x.view([batch, tokens, self.heads, width.div_euclid(self.heads)]).transpose(1, 2)
        };
        let (query, key, value) =
            (split(self.query.forward(x)), split(self.key.forward(read)), split(self.value.forward(read)));
        let attended = Tensor::scaled_dot_product_attention(&query, &key, &value, mask, 0.0, false, None, false);
        let attended = attended.transpose(1, 2).reshape(x.size());
        self.norm.forward(&(self.dense.forward(&attended) + x))
    }
}
