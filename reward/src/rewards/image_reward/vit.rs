//! BLIP's vision transformer (timm's: pre-norm, one class token, exact GELU): `models/vit.py` of
//! <https://github.com/salesforce/BLIP>.

use tch::Tensor;

use crate::{
    Error, Result,
    clip::block::{LayerNorm, Linear, Parameters},
    native,
    weights::file::TensorFile,
};

/// Channels of a head in every ViT of BLIP.
const HEAD_WIDTH: usize = 64;
const LAYER_NORM_EPS: f64 = 1e-6;

/// The shape of the picture encoder.
#[derive(Debug, Clone, Copy)]
pub(super) struct VitConfig {
    pub(super) width: usize,
    pub(super) image_size: usize,
    patch_size: usize,
    layers: usize,
    mlp_width: usize,
}

impl VitConfig {
    /// Multiplications of the largest product of one image: the first layer of a block's MLP.
    pub(super) fn largest_product(&self) -> usize {
        self.image_size.div_euclid(self.patch_size).pow(2) * self.width * self.mlp_width
    }

    /// Reads the shape off the tensors under `prefix`.
    pub(super) fn from_shapes(file: &TensorFile, prefix: &str) -> Result<Self> {
        let dimension = |name: &str, rank: usize, at: usize| {
            let shape = file.shapes().get(&format!("{prefix}{name}")).filter(|shape| shape.len() == rank);
            shape.map(|shape| shape[at]).ok_or_else(|| {
                let found = file.path().display();
                Error::data(format!("{found}: no tensor `{prefix}{name}` of {rank} dimensions: this is no ImageReward"))
            })
        };
        let (width, patch_size) =
            (dimension("patch_embed.proj.weight", 4, 0)?, dimension("patch_embed.proj.weight", 4, 2)?);
        let grid = dimension("pos_embed", 3, 1)?.saturating_sub(1).isqrt();
        let blocks = format!("{prefix}blocks.");
        let block = |name: &String| name.strip_prefix(&blocks)?.split('.').next()?.parse::<usize>().ok();
        let layers = file.shapes().keys().filter_map(block).max().map_or(0, |last| last + 1);
        if width == 0 || !width.is_multiple_of(HEAD_WIDTH) {
            return Err(Error::data(format!("{}: a ViT of width {width}, want heads of 64", file.path().display())));
        }
        let mlp_width = dimension("blocks.0.mlp.fc1.weight", 2, 0)?;
        Ok(Self { width, image_size: grid * patch_size, patch_size, layers, mlp_width })
    }

    /// Every parameter with its shape.
    pub(super) fn parameters(&self, prefix: &str) -> Vec<(String, Vec<usize>)> {
        let Self { width, image_size, patch_size, layers, mlp_width } = *self;
        let tokens = image_size.div_euclid(patch_size).pow(2) + 1;
        let linear = |name: &str, output: usize, input: usize| {
            [(format!("{prefix}{name}.weight"), vec![output, input]), (format!("{prefix}{name}.bias"), vec![output])]
        };
        let norm = |name: &str| ["weight", "bias"].map(|part| (format!("{prefix}{name}.{part}"), vec![width]));
        let mut all = vec![
            (format!("{prefix}cls_token"), vec![1, 1, width]),
            (format!("{prefix}pos_embed"), vec![1, tokens, width]),
            (format!("{prefix}patch_embed.proj.weight"), vec![width, 3, patch_size, patch_size]),
            (format!("{prefix}patch_embed.proj.bias"), vec![width]),
        ];
        all.extend(norm("norm"));
        for block in (0..layers).map(|block| format!("blocks.{block}")) {
            all.extend(norm(&format!("{block}.norm1")));
            all.extend(norm(&format!("{block}.norm2")));
            all.extend(linear(&format!("{block}.attn.qkv"), 3 * width, width));
            all.extend(linear(&format!("{block}.attn.proj"), width, width));
            all.extend(linear(&format!("{block}.mlp.fc1"), mlp_width, width));
            all.extend(linear(&format!("{block}.mlp.fc2"), width, mlp_width));
        }
        all
    }
}

/// The tower.
pub(super) struct Vit {
    pub(super) config: VitConfig,
    kernel: Tensor,
    bias: Tensor,
    class_token: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Vit {
    pub(super) fn new(parameters: &Parameters, prefix: &str, config: VitConfig) -> Self {
        let tensor = |name: &str| parameters[&format!("{prefix}{name}")].shallow_clone();
        let block = |index: usize| {
            let name = |part: &str| format!("{prefix}blocks.{index}.{part}");
            let norm = |part: &str| LayerNorm::new(parameters, &name(part), LAYER_NORM_EPS);
            let linear = |part: &str| Linear::named(parameters, &name(part));
            Block {
                norm1: norm("norm1"),
                qkv: linear("attn.qkv"),
                proj: linear("attn.proj"),
                norm2: norm("norm2"),
                fc1: linear("mlp.fc1"),
                fc2: linear("mlp.fc2"),
            }
        };
        Self {
            kernel: tensor("patch_embed.proj.weight"),
            bias: tensor("patch_embed.proj.bias"),
            class_token: tensor("cls_token"),
            positions: tensor("pos_embed"),
            blocks: (0..config.layers).map(block).collect(),
            norm: LayerNorm::new(parameters, &format!("{prefix}norm"), LAYER_NORM_EPS),
            config,
        }
    }

    /// `pixels`: `[B, 3, S, S]`, normalised; gives all tokens, `[B, T, width]`, in the kind of the weights. With `checkpointing` a
    /// block keeps its input only and is computed again in the backward pass.
    pub(super) fn forward(&self, pixels: &Tensor, checkpointing: bool) -> Tensor {
        let (batch, stride) = (pixels.size()[0], self.config.patch_size as i64);
        let pixels = pixels.to_kind(self.kernel.kind());
        let patches = pixels.conv2d(&self.kernel, Some(&self.bias), [stride, stride], [0, 0], [1, 1], 1);
        let class_token = self.class_token.expand([batch, 1, -1], false);
        let mut x = Tensor::cat(&[class_token, patches.flatten(2, 3).transpose(1, 2)], 1) + &self.positions;
        for block in &self.blocks {
            x = if checkpointing {
                let run = block.handle();
                native::checkpoint(&x, &[], move |x| run.forward(x))
            } else {
                block.forward(&x)
            };
        }
        self.norm.forward(&x)
    }
}

impl Block {
    /// The same tensors, for a graph that outlives this.
    fn handle(&self) -> Self {
        Self {
            norm1: self.norm1.handle(),
            qkv: self.qkv.handle(),
            proj: self.proj.handle(),
            norm2: self.norm2.handle(),
            fc1: self.fc1.handle(),
            fc2: self.fc2.handle(),
        }
    }

    /// `x`: `[B, T, width]`; gives the same shape.
    fn forward(&self, x: &Tensor) -> Tensor {
        let [batch, tokens, width] = x.size()[..] else { unreachable!("tokens are [B, T, width]") };
        // [3, B, heads, T, head width]
        let qkv = self.qkv.forward(&self.norm1.forward(x));
        let qkv = qkv.view([batch, tokens, 3, -1, HEAD_WIDTH as i64]).permute([2, 0, 3, 1, 4]);
        let [query, key, value] = [0, 1, 2].map(|part| qkv.get(part));
        let attended =
            Tensor::scaled_dot_product_attention(&query, &key, &value, None::<&Tensor>, 0.0, false, None, false);
        let x = x + self.proj.forward(&attended.transpose(1, 2).reshape([batch, tokens, width]));
        let hidden = self.fc1.forward(&self.norm2.forward(&x)).gelu("none");
        x + self.fc2.forward(&hidden)
    }
}
