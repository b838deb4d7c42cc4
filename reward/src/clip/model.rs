//! CLIP on libtorch: both towers split where training starts, so that the frozen part can be run once and kept.

use tch::{Device, Kind, Tensor};

use super::{
    block::{Blocks, LayerNorm, Parameters},
    config::ClipConfig,
    tokenizer::Tokens,
};
use crate::{Result, threads, weights::Checkpoint};

/// How much of a tower is computed already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Nothing: pixels or token ids.
    Input,
    /// Embeddings and this many blocks: token activations `[T, width]`.
    Blocks(usize),
    /// The whole tower: the embedding `[embed_dim]`, not normalised.
    Whole,
}

/// A CLIP whose parameters are tensors on one device.
#[derive(Debug)]
pub struct Clip {
    /// The architecture.
    pub config: ClipConfig,
    /// Every parameter by its OpenAI key.
    pub parameters: Parameters,
    /// Where the parameters are.
    pub device: Device,
    /// The kind activations are computed in.
    pub kind: Kind,
    /// Recompute block activations in the backward pass instead of keeping them.
    pub checkpointing: bool,
    visual: Blocks,
    textual: Blocks,
    ln_pre: LayerNorm,
    ln_post: LayerNorm,
    ln_final: LayerNorm,
}

impl Clip {
    /// Reads all parameters of `checkpoint`: those for which `trained` holds as fp32 leaves with gradients, the others in
    /// `kind` without.
    ///
    /// # Errors
    /// A tensor cannot be read.
    pub fn load(checkpoint: &Checkpoint, device: Device, kind: Kind, trained: impl Fn(&str) -> bool) -> Result<Self> {
        let mut parameters = Parameters::new();
        for (name, shape) in checkpoint.config.parameters() {
            let tensor = checkpoint.tensor(&name, &shape)?.to_device(device);
            let tensor = if trained(&name) { tensor.set_requires_grad(true) } else { tensor.to_kind(kind) };
            parameters.insert(name, tensor);
        }
        let config = checkpoint.config.clone();
        threads::settle(config.largest_product());
        let norm = |name: &str, eps| LayerNorm::new(&parameters, name, eps);
        Ok(Self {
            visual: Blocks::new(&parameters, "visual.", &config.vision, false),
            textual: Blocks::new(&parameters, "", &config.text, true),
            ln_pre: norm("visual.ln_pre", config.vision.layer_norm_eps),
            ln_post: norm("visual.ln_post", config.vision.layer_norm_eps),
            ln_final: norm("ln_final", config.text.layer_norm_eps),
            checkpointing: false,
            config,
            parameters,
            device,
            kind,
        })
    }

    /// Sets every parameter that trains to its value in `checkpoint`, a model of the same architecture.
    ///
    /// # Errors
    /// A tensor cannot be read.
    pub fn load_trained(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        for (name, tensor) in self.parameters.iter_mut().filter(|(_, tensor)| tensor.requires_grad()) {
            let shape: Vec<usize> = tensor.size().iter().map(|size| *size as usize).collect();
            let values = checkpoint.tensor(name, &shape)?;
            tch::no_grad(|| tensor.copy_(&values));
        }
        Ok(())
    }

    /// RGB bytes to normalised pixels. `pictures`: B slices of S·S·3 bytes, HWC; gives `[B, 3, S, S]` on the device.
    pub fn pixels(&self, pictures: &[&[u8]]) -> Tensor {
        let side = self.config.image_size as i64;
        let bytes = Tensor::from_slice(&pictures.concat()).to_device(self.device);
        let unit = bytes.view([-1, side, side, 3]).permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0;
        let channel = |values: [f32; 3]| Tensor::from_slice(&values).to_device(self.device).view([1, 3, 1, 1]);
        let how = &self.config.preprocessing;
        ((unit - channel(how.mean)) / channel(how.std)).contiguous()
    }

    /// Token ids padded with 0 to the longest prompt, `[B, T]` int64, and each prompt's pooled position, `[B]`. Exact, as
    /// attention is causal and the pooled token is the last that counts.
    pub fn token_ids(&self, prompts: &[&Tokens]) -> (Tensor, Tensor) {
        let longest = prompts.iter().map(|tokens| tokens.ids.len()).max().unwrap_or(1);
        let mut ids = vec![0_i64; prompts.len() * longest];
        for (row, tokens) in ids.chunks_mut(longest).zip(prompts) {
            for (slot, id) in row.iter_mut().zip(&tokens.ids) {
                *slot = i64::from(*id);
            }
        }
        let ends: Vec<i64> =
            prompts.iter().map(|tokens| self.config.end_of_text.position(&tokens.ids) as i64).collect();
        let ids = Tensor::from_slice(&ids).view([prompts.len() as i64, longest as i64]);
        (ids.to_device(self.device), Tensor::from_slice(&ends).to_device(self.device))
    }

    /// The image tower from its input to `depth`.
    ///
    /// `pixels`: `[B, 3, S, S]`, normalised; gives `[B, T, width]`, or `[B, embed_dim]` at [`Depth::Whole`].
    pub fn image_prefix(&self, pixels: &Tensor, depth: Depth) -> Tensor {
        match depth {
            Depth::Input => pixels.shallow_clone(),
            Depth::Blocks(blocks) => self.visual.forward(&self.image_tokens(pixels), 0..blocks, false),
            Depth::Whole => self.image_suffix(pixels, Depth::Input),
        }
    }

    /// The image tower from `depth` to the embedding `[B, embed_dim]`, not normalised, fp32.
    ///
    /// `x`: pixels `[B, 3, S, S]` or token activations `[B, T, width]`, as `depth` says.
    pub fn image_suffix(&self, x: &Tensor, depth: Depth) -> Tensor {
        let (x, start) = match depth {
            Depth::Input => (self.image_tokens(x), 0),
            Depth::Blocks(blocks) => (x.shallow_clone(), blocks),
            Depth::Whole => return x.shallow_clone(),
        };
        let class_token = Tensor::zeros([x.size()[0]], (Kind::Int64, self.device));
        let pooled = self.visual.pooled(&x, start, &class_token, self.checkpointing);
        self.project(&self.ln_post.forward(&pooled), "visual.proj")
    }

    /// The text tower from its input to `depth`. `ids`, `ends`: as [`Clip::token_ids`] gives them.
    pub fn text_prefix(&self, ids: &Tensor, ends: &Tensor, depth: Depth) -> Tensor {
        match depth {
            Depth::Input => ids.shallow_clone(),
            Depth::Blocks(blocks) => self.textual.forward(&self.text_tokens(ids), 0..blocks, false),
            Depth::Whole => self.text_suffix(ids, ends, Depth::Input),
        }
    }

    /// The text tower from `depth` to the embedding `[B, embed_dim]`, not normalised, fp32.
    pub fn text_suffix(&self, x: &Tensor, ends: &Tensor, depth: Depth) -> Tensor {
        let (x, start) = match depth {
            Depth::Input => (self.text_tokens(x), 0),
            Depth::Blocks(blocks) => (x.shallow_clone(), blocks),
            Depth::Whole => return x.shallow_clone(),
        };
        let pooled = self.textual.pooled(&x, start, ends, self.checkpointing);
        self.project(&self.ln_final.forward(&pooled), "text_projection")
    }

    /// `exp(logit_scale)`, fp32.
    pub fn logit_scale(&self) -> Tensor {
        self.parameters["logit_scale"].to_kind(Kind::Float).exp()
    }

    fn image_tokens(&self, pixels: &Tensor) -> Tensor {
        let kernel = self.parameters["visual.conv1.weight"].to_kind(self.kind);
        let stride = self.config.patch_size as i64;
        let patches = pixels.to_kind(self.kind).conv2d(&kernel, None::<&Tensor>, [stride, stride], [0, 0], [1, 1], 1);
        let patches = patches.flatten(2, 3).transpose(1, 2);
        let batch = pixels.size()[0];
        let class =
            self.parameters["visual.class_embedding"].to_kind(self.kind).view([1, 1, -1]).expand([batch, 1, -1], false);
        let tokens =
            Tensor::cat(&[class, patches], 1) + self.parameters["visual.positional_embedding"].to_kind(self.kind);
        self.ln_pre.forward(&tokens)
    }

    fn text_tokens(&self, ids: &Tensor) -> Tensor {
        let tokens =
            Tensor::embedding(&self.parameters["token_embedding.weight"], ids, -1, false, false).to_kind(self.kind);
        tokens + self.parameters["positional_embedding"].narrow(0, 0, ids.size()[1]).to_kind(self.kind)
    }

    fn project(&self, pooled: &Tensor, projection: &str) -> Tensor {
        pooled.matmul(&self.parameters[projection].to_kind(pooled.kind())).to_kind(Kind::Float)
    }
}

/// Rows scaled to length 1. `x`: `[B, embed_dim]`.
pub fn unit(x: &Tensor) -> Tensor {
    x / x.norm_scalaropt_dim(2.0, [-1], true)
}
