//! The levels of the VAE, with diffusers' names: `DownEncoderBlock2D`, `UpDecoderBlock2D`, `UNetMidBlock2D`.

use tch::Tensor;

use crate::{
    attention::attend,
    layer::{Conv2d, GroupNorm, Handle, Linear},
    residual::{Norms, ResidualBlock, enlarged, side},
    weights::Weights,
};

/// Residual blocks of one level and what changes the size after them.
#[derive(Debug)]
pub(super) struct Level {
    resnets: Vec<ResidualBlock>,
    resize: Option<Resize>,
}

#[derive(Debug)]
enum Resize {
    Halve(Conv2d),
    Double(Conv2d),
}

impl Handle for Resize {
    fn handle(&self) -> Self {
        match self {
            Self::Halve(conv) => Self::Halve(conv.handle()),
            Self::Double(conv) => Self::Double(conv.handle()),
        }
    }
}

impl Handle for Level {
    fn handle(&self) -> Self {
        Self { resnets: self.resnets.handle(), resize: self.resize.handle() }
    }
}

impl Level {
    /// Level `level` of the encoder, from the finest; `channels`: in and out.
    pub(super) fn down(
        weights: &mut Weights,
        level: usize,
        channels: [i64; 2],
        layers: i64,
        is_last: bool,
        norms: Norms,
    ) -> Self {
        let (prefix, width) = (format!("encoder.down_blocks.{level}"), channels[1]);
        let resnets = resnets(weights, &prefix, channels, layers, norms);
        let mut halve =
            || Resize::Halve(weights.conv2d(&format!("{prefix}.downsamplers.0.conv"), width, width, 3, 2, 0));
        Self { resnets, resize: (!is_last).then(&mut halve) }
    }

    /// Level `level` of the decoder, from the coarsest; `channels`: in and out.
    pub(super) fn up(
        weights: &mut Weights,
        level: usize,
        channels: [i64; 2],
        layers: i64,
        is_last: bool,
        norms: Norms,
    ) -> Self {
        let (prefix, width) = (format!("decoder.up_blocks.{level}"), channels[1]);
        let resnets = resnets(weights, &prefix, channels, layers, norms);
        let mut double =
            || Resize::Double(weights.conv2d(&format!("{prefix}.upsamplers.0.conv"), width, width, 3, 1, 1));
        Self { resnets, resize: (!is_last).then(&mut double) }
    }

    /// `x`: `[B, in, H, W]`; gives `[B, out, H', W']`.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = x.shallow_clone();
        for resnet in &self.resnets {
            x = resnet.forward(&x, None);
        }
        match &self.resize {
            // One more row and column at the far ends, as the model was trained.
            Some(Resize::Halve(conv)) => conv.forward(&x.constant_pad_nd([0, 1, 0, 1])),
            Some(Resize::Double(conv)) => conv.forward(&enlarged(&x, side(&x).map(|size| 2 * size))),
            None => x,
        }
    }
}

fn resnets(
    weights: &mut Weights,
    prefix: &str,
    [inputs, outputs]: [i64; 2],
    layers: i64,
    norms: Norms,
) -> Vec<ResidualBlock> {
    let inputs = |layer| if layer == 0 { inputs } else { outputs };
    (0..layers)
        .map(|layer| {
            let name = format!("{prefix}.resnets.{layer}");
            ResidualBlock::new(weights, &name, [inputs(layer), outputs], norms, None)
        })
        .collect()
}

/// The coarsest level: attention with one head between two residual blocks.
#[derive(Debug)]
pub(super) struct Middle {
    resnets: [ResidualBlock; 2],
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Handle for Middle {
    fn handle(&self) -> Self {
        let [first, second] = &self.resnets;
        Self {
            resnets: [first.handle(), second.handle()],
            group_norm: self.group_norm.handle(),
            to_q: self.to_q.handle(),
            to_k: self.to_k.handle(),
            to_v: self.to_v.handle(),
            to_out: self.to_out.handle(),
        }
    }
}

impl Middle {
    pub(super) fn new(weights: &mut Weights, prefix: &str, width: i64, norms: Norms) -> Self {
        let resnets = [0, 1].map(|layer| {
            ResidualBlock::new(weights, &format!("{prefix}.resnets.{layer}"), [width, width], norms, None)
        });
        let attention = format!("{prefix}.attentions.0");
        let mut linear = |name: &str| weights.linear(&format!("{attention}.{name}"), width, width, true);
        let [to_q, to_k, to_v, to_out] = ["to_q", "to_k", "to_v", "to_out.0"].map(&mut linear);
        let group_norm = weights.group_norm(&format!("{attention}.group_norm"), norms.groups, width, norms.eps);
        Self { resnets, group_norm, to_q, to_k, to_v, to_out }
    }

    /// `x`: `[B, C, H, W]`; gives the same shape.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.resnets[0].forward(x, None);
        let [height, width] = side(&x);
        let tokens = self.group_norm.forward(&x).flatten(2, 3).transpose(1, 2);
        let [queries, keys, values] = [&self.to_q, &self.to_k, &self.to_v].map(|layer| layer.forward(&tokens));
        let attended = self.to_out.forward(&attend(&queries, &keys, &values, 1, false));
        let x = x + attended.unflatten(1, [height, width]).permute([0, 3, 1, 2]);
        self.resnets[1].forward(&x, None)
    }
}
