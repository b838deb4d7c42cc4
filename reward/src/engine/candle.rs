//! CLIP on candle: scoring without libtorch, and the independent second forward that tests hold the first one against.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::Engine;
use crate::{
    Error, Result,
    clip::{
        config::{Activation, ClipConfig, TowerConfig},
        tokenizer::Tokens,
    },
    weights::Checkpoint,
};

/// A CLIP in fp32 on the CPU.
pub struct Candle {
    config: ClipConfig,
    parameters: HashMap<String, Tensor>,
    label: String,
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::data("candle").caused_by(error)
    }
}

impl Candle {
    /// Reads all parameters.
    ///
    /// # Errors
    /// A tensor cannot be read.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self> {
        let mut parameters = HashMap::new();
        for parameter in checkpoint.parameters() {
            let (name, shape, values) = parameter?;
            parameters.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        Ok(Self { config: checkpoint.config.clone(), parameters, label: checkpoint.label() })
    }

    fn linear(&self, x: &Tensor, weight: &str, bias: &str) -> candle_core::Result<Tensor> {
        x.broadcast_matmul(&self.parameters[weight].t()?)?.broadcast_add(&self.parameters[bias])
    }

    fn norm(&self, x: &Tensor, name: &str, eps: f64) -> candle_core::Result<Tensor> {
        let part = |part: &str| &self.parameters[&format!("{name}.{part}")];
        candle_nn::ops::layer_norm(&x.contiguous()?, part("weight"), part("bias"), eps as f32)
    }

    /// `x`: `[B, T, width]` through all blocks of the tower with this prefix.
    fn blocks(&self, x: Tensor, prefix: &str, tower: &TowerConfig, causal: bool) -> candle_core::Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        let head_width = width.div_euclid(tower.heads);
        let mask: Vec<f32> = (0..tokens * tokens)
            .map(|at| if at % tokens > at.div_euclid(tokens) { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let mask = Tensor::from_vec(mask, (tokens, tokens), &Device::Cpu)?;
        let mut x = x;
        for block in 0..tower.layers {
            let key = |name: &str| format!("{prefix}transformer.resblocks.{block}.{name}");
            let linear =
                |x: &Tensor, name: &str| self.linear(x, &key(&format!("{name}.weight")), &key(&format!("{name}.bias")));
            let normed = self.norm(&x, &key("ln_1"), tower.layer_norm_eps)?;
            let qkv = self.linear(&normed, &key("attn.in_proj_weight"), &key("attn.in_proj_bias"))?;
            let head = |part: usize| {
                let part = qkv.narrow(D::Minus1, part * width, width)?;
                part.reshape((batch, tokens, tower.heads, head_width))?.transpose(1, 2)?.contiguous()
            };
            let scores = (head(0)?.matmul(&head(1)?.t()?)? * (head_width as f64).powf(-0.5))?;
            let scores = if causal { scores.broadcast_add(&mask)? } else { scores };
            let attended =
                softmax_last_dim(&scores)?.matmul(&head(2)?)?.transpose(1, 2)?.reshape((batch, tokens, width))?;
            x = (x + linear(&attended, "attn.out_proj")?)?;
            let hidden = linear(&self.norm(&x, &key("ln_2"), tower.layer_norm_eps)?, "mlp.c_fc")?;
            let hidden = match tower.activation {
                Activation::QuickGelu => (&hidden * candle_nn::ops::sigmoid(&(&hidden * 1.702)?)?)?,
                Activation::Gelu => hidden.gelu_erf()?,
            };
            x = (x + linear(&hidden, "mlp.c_proj")?)?;
        }
        Ok(x)
    }

    /// `pixels`: `[B, 3, S, S]`, normalised; gives `[B, embed_dim]`, not normalised.
    ///
    /// # Errors
    /// A shape that does not fit.
    pub fn image_embeddings(&self, pixels: &Tensor) -> Result<Tensor> {
        let vision = &self.config.vision;
        let patches = pixels.conv2d(&self.parameters["visual.conv1.weight"], 0, self.config.patch_size, 1, 1)?;
        let patches = patches.flatten_from(2)?.transpose(1, 2)?;
        let class = self.parameters["visual.class_embedding"].reshape((1, 1, vision.width))?;
        let class = class.broadcast_as((pixels.dim(0)?, 1, vision.width))?;
        let tokens =
            Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.parameters["visual.positional_embedding"])?;
        let tokens = self.norm(&tokens, "visual.ln_pre", vision.layer_norm_eps)?;
        let tokens = self.blocks(tokens, "visual.", vision, false)?;
        let pooled = self.norm(&tokens.narrow(1, 0, 1)?.squeeze(1)?, "visual.ln_post", vision.layer_norm_eps)?;
        Ok(pooled.matmul(&self.parameters["visual.proj"])?)
    }

    /// Gives `[B, embed_dim]`, not normalised.
    ///
    /// # Errors
    /// A token id outside the vocabulary.
    pub fn text_embeddings(&self, prompts: &[&Tokens]) -> Result<Tensor> {
        let text = &self.config.text;
        let longest = prompts.iter().map(|tokens| tokens.ids.len()).max().unwrap_or(1);
        let ids: Vec<u32> = prompts
            .iter()
            .flat_map(|tokens| tokens.ids.iter().copied().chain(std::iter::repeat(0)).take(longest))
            .collect();
        let tokens = self.parameters["token_embedding.weight"].index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?;
        let tokens = tokens.reshape((prompts.len(), longest, text.width))?;
        let tokens = tokens.broadcast_add(&self.parameters["positional_embedding"].narrow(0, 0, longest)?)?;
        let tokens = self.blocks(tokens, "", text, true)?;
        let mut pooled = Vec::new();
        for (row, prompt) in prompts.iter().enumerate() {
            pooled.push(tokens.get(row)?.get(self.config.end_of_text.position(&prompt.ids))?);
        }
        let pooled = self.norm(&Tensor::stack(&pooled, 0)?, "ln_final", text.layer_norm_eps)?;
        Ok(pooled.matmul(&self.parameters["text_projection"])?)
    }

    /// RGB bytes to normalised pixels `[B, 3, S, S]`, as the libtorch forward has them.
    fn pixels(&self, pictures: &[&[u8]]) -> candle_core::Result<Tensor> {
        let side = self.config.image_size;
        let bytes = Tensor::from_vec(pictures.concat(), (pictures.len(), side, side, 3), &Device::Cpu)?;
        let unit = (bytes.permute((0, 3, 1, 2))?.to_dtype(DType::F32)? / 255.0)?;
        let channel = |values: &[f32; 3]| Tensor::new(values, &Device::Cpu)?.reshape((1, 3, 1, 1));
        let how = &self.config.preprocessing;
        unit.broadcast_sub(&channel(&how.mean)?)?.broadcast_div(&channel(&how.std)?)
    }
}

fn unit(x: &Tensor) -> Result<Vec<Vec<f32>>> {
    Ok(x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)?.to_vec2()?)
}

impl Engine for Candle {
    fn label(&self) -> &str {
        &self.label
    }

    fn config(&self) -> &ClipConfig {
        &self.config
    }

    fn images(&self, pictures: &[&[u8]]) -> Result<Vec<Vec<f32>>> {
        unit(&self.image_embeddings(&self.pixels(pictures)?)?)
    }

    fn texts(&self, prompts: &[&Tokens]) -> Result<Vec<Vec<f32>>> {
        unit(&self.text_embeddings(prompts)?)
    }
}
