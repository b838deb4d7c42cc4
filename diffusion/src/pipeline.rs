//! A whole Stable Diffusion: prompts to embeddings, noise to latents, latents to pictures.

use std::{cell::OnceCell, sync::atomic::AtomicBool};

use reward::device::Precision;
use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    conditioning::Conditioning,
    layer::SwitchedOff,
    lora::Lora,
    prompt_encoder::PromptEncoder,
    sample::{Phase, Request, sample, to_bytes},
    source::Source,
    unet::Unet,
    vae::{DecodeOptions, Vae},
};

/// What models compute in where nobody said: bf16 on CUDA, fp32 on a CPU.
pub fn default_precision(device: Device) -> Precision {
    if device.is_cuda() { Precision::Bf16 } else { Precision::Fp32 }
}

/// The models, on one device. Nothing in it trains.
pub struct Pipeline {
    /// Where the models are.
    pub device: Device,
    /// What they compute in.
    pub kind: Kind,
    prompts: PromptEncoder,
    unet: Unet,
    vae: Vae,
    decoding: DecodeOptions,
}

impl Pipeline {
    /// Reads the models strictly; an adapter that belongs to no layer is an error.
    ///
    /// # Errors
    /// A file that is missing or truncated, tensors that do not fit.
    pub fn load(source: &Source, lora: Lora, decoding: DecodeOptions, device: Device, kind: Kind) -> Result<Self> {
        let (config, weights) = source.unet()?;
        let prompts = PromptEncoder::load(source, lora.text, config.cross_attention_dim, (device, kind))?;
        let unet = Unet::new(&config, weights.to(device, kind).adapters(lora.unet))?;
        let (config, weights) = source.vae()?;
        let vae = Vae::new(&config, weights.to(device, kind))?;
        Ok(Self { device, kind, prompts, unet, vae, decoding })
    }

    /// The prompts as the UNet takes them.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn embed(&self, prompts: &[&str]) -> Result<Conditioning> {
        self.prompts.encode(prompts)
    }

    /// The prompts as the UNet takes them, encoded without the text encoder's adapters.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn embed_as_base(&self, prompts: &[&str]) -> Result<Conditioning> {
        self.prompts.encode_as_base(prompts)
    }

    /// Denoises a batch to latents `[B, C, h, w]`, fp32, before the division by the VAE's scaling factor. `finished` is told
    /// the number of steps done.
    ///
    /// # Errors
    /// As [`sample`].
    pub fn denoise(&self, request: &Request, stop: &AtomicBool, finished: impl FnMut(usize)) -> Result<Tensor> {
        // Keys and values of the prompts are the same in every step of a phase; adapters change them.
        let (base, adapted) = (OnceCell::new(), OnceCell::new());
        let unet = |phase, latents: &Tensor, timesteps: &Tensor, prompts: &Conditioning| {
            let (prepared, _off) = match phase {
                Phase::Base => (&base, Some(SwitchedOff::new(&self.unet.parameters.switch))),
                Phase::Adapted => (&adapted, None),
            };
            self.unet.forward_with(latents, timesteps, prepared.get_or_init(|| self.unet.context(prompts)))
        };
        tch::no_grad(|| sample(unet, request, stop, finished))
    }

    /// The picture of latents `[C, h, w]` as rows of RGB triples.
    ///
    /// # Errors
    /// Values that are not finite.
    pub fn decode(&self, latents: &Tensor) -> Result<Vec<u8>> {
        let latents = latents.unsqueeze(0) / self.vae.config.scaling_factor;
        let bytes = to_bytes(&tch::no_grad(|| self.vae.decode_with(&latents, self.decoding)), self.kind)?;
        Vec::try_from(bytes.flatten(0, -1)).map_err(|error| Error::data("pixels").caused_by(error))
    }
}
