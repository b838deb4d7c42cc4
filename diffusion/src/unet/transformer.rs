//! The transformers of the UNet: self-attention, cross-attention to the prompt, and a gated MLP on every pixel (diffusers'
//! `Transformer2DModel` with one `BasicTransformerBlock`).

use tch::Tensor;

use crate::{
    attention::attend,
    layer::{GroupNorm, Handle, LayerNorm, Linear},
    weights::Weights,
};

/// Epsilon of the GroupNorm in front of a transformer: fixed in diffusers.
const NORM_EPS: f64 = 1e-6;

/// The text encoder's hidden states as the UNet takes them.
#[derive(Debug)]
pub struct Context {
    hidden: Tensor,
    /// Keys and values of each cross-attention, by its slot; empty where each call computes its own.
    projected: Vec<[Tensor; 2]>,
}

impl Handle for Context {
    fn handle(&self) -> Self {
        let pair = |pair: &[Tensor; 2]| [pair[0].handle(), pair[1].handle()];
        Self { hidden: self.hidden.handle(), projected: self.projected.iter().map(pair).collect() }
    }
}

impl Context {
    /// `hidden`: `[B, T, cross_attention_dim]`.
    pub(super) fn new(hidden: Tensor) -> Self {
        Self { hidden, projected: Vec::new() }
    }
}

/// Where a transformer is and how large.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) channels: i64,
    pub(super) heads: i64,
    pub(super) context: i64,
    pub(super) groups: i64,
    pub(super) linear_projection: bool,
}

/// A transformer on the pixels of one level.
#[derive(Debug)]
pub(super) struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    norm1: LayerNorm,
    self_attention: Attention,
    norm2: LayerNorm,
    cross_attention: Attention,
    norm3: LayerNorm,
    gate: Linear,
    mlp_out: Linear,
    proj_out: Linear,
    /// The place of this layer's keys and values in [`Context`].
    slot: usize,
}

impl Handle for Transformer {
    fn handle(&self) -> Self {
        Self {
            norm: self.norm.handle(),
            proj_in: self.proj_in.handle(),
            norm1: self.norm1.handle(),
            self_attention: self.self_attention.handle(),
            norm2: self.norm2.handle(),
            cross_attention: self.cross_attention.handle(),
            norm3: self.norm3.handle(),
            gate: self.gate.handle(),
            mlp_out: self.mlp_out.handle(),
            proj_out: self.proj_out.handle(),
            slot: self.slot,
        }
    }
}

impl Transformer {
    pub(super) fn new(weights: &mut Weights, prefix: &str, shape: Shape, slot: usize) -> Self {
        let Shape { channels, heads, context, groups, linear_projection } = shape;
        let block = format!("{prefix}.transformer_blocks.0");
        let mut projection = |name: &str| {
            let name = format!("{prefix}.{name}");
            if linear_projection {
                weights.linear(&name, channels, channels, true)
            } else {
                weights.pointwise(&name, channels, channels)
            }
        };
        let (proj_in, proj_out) = (projection("proj_in"), projection("proj_out"));
        let mut layer_norm = |name: &str| weights.layer_norm(&format!("{block}.{name}"), channels, 1e-5);
        let [norm1, norm2, norm3] = ["norm1", "norm2", "norm3"].map(&mut layer_norm);
        Self {
            norm: weights.group_norm(&format!("{prefix}.norm"), groups, channels, NORM_EPS),
            proj_in,
            norm1,
            self_attention: Attention::new(weights, &format!("{block}.attn1"), channels, channels, heads),
            norm2,
            cross_attention: Attention::new(weights, &format!("{block}.attn2"), channels, context, heads),
            norm3,
            gate: weights.linear(&format!("{block}.ff.net.0.proj"), channels, 8 * channels, true),
            mlp_out: weights.linear(&format!("{block}.ff.net.2"), 4 * channels, channels, true),
            proj_out,
            slot,
        }
    }

    /// Adds this transformer's keys and values to `context`.
    pub(super) fn project(&self, context: &mut Context) {
        debug_assert_eq!(context.projected.len(), self.slot);
        let projected = self.cross_attention.keys_values(&context.hidden);
        context.projected.push(projected);
    }

    /// `x`: `[B, C, H, W]`; gives the same shape and memory format.
    pub(super) fn forward(&self, x: &Tensor, context: &Context) -> Tensor {
        let [batch, channels, height, width] = x.size()[..] else { unreachable!("checked at the UNet's door") };
        // Without a copy where pixels are stored channels last.
        let tokens = self.norm.forward(x).permute([0, 2, 3, 1]).reshape([batch, height * width, channels]);
        let tokens = self.proj_in.forward(&tokens);

        let normed = self.norm1.forward(&tokens);
        let own = self.self_attention.keys_values(&normed);
        let tokens = self.self_attention.forward(&normed, &own).g_add_(&tokens);

        let normed = self.norm2.forward(&tokens);
        let mut attended = match context.projected.get(self.slot) {
            Some(keys_values) => self.cross_attention.forward(&normed, keys_values),
            None => {
                let keys_values = self.cross_attention.keys_values(&context.hidden);
                self.cross_attention.forward(&normed, &keys_values)
            }
        };
        let tokens = attended.g_add_(&tokens);

        // GEGLU (Shazeer, 2020, equation 6).
        let gated = self.gate.forward(&self.norm3.forward(&tokens)).chunk(2, -1);
        let gated = gated[1].gelu("none") * &gated[0];
        let tokens = self.mlp_out.forward(&gated).g_add_(&tokens);

        x + self.proj_out.forward(&tokens).view([batch, height, width, channels]).permute([0, 3, 1, 2])
    }
}

/// Multi-head attention whose queries, keys and values have no bias.
#[derive(Debug)]
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
}

impl Handle for Attention {
    fn handle(&self) -> Self {
        Self {
            to_q: self.to_q.handle(),
            to_k: self.to_k.handle(),
            to_v: self.to_v.handle(),
            to_out: self.to_out.handle(),
            heads: self.heads,
        }
    }
}

impl Attention {
    /// `context`: width of what keys and values are made from.
    fn new(weights: &mut Weights, prefix: &str, channels: i64, context: i64, heads: i64) -> Self {
        Self {
            to_q: weights.linear(&format!("{prefix}.to_q"), channels, channels, false),
            to_k: weights.linear(&format!("{prefix}.to_k"), context, channels, false),
            to_v: weights.linear(&format!("{prefix}.to_v"), context, channels, false),
            to_out: weights.linear(&format!("{prefix}.to_out.0"), channels, channels, true),
            heads,
        }
    }

    /// `source`: `[B, S, width]`; gives keys and values, `[B, S, C]` each.
    fn keys_values(&self, source: &Tensor) -> [Tensor; 2] {
        [self.to_k.forward(source), self.to_v.forward(source)]
    }

    /// `x`: `[B, T, C]`; gives the same shape.
    fn forward(&self, x: &Tensor, [keys, values]: &[Tensor; 2]) -> Tensor {
        self.to_out.forward(&attend(&self.to_q.forward(x), keys, values, self.heads, false))
    }
}
