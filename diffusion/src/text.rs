//! The text encoder: CLIP's text tower (Radford et al., 2021, section 2.4) up to its final norm, constructed from weights
//! under the key names of transformers' `CLIPTextModel`.

use std::borrow::Cow;

use tch::{Kind, Tensor};

use crate::{
    Result,
    attention::attend,
    config::{Activation, TextConfig},
    layer::{Handle, LayerNorm, Linear},
    weights::{Parameters, Weights},
};

/// The text tower of a CLIP.
#[derive(Debug)]
pub struct TextEncoder {
    /// The architecture.
    pub config: TextConfig,
    /// Handles on every weight and adapter, and the adapters' switch.
    pub parameters: Parameters,
    token_embedding: Tensor,
    position_embedding: Tensor,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
}

/// What all keys of the model begin with; transformers 5 leaves it out.
const PREFIX: &str = "text_model.";

/// The key as transformers before version 5 writes it, and every version reads it.
pub fn full_key(key: &str) -> Cow<'_, str> {
    let known = ["embeddings.", "encoder.", "final_layer_norm."];
    if known.iter().any(|start| key.starts_with(start)) { format!("{PREFIX}{key}").into() } else { key.into() }
}

impl TextEncoder {
    /// Takes every tensor of the architecture from `weights`, whose keys may come without `text_model.`. Position ids, which
    /// older versions of transformers save, are no weights.
    ///
    /// # Errors
    /// As [`Weights::finish`].
    pub fn new(config: &TextConfig, weights: Weights) -> Result<Self> {
        let mut weights = weights.renamed(|key| full_key(key).into_owned());
        weights.ignore("text_model.embeddings.position_ids");
        let width = config.hidden_size;
        let embedding = format!("{PREFIX}embeddings");
        let token_embedding =
            weights.tensor(&format!("{embedding}.token_embedding.weight"), &[config.vocab_size, width]);
        let position_embedding =
            weights.tensor(&format!("{embedding}.position_embedding.weight"), &[config.max_position_embeddings, width]);
        let blocks = (0..config.num_hidden_layers)
            .map(|index| Block::new(&mut weights, &format!("{PREFIX}encoder.layers.{index}"), config))
            .collect();
        let final_norm = weights.layer_norm(&format!("{PREFIX}final_layer_norm"), width, config.layer_norm_eps);
        let parameters = weights.finish()?;
        Ok(Self { config: config.clone(), parameters, token_embedding, position_embedding, blocks, final_norm })
    }

    /// `ids`: `[B, T]` int64, T up to the longest prompt; gives the hidden states after the final norm, `[B, T, width]`, in
    /// fp32.
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        let kind = self.parameters.kind;
        let tokens = Tensor::embedding(&self.token_embedding, ids, -1, false, false).to_kind(kind);
        let mut x = tokens + self.position_embedding.narrow(0, 0, ids.size()[1]).to_kind(kind);
        for block in &self.blocks {
            x = block.forward(&x);
        }
        self.final_norm.forward(&x).to_kind(Kind::Float)
    }
}

/// One pre-norm block with causal attention.
#[derive(Debug)]
struct Block {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: i64,
    activation: Activation,
}

impl Handle for Block {
    fn handle(&self) -> Self {
        Self {
            layer_norm1: self.layer_norm1.handle(),
            q_proj: self.q_proj.handle(),
            k_proj: self.k_proj.handle(),
            v_proj: self.v_proj.handle(),
            out_proj: self.out_proj.handle(),
            layer_norm2: self.layer_norm2.handle(),
            fc1: self.fc1.handle(),
            fc2: self.fc2.handle(),
            ..*self
        }
    }
}

impl Block {
    fn new(weights: &mut Weights, prefix: &str, config: &TextConfig) -> Self {
        let (width, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let mut projection = |name: &str| weights.linear(&format!("{prefix}.self_attn.{name}"), width, width, true);
        let [q_proj, k_proj, v_proj, out_proj] = ["q_proj", "k_proj", "v_proj", "out_proj"].map(&mut projection);
        Self {
            layer_norm1: weights.layer_norm(&format!("{prefix}.layer_norm1"), width, eps),
            q_proj,
            k_proj,
            v_proj,
            out_proj,
            layer_norm2: weights.layer_norm(&format!("{prefix}.layer_norm2"), width, eps),
            fc1: weights.linear(&format!("{prefix}.mlp.fc1"), width, inner, true),
            fc2: weights.linear(&format!("{prefix}.mlp.fc2"), inner, width, true),
            heads: config.num_attention_heads,
            activation: config.hidden_act,
        }
    }

    /// `x`: `[B, T, width]`; gives the same shape.
    fn forward(&self, x: &Tensor) -> Tensor {
        let normed = self.layer_norm1.forward(x);
        let [queries, keys, values] = [&self.q_proj, &self.k_proj, &self.v_proj].map(|layer| layer.forward(&normed));
        let x = self.out_proj.forward(&attend(&queries, &keys, &values, self.heads, true)).g_add_(x);
        let hidden = self.fc1.forward(&self.layer_norm2.forward(&x));
        let hidden = match self.activation {
            // x·σ(1.702 x) = silu(1.702 x) / 1.702
            Activation::QuickGelu => (hidden * 1.702).silu() * (1.0 / 1.702),
            Activation::Gelu => hidden.gelu("none"),
        };
        self.fc2.forward(&hidden).g_add_(&x)
    }
}
