//! The models of a run, loaded once.

use std::collections::BTreeMap;

use reward::event::{Event, Observer};
use tch::{Device, Kind, Tensor};

use super::config::{FinetuneConfig, Train};
use crate::{
    Error, Result,
    layer::Adapter,
    lora::{Lora, fresh},
    source::Source,
    unet::Unet,
    vae::Vae,
};

/// What a run computes with.
pub(super) struct Models {
    /// With adapters that train, or weights that do.
    pub(super) unet: Unet,
    /// The UNet before training, where switching adapters off does not give it.
    pub(super) base: Option<Unet>,
    /// The VAE, whose decoder gives the images.
    pub(super) vae: Vae,
    /// Adapters of the text encoder in the file that the run starts from: applied, not trained, and saved again.
    pub(super) text_adapters: BTreeMap<String, Adapter>,
    /// Channels, height and width of the latents.
    pub(super) latents: [i64; 3],
}

impl Models {
    /// Reads UNet and VAE as `config` wants them.
    ///
    /// # Errors
    /// Files that do not fit, a LoRA of another base, a size the VAE cannot make.
    pub(super) fn load(config: &FinetuneConfig, source: &Source, device: Device, kind: Kind) -> Result<Self> {
        let mut adapters = Lora::default();
        if config.train == Train::Lora {
            let layers = source.layers()?;
            adapters = match config.lora.is_empty() {
                false => trainable(Lora::open_all(&config.lora, &layers, 1.0)?),
                true => {
                    let alpha = config.lora_alpha.unwrap_or(config.lora_rank as f64);
                    let unet = fresh(&layers.unet, &config.lora_targets, config.lora_rank, alpha, config.seed)?;
                    Lora { unet, text: BTreeMap::new() }
                }
            };
        }
        let read = |source: &Source| -> Result<_> {
            let (unet, weights) = source.unet()?;
            Ok((unet, weights.to(device, kind)))
        };
        let full = config.train == Train::Full;
        let (unet_config, weights) = read(source)?;
        let unet = Unet::new(&unet_config, weights.trained(full).adapters(adapters.unet))?;
        if unet.parameters.trained().is_empty() {
            let files: Vec<String> = config.lora.iter().map(ToString::to_string).collect();
            let text = format!("{}: no adapter of the UNet in this file, so nothing would train", files.join(", "));
            return Err(Error::data(text)
                .hint("adapters of a text encoder alone cannot be trained; leave `lora` out for new ones"));
        }
        let base = if full && config.watches_base() {
            let (unet_config, weights) = read(source)?;
            Some(Unet::new(&unet_config, weights)?)
        } else {
            None
        };
        let (vae_config, weights) = source.vae()?;
        let vae = Vae::new(&vae_config, weights.to(device, kind).trained(config.vae_steps > 0))?;
        if vae_config.latent_channels != unet_config.channels {
            let text = format!(
                "{}: the VAE has {} latent channels, the UNet {}",
                source.model(),
                vae_config.latent_channels,
                unet_config.channels
            );
            return Err(Error::data(text).hint("are its parts of different models?"));
        }
        let ([native_height, native_width], factor) = (unet_config.sample_size, vae_config.factor());
        let side = |name: &str, asked: Option<usize>, native: i64| {
            let side = asked.map_or(native * factor, |asked| asked as i64);
            if side > 0 && side % factor == 0 {
                return Ok(side.div_euclid(factor));
            }
            Err(Error::usage(format!("{name} = {side}: want a multiple of {factor}, as the VAE of this model needs")))
        };
        let (height, width) =
            (side("height", config.height, native_height)?, side("width", config.width, native_width)?);
        let latents = [unet_config.channels, height, width];
        Ok(Self { unet, base, vae, text_adapters: adapters.text, latents })
    }
}

impl Models {
    /// What a user of `config.lora` may not expect.
    pub(super) fn tell(&self, config: &FinetuneConfig, observer: &dyn Observer) {
        if config.lora.len() > 1 {
            let text = format!(
                "{} LoRAs are joined into one, their sum, which trains and is saved as a whole",
                config.lora.len()
            );
            observer.event(&Event::Note(&text));
        }
        if !self.text_adapters.is_empty() {
            let text = "the LoRA's adapters of the text encoder are applied and saved again; those of the UNet train";
            observer.event(&Event::Note(text));
        }
    }
}

/// Adapters of a file as leaves.
fn trainable(lora: Lora) -> Lora {
    let leaf = |tensor: &Tensor| tensor.detach().set_requires_grad(true);
    let unet = lora
        .unet
        .into_iter()
        .map(|(layer, Adapter { down, up, scale })| (layer, Adapter { down: leaf(&down), up: leaf(&up), scale }));
    Lora { unet: unet.collect(), ..lora }
}
