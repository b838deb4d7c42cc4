//! The residual block of the UNet and the VAE, and the layers that change the size (diffusers' `ResnetBlock2D`,
//! `Downsample2D`, `Upsample2D`).

use tch::Tensor;

use crate::{
    layer::{Conv2d, GroupNorm, Handle, Linear},
    weights::Weights,
};

/// Two convolutions around what the time step adds, plus the input.
#[derive(Debug)]
pub(crate) struct ResidualBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

/// What residual blocks of one model have in common.
#[derive(Clone, Copy)]
pub(crate) struct Norms {
    pub(crate) groups: i64,
    pub(crate) eps: f64,
}

impl Handle for ResidualBlock {
    fn handle(&self) -> Self {
        Self {
            norm1: self.norm1.handle(),
            conv1: self.conv1.handle(),
            time_emb_proj: self.time_emb_proj.handle(),
            norm2: self.norm2.handle(),
            conv2: self.conv2.handle(),
            conv_shortcut: self.conv_shortcut.handle(),
        }
    }
}

impl ResidualBlock {
    /// `time`: width of the time embedding, where there is one.
    pub(crate) fn new(
        weights: &mut Weights,
        prefix: &str,
        [inputs, outputs]: [i64; 2],
        norms: Norms,
        time: Option<i64>,
    ) -> Self {
        Self {
            norm1: weights.group_norm(&format!("{prefix}.norm1"), norms.groups, inputs, norms.eps),
            conv1: weights.conv2d(&format!("{prefix}.conv1"), inputs, outputs, 3, 1, 1),
            time_emb_proj: time.map(|width| weights.linear(&format!("{prefix}.time_emb_proj"), width, outputs, true)),
            norm2: weights.group_norm(&format!("{prefix}.norm2"), norms.groups, outputs, norms.eps),
            conv2: weights.conv2d(&format!("{prefix}.conv2"), outputs, outputs, 3, 1, 1),
            conv_shortcut: (inputs != outputs)
                .then(|| weights.conv2d(&format!("{prefix}.conv_shortcut"), inputs, outputs, 1, 1, 0)),
        }
    }

    /// `x`: `[B, in, H, W]`; `time`: SiLU of the time embedding, `[B, width]`; gives `[B, out, H, W]`.
    pub(crate) fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Tensor {
        let mut hidden = self.conv1.forward(&self.norm1.forward_silu(x));
        if let (Some(projection), Some(time)) = (&self.time_emb_proj, time) {
            hidden = hidden.g_add_(&projection.forward(time).unsqueeze(-1).unsqueeze(-1));
        }
        let mut hidden = self.conv2.forward(&self.norm2.forward_silu(&hidden));
        match &self.conv_shortcut {
            Some(shortcut) => hidden.g_add_(&shortcut.forward(x)),
            None => hidden.g_add_(x),
        }
    }
}

/// `x` enlarged to `size` (height, width) by repeating its pixels.
pub(crate) fn enlarged(x: &Tensor, size: [i64; 2]) -> Tensor {
    x.upsample_nearest2d(size, None, None)
}

/// Height and width of `[B, C, H, W]`.
pub(crate) fn side(x: &Tensor) -> [i64; 2] {
    let size = x.size();
    [size[2], size[3]]
}
