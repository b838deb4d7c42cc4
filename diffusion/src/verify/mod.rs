//! `diffusion verify`: our text encoder, UNet and VAE beside diffusers-rs with the same weights on the same input. It shows
//! in a minute that a folder loads right on this machine, this device, in this precision.

pub mod reference;
mod text;

use std::fmt;

use reward::{
    device::{DeviceName, Precision},
    event::{Event, Observer},
};
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::{
    Result,
    lora::{Lora, LoraSpec},
    noise::{Stream, normal},
    pipeline::default_precision,
    source::{Source, SourceOptions},
    text::TextEncoder,
    unet::Unet,
    vae::Vae,
};

/// Training step that the UNet is asked about: in the middle, where nothing is extreme.
const TIMESTEP: f64 = 481.0;
/// Longest side of the latents: real enough, and seconds on a CPU.
const LARGEST_SIDE: i64 = 32;

/// What to verify, besides the model.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Adapters; the reference gets their sum merged into its weights.
    pub lora: Vec<LoraSpec>,
    /// Factor on all of them.
    pub lora_scale: f64,
    /// The prompt to encode.
    pub prompt: String,
    /// Ours, absent: as [`default_precision`]; the reference computes in fp32.
    pub precision: Option<Precision>,
    /// Where both compute.
    pub device: DeviceName,
    /// Seed of latents and picture.
    pub seed: u64,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            lora: Vec::new(),
            lora_scale: 1.0,
            prompt: "a photo of a red fox in the snow".to_owned(),
            precision: None,
            device: DeviceName::Auto,
            seed: 0,
        }
    }
}

/// How far apart one component is.
#[derive(Debug, Clone, Serialize)]
pub struct Component {
    /// `text_encoder`, `unet`, `vae_encoder` or `vae_decoder`.
    pub name: &'static str,
    /// Largest difference of two elements.
    pub max_abs: f64,
    /// The same over the reference's largest element.
    pub max_rel: f64,
    /// What `max_rel` may be.
    pub tolerance: f64,
}

impl Component {
    /// Compares two tensors of the same shape.
    fn new(name: &'static str, ours: &Tensor, reference: &Tensor, tolerance: f64) -> Self {
        let (ours, reference) = (ours.to_kind(Kind::Double), reference.to_kind(Kind::Double));
        let largest = |tensor: Tensor| tensor.abs().max().double_value(&[]);
        let max_abs = largest(&ours - &reference);
        let max_rel = max_abs / largest(reference).max(f64::MIN_POSITIVE);
        Self { name, max_abs, max_rel, tolerance }
    }

    /// Not a number is no match.
    fn matches(&self) -> bool {
        self.max_rel <= self.tolerance
    }
}

/// Whether all components agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Within the tolerance.
    Match,
    /// At least one component is not.
    Mismatch,
}

/// What `diffusion verify` found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// In the order of a generation.
    pub components: Vec<Component>,
    /// Over all of them.
    pub verdict: Verdict,
}

impl Report {
    fn new(components: Vec<Component>) -> Self {
        let verdict = if components.iter().all(Component::matches) { Verdict::Match } else { Verdict::Mismatch };
        Self { components, verdict }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        for component in &self.components {
            let Component { name, max_abs, max_rel, tolerance } = component;
            let verdict = if component.matches() { "match" } else { "MISMATCH" };
            writeln!(
                formatter,
                "{name:<13} largest difference {max_abs:.2e}, relative {max_rel:.2e} (tolerance {tolerance:.0e})  {verdict}"
            )?;
        }
        formatter.write_str(match self.verdict {
            Verdict::Match => "verdict: match",
            Verdict::Mismatch => "verdict: mismatch",
        })
    }
}

/// Loads `model` strictly and runs its components beside the reference's, one after the other.
///
/// # Errors
/// The model or the LoRA does not load, or diffusers-rs does not know such a model.
pub fn verify(model: &str, options: &VerifyOptions, observer: &dyn Observer) -> Result<Report> {
    let device = options.device.resolve(0)?;
    let precision = options.precision.unwrap_or_else(|| default_precision(device));
    let kind = precision.kind();
    let tolerance = match precision {
        Precision::Fp32 => 1e-4,
        Precision::Bf16 => 3e-2,
    };
    let source = Source::open(model, SourceOptions::default())?;
    let lora = Lora::open_all(&options.lora, &source.layers()?, options.lora_scale)?;
    let say = |name: &str| observer.event(&Event::Note(name));

    say("text encoder");
    let (config, weights) = source.text_encoder()?;
    let ours = TextEncoder::new(&config, weights.to(device, kind).adapters(lora.text))?;
    let ids = source.tokenizer()?.encode(&options.prompt)?.ids;
    let ids = Tensor::from_slice(&ids).unsqueeze(0).to_device(device);
    let (context, by) = text::hidden_states(&config, &ours.parameters, &ids)?;
    if by != "diffusers-rs" {
        say(&format!("diffusers-rs has no text encoder like this one: compared with {by} instead"));
    }
    let states = tch::no_grad(|| ours.forward(&ids));
    let mut components = vec![Component::new("text_encoder", &states, &context, tolerance)];
    drop(ours);

    say("UNet");
    let (config, weights) = source.unet()?;
    let ours = Unet::new(&config, weights.to(device, kind).adapters(lora.unet))?;
    let side = config.sample_size[0].min(LARGEST_SIDE);
    let latents = normal(options.seed, Stream::Latents, &[1, config.channels, side, side]).to_device(device);
    let expected = {
        let reference = reference::unet(&config, &ours.parameters)?;
        let run = || tch::no_grad(|| reference.model.forward(&latents, TIMESTEP, &context));
        reference::caught("the UNet", run)?
    };
    let timesteps = Tensor::from_slice(&[TIMESTEP as f32]).to_device(device);
    let predicted = tch::no_grad(|| ours.forward(&latents, &timesteps, &context.shallow_clone().into()));
    components.push(Component::new("unet", &predicted, &expected, tolerance));
    drop(ours);

    say("VAE");
    let (config, weights) = source.vae()?;
    let ours = Vae::new(&config, weights.to(device, kind))?;
    let reference = reference::vae(&config, &ours.parameters)?;
    let pixels = normal(options.seed, Stream::Pixels(0), &[1, 3, side * config.factor(), side * config.factor()]);
    let pixels = pixels.tanh().to_device(device);
    let (expected, noise) = tch::no_grad(|| reference::vae_sample(&reference.model, &pixels, options.seed as i64))?;
    let (mean, log_variance) = tch::no_grad(|| ours.encode(&pixels));
    let sample = mean + (log_variance * 0.5).exp() * noise;
    components.push(Component::new("vae_encoder", &sample, &expected, tolerance));
    let latents = latents / config.scaling_factor;
    let expected = reference::caught("the VAE's decoder", || tch::no_grad(|| reference.model.decode(&latents)))?;
    components.push(Component::new("vae_decoder", &tch::no_grad(|| ours.decode(&latents)), &expected, tolerance));
    Ok(Report::new(components))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_no_match() {
        let of = |values: &[f32]| Tensor::from_slice(values);
        let component = Component::new("unet", &of(&[1.0, 2.0]), &of(&[1.0, 4.0]), 0.5);
        assert_eq!((component.max_abs, component.max_rel), (2.0, 0.5));
        assert_eq!(Report::new(vec![component.clone()]).verdict, Verdict::Match);
        let wrong = Component::new("unet", &of(&[f32::NAN, 2.0]), &of(&[1.0, 4.0]), 0.5);
        let report = Report::new(vec![component, wrong]);
        assert_eq!(report.verdict, Verdict::Mismatch);
        assert_eq!(serde_json::to_value(&report).unwrap()["verdict"], "mismatch");
    }
}
