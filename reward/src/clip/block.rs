//! One pre-norm transformer block on libtorch, shared by both towers, and the tower that stacks them.
//!
//! Parameters are handles to the tensors of a [`Parameters`] map under their OpenAI keys. A block computes in the kind of its
//! input and casts each parameter to it, so fp32 master weights under bf16 activations need nothing else.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::config::{Activation, TowerConfig};
use crate::native;

/// Every parameter of a model by its OpenAI key.
pub type Parameters = BTreeMap<String, Tensor>;

/// `y = x Wᵀ + b`.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// The layer of the tensors `NAME.weight` and `NAME.bias`.
    pub(crate) fn named(parameters: &Parameters, name: &str) -> Self {
        Self::new(parameters, &format!("{name}.weight"), &format!("{name}.bias"))
    }

    fn new(parameters: &Parameters, weight: &str, bias: &str) -> Self {
        Self { weight: parameters[weight].shallow_clone(), bias: parameters[bias].shallow_clone() }
    }

    pub(crate) fn handle(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone() }
    }

    /// `x`: `[.., in]`; gives `[.., out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight.to_kind(x.kind()), Some(&self.bias.to_kind(x.kind())))
    }

    /// Only the output channels `start..start + length`.
    fn rows(&self, x: &Tensor, start: i64, length: i64) -> Tensor {
        let (weight, bias) = (self.weight.narrow(0, start, length), self.bias.narrow(0, start, length));
        x.linear(&weight.to_kind(x.kind()), Some(&bias.to_kind(x.kind())))
    }
}

/// LayerNorm over the last dimension, in fp32 whatever the kind of its input.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(parameters: &Parameters, name: &str, eps: f64) -> Self {
        let part = |part: &str| parameters[&format!("{name}.{part}")].shallow_clone();
        Self { weight: part("weight"), bias: part("bias"), eps }
    }

    pub(crate) fn handle(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), eps: self.eps }
    }

    /// `x`: `[.., width]`; gives the same shape and kind.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        let (weight, bias) = (self.weight.to_kind(Kind::Float), self.bias.to_kind(Kind::Float));
        x.to_kind(Kind::Float)
            .layer_norm(self.weight.size(), Some(&weight), Some(&bias), self.eps, false)
            .to_kind(x.kind())
    }
}

/// One block of either tower.
#[derive(Debug)]
pub(crate) struct Block {
    ln_1: LayerNorm,
    in_proj: Linear,
    out_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
    heads: i64,
    activation: Activation,
    causal: bool,
    parameters: Vec<Tensor>,
}

impl Block {
    fn new(parameters: &Parameters, prefix: &str, config: &TowerConfig, causal: bool) -> Self {
        let linear = |name: &str| Linear::named(parameters, &format!("{prefix}.{name}"));
        let norm = |name: &str| LayerNorm::new(parameters, &format!("{prefix}.{name}"), config.layer_norm_eps);
        let own = format!("{prefix}.");
        Self {
            ln_1: norm("ln_1"),
            in_proj: Linear::new(
                parameters,
                &format!("{prefix}.attn.in_proj_weight"),
                &format!("{prefix}.attn.in_proj_bias"),
            ),
            out_proj: linear("attn.out_proj"),
            ln_2: norm("ln_2"),
            c_fc: linear("mlp.c_fc"),
            c_proj: linear("mlp.c_proj"),
            heads: config.heads as i64,
            activation: config.activation,
            causal,
            parameters: parameters
                .range(own.clone()..)
                .take_while(|(name, _)| name.starts_with(&own))
                .map(|(_, tensor)| tensor.shallow_clone())
                .collect(),
        }
    }

    /// Another handle on the same parameters, for a graph node that outlives this call.
    fn handle(&self) -> Self {
        Self {
            ln_1: self.ln_1.handle(),
            in_proj: self.in_proj.handle(),
            out_proj: self.out_proj.handle(),
            ln_2: self.ln_2.handle(),
            c_fc: self.c_fc.handle(),
            c_proj: self.c_proj.handle(),
            parameters: Vec::new(),
            ..*self
        }
    }

    /// `x`: `[B, T, width]`; gives the same shape.
    fn forward(&self, x: &Tensor) -> Tensor {
        let qkv = self.in_proj.forward(&self.ln_1.forward(x)).chunk(3, -1);
        let [query, key, value] = [0, 1, 2].map(|part: usize| self.split_heads(&qkv[part]));
        let attended =
            Tensor::scaled_dot_product_attention(&query, &key, &value, None::<&Tensor>, 0.0, self.causal, None, false);
        self.finish(x, &attended)
    }

    /// The block's output at one position per row only: queries, output projection and MLP are computed for that token
    /// alone, keys and values for all.
    ///
    /// `x`: `[B, T, width]`; `position`: `[B]` int64 in `0..T`; gives `[B, 1, width]`.
    fn forward_at(&self, x: &Tensor, position: &Tensor) -> Tensor {
        let width = x.size()[2];
        let normed = self.ln_1.forward(x);
        let index = position.view([-1, 1, 1]).expand([-1, 1, width], false);
        let query = self.split_heads(&self.in_proj.rows(&normed.gather(1, &index, false), 0, width));
        let key_value = self.in_proj.rows(&normed, width, 2 * width).chunk(2, -1);
        let [key, value] = [0, 1].map(|part: usize| self.split_heads(&key_value[part]));
        // [B, 1, 1, T]: a causal query sees the positions up to its own.
        let mask = self.causal.then(|| {
            let positions = Tensor::arange(x.size()[1], (Kind::Int64, x.device()));
            positions.unsqueeze(0).le_tensor(&position.unsqueeze(1)).view([-1, 1, 1, x.size()[1]])
        });
        let attended =
            Tensor::scaled_dot_product_attention(&query, &key, &value, mask.as_ref(), 0.0, false, None, false);
        self.finish(&x.gather(1, &index, false), &attended)
    }

    /// `[B, T, width]` to `[B, heads, T, width / heads]`.
    fn split_heads(&self, x: &Tensor) -> Tensor {
        let [batch, tokens, width] = x.size()[..] else { unreachable!("checked at the tower's door") };
        x.view([batch, tokens, self.heads, width.div_euclid(self.heads)]).transpose(1, 2)
    }

    /// The rest of the block, after attention. Fresh memory costs a page fault for every 4 KiB, so what can be is done
    /// in place. Autograd keeps no output of a linear layer.
    fn finish(&self, residual: &Tensor, attended: &Tensor) -> Tensor {
        let attended = attended.transpose(1, 2).reshape(residual.size());
        let x = self.out_proj.forward(&attended).g_add_(residual);
        let mut hidden = self.c_fc.forward(&self.ln_2.forward(&x));
        let hidden = match self.activation {
            // x·σ(1.702 x) = silu(1.702 x) / 1.702, which is fused; its backward pass wants its input.
            Activation::QuickGelu => {
                let mut scaled = hidden.g_mul_scalar_(1.702);
                if scaled.requires_grad() { scaled.silu() } else { scaled.silu_() }.g_mul_scalar_(1.0 / 1.702)
            }
            Activation::Gelu if hidden.requires_grad() => hidden.gelu("none"),
            Activation::Gelu => hidden.gelu_("none"),
        };
        self.c_proj.forward(&hidden).g_add_(&x)
    }
}

/// The blocks of one tower.
#[derive(Debug)]
pub(crate) struct Blocks(Vec<Block>);

impl Blocks {
    /// `prefix`: `visual.` or empty.
    pub(crate) fn new(parameters: &Parameters, prefix: &str, config: &TowerConfig, causal: bool) -> Self {
        let block = |index| Block::new(parameters, &format!("{prefix}transformer.resblocks.{index}"), config, causal);
        Self((0..config.layers).map(block).collect())
    }

    /// Blocks `range` on all tokens. `x`: `[B, T, width]`. With `checkpointing` a block keeps its input only and is
    /// computed again in the backward pass.
    pub(crate) fn forward(&self, x: &Tensor, range: std::ops::Range<usize>, checkpointing: bool) -> Tensor {
        let mut x = x.shallow_clone();
        for block in &self.0[range] {
            x = if checkpointing {
                let run = block.handle();
                native::checkpoint(&x, &block.parameters, move |x| run.forward(x))
            } else {
                block.forward(&x)
            };
        }
        x
    }

    /// Blocks from `start` on, the last one at `position` (`[B]`) only: `[B, T, width]` to `[B, width]`.
    pub(crate) fn pooled(&self, x: &Tensor, start: usize, position: &Tensor, checkpointing: bool) -> Tensor {
        let Some(last) = self.0.len().checked_sub(1).filter(|last| start <= *last) else {
            let index = position.view([-1, 1, 1]).expand([-1, 1, x.size()[2]], false);
            return x.gather(1, &index, false).squeeze_dim(1);
        };
        let x = self.forward(x, start..last, checkpointing);
        self.0[last].forward_at(&x, position).squeeze_dim(1)
    }
}
