//! Everything `diffusion generate` is told. One struct: the TOML file, the flags and the saved `config.toml` share its names.

use std::{num::NonZeroUsize, path::PathBuf};

use reward::{
    device::{DeviceName, Precision},
    run::changed_settings,
    world::shard::Shard,
};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    lora::{LoraSpec, one_or_several},
    schedule::SamplerName,
};

/// The settings of `diffusion generate`. Defaults are those of diffusers' `StableDiffusionPipeline` where it has them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateConfig {
    /// The model: folder, single file, hub id or `random:NAME`.
    pub model: Option<String>,
    /// Prompts, or else
    pub prompt: Vec<String>,
    /// a file of them.
    pub prompts: Option<PathBuf>,
    /// Receives the images.
    pub output: Option<PathBuf>,
    /// Images of every prompt.
    pub images_per_prompt: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Classifier-free guidance; at 1 there is no unconditional pass.
    pub guidance_scale: f64,
    /// Takes the place of the empty prompt in guidance.
    pub negative_prompt: String,
    /// The sampler.
    #[serde(with = "by_name")]
    pub scheduler: SamplerName,
    /// DDIM's noise, 0..=1.
    pub eta: f64,
    /// In pixels; absent: the model's.
    pub height: Option<usize>,
    /// In pixels; absent: the model's.
    pub width: Option<usize>,
    /// Images made at a time.
    pub batch_size: usize,
    /// Kind of weights and activations; absent: as [`default_precision`](crate::pipeline::default_precision).
    pub precision: Option<Precision>,
    /// Adapters to apply, all at once.
    #[serde(deserialize_with = "one_or_several")]
    pub lora: Vec<LoraSpec>,
    /// Factor on all of them.
    pub lora_scale: f64,
    /// The base model makes so many of the first steps, before the adapters join: more diverse images ("ImageReFL", Sorokin et
    /// al., 2025, <https://arxiv.org/abs/2505.22569>).
    pub base_steps: usize,
    /// What the model predicts; absent: what its files say.
    pub prediction_type: Option<String>,
    /// Images with a longer side are decoded in tiles of this side, in pixels.
    pub vae_tile: Option<usize>,
    /// Also write a contact sheet.
    pub contact_sheet: bool,
    /// Initial noise of unit variance, in place of the seeds'.
    pub latents: Option<PathBuf>,
    /// Receives the initial noise.
    pub save_latents: Option<PathBuf>,
    /// Receives the denoised latents.
    pub save_final_latents: Option<PathBuf>,
    /// Where to compute.
    pub device: DeviceName,
    /// Image K of every prompt has the seed `seed + K`, which goes on from 0 after 2⁶⁴ − 1.
    #[serde(with = "reward::seed")]
    pub seed: u64,
    /// CPU threads to compute with; absent: see [`reward::threads::settle`].
    pub threads: Option<NonZeroUsize>,
    /// The part of the images that this process makes; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            model: None,
            prompt: Vec::new(),
            prompts: None,
            output: None,
            images_per_prompt: 1,
            steps: 50,
            guidance_scale: 7.5,
            negative_prompt: String::new(),
            scheduler: SamplerName::Ddim,
            eta: 0.0,
            height: None,
            width: None,
            batch_size: 4,
            precision: None,
            lora: Vec::new(),
            lora_scale: 1.0,
            base_steps: 0,
            prediction_type: None,
            vae_tile: None,
            contact_sheet: false,
            latents: None,
            save_latents: None,
            save_final_latents: None,
            device: DeviceName::Auto,
            seed: 0,
            threads: None,
            shard: None,
        }
    }
}

/// A sampler under its name on the command line.
mod by_name {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::schedule::SamplerName;

    pub(super) fn serialize<S: Serializer>(name: &SamplerName, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(name)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SamplerName, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// No model makes images of a longer side, in pixels.
const LONGEST_SIDE: usize = 65_536;

/// Settings that may differ when a run goes on: they change where and how fast, not what an image shows.
const FREE: [&str; 7] = ["output", "batch_size", "contact_sheet", "save_latents", "device", "threads", "shard"];

impl GenerateConfig {
    /// Checks what can be known before any file is read.
    ///
    /// # Errors
    /// A usage error that names the setting.
    pub fn check(&self) -> Result<()> {
        let missing = |name: &str, what: &str| {
            Error::usage(format!("--{name} is missing: {what}")).hint(format!("or `{name} = …` in the --config file"))
        };
        if self.model.is_none() {
            return Err(missing("model", "a diffusers folder, a single file, a hub id or random:sd-tiny"));
        }
        if self.output.is_none() {
            return Err(missing("output", "a folder for the images"));
        }
        if self.prompt.is_empty() && self.prompts.is_none() {
            return Err(Error::usage("no prompt").hint("--prompt TEXT, or --prompts FILE"));
        }
        let wants = |holds: bool, name: &str, value: &dyn std::fmt::Display, wanted: &str| {
            if holds { Ok(()) } else { Err(Error::usage(format!("{name} = {value}: want {wanted}"))) }
        };
        // Far more than anyone asks for, and few enough to plan for in memory.
        for (name, value, most) in [
            ("images_per_prompt", self.images_per_prompt, 1_000_000),
            ("batch_size", self.batch_size, 10_000),
            ("steps", self.steps, 10_000),
        ] {
            wants((1..=most).contains(&value), name, &value, &format!("1 to {most}"))?;
        }
        let finite = "a finite number";
        wants(self.guidance_scale.is_finite(), "guidance_scale", &self.guidance_scale, finite)?;
        wants(self.lora_scale.is_finite(), "lora_scale", &self.lora_scale, finite)?;
        wants((0.0..=1.0).contains(&self.eta), "eta", &self.eta, "0 to 1")?;
        if self.eta > 0.0 && self.scheduler != SamplerName::Ddim {
            return Err(Error::usage(format!("eta = {}: only --scheduler ddim has it", self.eta))
                .hint("euler-a adds noise by itself; the others have none"));
        }
        for (name, size) in [("height", self.height), ("width", self.width)] {
            let size = size.unwrap_or(8);
            let below = (size - size % 8).max(8);
            let fits = size > 0 && size % 8 == 0;
            wants(fits, name, &size, &format!("a multiple of 8, such as {below} or {}", below.saturating_add(8)))?;
            wants(size <= LONGEST_SIDE, name, &size, &format!("at most {LONGEST_SIDE}"))?;
        }
        let tile = self.vae_tile.unwrap_or(64);
        wants(tile >= 64, "vae_tile", &tile, "at least 64 pixels")?;
        if self.lora.is_empty() && self.lora_scale != 1.0 {
            return Err(Error::usage(format!("lora_scale = {}: there is no --lora to scale", self.lora_scale)));
        }
        if self.lora.is_empty() && self.base_steps > 0 {
            return Err(Error::usage(format!("base_steps = {}: there is no --lora to join later", self.base_steps))
                .hint("add --lora FILE; without one, the base model makes every step"));
        }
        wants(self.base_steps <= self.steps, "base_steps", &self.base_steps, &format!("0 to {} (steps)", self.steps))?;
        Ok(())
    }

    /// Names of the settings that differ from `earlier` and would make other images.
    pub fn changed_since(&self, earlier: &Self) -> Vec<String> {
        changed_settings(self, earlier, &FREE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> GenerateConfig {
        GenerateConfig {
            model: Some("random:sd-tiny".to_owned()),
            prompt: vec!["fox".to_owned()],
            output: Some("out".into()),
            ..GenerateConfig::default()
        }
    }

    fn tuned() -> GenerateConfig {
        GenerateConfig { lora: vec![LoraSpec::new("fox.safetensors")], ..complete() }
    }

    #[test]
    fn each_bad_value_is_named() {
        complete().check().unwrap();
        GenerateConfig { base_steps: 50, ..tuned() }.check().unwrap();
        GenerateConfig { guidance_scale: 1.0, height: Some(8), eta: 1.0, seed: u64::MAX, ..complete() }
            .check()
            .unwrap();
        for (name, config) in [
            ("--model", GenerateConfig { model: None, ..complete() }),
            ("--output", GenerateConfig { output: None, ..complete() }),
            ("no prompt", GenerateConfig { prompt: Vec::new(), ..complete() }),
            ("steps", GenerateConfig { steps: 0, ..complete() }),
            ("batch_size", GenerateConfig { batch_size: 0, ..complete() }),
            ("images_per_prompt", GenerateConfig { images_per_prompt: 0, ..complete() }),
            ("1 to 1000000", GenerateConfig { images_per_prompt: usize::MAX, ..complete() }),
            ("steps = 10001", GenerateConfig { steps: 10_001, ..complete() }),
            ("at most 65536", GenerateConfig { width: Some(usize::MAX - 7), ..complete() }),
            ("guidance_scale", GenerateConfig { guidance_scale: f64::NAN, ..complete() }),
            ("eta", GenerateConfig { eta: 1.5, ..complete() }),
            ("only --scheduler ddim", GenerateConfig { eta: 0.5, scheduler: SamplerName::Euler, ..complete() }),
            ("512 or 520", GenerateConfig { height: Some(513), ..complete() }),
            ("width = 0", GenerateConfig { width: Some(0), ..complete() }),
            ("lora_scale", GenerateConfig { lora_scale: 0.5, ..complete() }),
            ("base_steps = 1: there is no --lora", GenerateConfig { base_steps: 1, ..complete() }),
            ("base_steps = 51: want 0 to 50", GenerateConfig { base_steps: 51, ..tuned() }),
        ] {
            let error = config.check().unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(error.kind(), crate::ErrorKind::Usage);
        }
    }

    #[test]
    fn a_run_goes_on_with_the_same_images_only() {
        let faster = GenerateConfig { batch_size: 16, device: DeviceName::Cpu, contact_sheet: true, ..complete() };
        assert_eq!(faster.changed_since(&complete()), Vec::<String>::new());
        let other = GenerateConfig { steps: 20, seed: 1, ..complete() };
        assert_eq!(other.changed_since(&complete()), ["seed", "steps"]);
        let later = GenerateConfig { base_steps: 5, ..tuned() };
        assert_eq!(later.changed_since(&tuned()), ["base_steps"]);
    }
}
