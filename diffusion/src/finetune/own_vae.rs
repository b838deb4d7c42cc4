//! A VAE that a run trains first, from scratch, for a UNet that is trained from scratch on its latents.

use std::{collections::HashMap, path::Path, sync::atomic::Ordering};

use reward::{
    event::Event,
    files::json_file,
    optim::Update,
    run::{
        checkpoints, checksums,
        inputs::Inputs,
        order::{Order, image_seed},
    },
    weights::file::TensorFile,
};
use tch::{Device, Kind, Tensor};

use super::{config::FinetuneConfig, models::Models, run::Reports, step};
use crate::{
    Error, Result,
    micro_batches::MicroBatches,
    noise::{self, Stream},
    objective::Loss,
    pictures::Pictures,
    save::{Saved, tensor_file},
    vae::Vae,
};

/// Weight of the latents' distance from a unit normal in the VAE's loss, as Rombach et al., 2022, appendix G.
const KL_WEIGHT: f64 = 1e-6;
/// Images that give the VAE's scaling factor.
const SCALED_BY: usize = 256;
/// Where a run keeps the VAE that it trained, and in which files.
const VAE: &str = "vae";
const WEIGHTS: &str = "vae.safetensors";
const SETTINGS: &str = "vae.json";

/// Settings of a kept VAE, beside its weights.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptVae {
    scaling_factor: f64,
    inputs: Inputs,
}

/// Reconstruction of the pictures of `rows`, and a little of the distance from a unit normal.
fn vae_loss(vae: &Vae, images: &Pictures, rows: &[usize], seeds: &[u64], device: Device) -> Result<Loss> {
    let pixels = images.pixels(rows, device)?;
    let (latents, log_variance) = vae.encode(&pixels);
    let shape = [latents.size()[1], latents.size()[2], latents.size()[3]];
    let noise = noise::named(seeds, Stream::Posterior, shape).to_device(device);
    let decoded = vae.decode(&(&latents + (&log_variance * 0.5).exp() * noise));
    let distance = (latents.square() + log_variance.exp() - &log_variance - 1.0).mean(Kind::Float) * 0.5;
    let loss = (decoded - pixels).square().mean(Kind::Float) + distance * KL_WEIGHT;
    Ok(Loss::new(loss))
}

/// Reads the VAE that an earlier part of this run trained, or trains it and keeps it. False if the user stopped it: it begins
/// again then.
pub(super) fn own_vae(
    config: &FinetuneConfig,
    models: &mut Models,
    images: &Pictures,
    inputs: Option<&Inputs>,
    device: Device,
    reports: Reports,
) -> Result<bool> {
    let (observer, place) = (reports.observer, reports.place.zip(inputs));
    let kept: Result<bool> = place.map_or(Ok(false), |(folder, inputs)| {
        // Trained again, it is the same.
        kept_vae(&folder.join(VAE), &mut models.vae, inputs).or_else(|error| {
            observer.event(&Event::Warning(&format!("{error}: the VAE is trained again")));
            Ok(false)
        })
    });
    // One rank alone would train with nobody.
    if reports.world.any(!kept?)? {
        if !train_vae(config, models, images, device, reports)? {
            return Ok(false);
        }
        if let Some((folder, inputs)) = place.filter(|_| reports.world.leads()) {
            checkpoints::write(&folder.join(VAE), |partial| {
                let tensors = models.vae.parameters.tensors.iter();
                let tensors = tensors.map(|(key, tensor)| (key.clone(), Saved::new(tensor, Kind::Float)));
                tensor_file(&partial.join(WEIGHTS), tensors.collect(), HashMap::new())?;
                let kept = KeptVae { scaling_factor: models.vae.config.scaling_factor, inputs: inputs.clone() };
                json_file(&partial.join(SETTINGS), &serde_json::json!(kept))
            })?;
        }
    }
    for tensor in models.vae.parameters.tensors.values() {
        drop(tensor.set_requires_grad(false));
    }
    Ok(true)
}

/// Sets the VAE to what is kept in `folder`, if it was trained on the same `inputs`.
fn kept_vae(folder: &Path, vae: &mut Vae, inputs: &Inputs) -> Result<bool> {
    if !folder.join(SETTINGS).is_file() {
        return Ok(false);
    }
    checksums::verify(folder)?;
    let settings = folder.join(SETTINGS);
    let kept: KeptVae = serde_json::from_str(&reward::text::read(&settings, "a VAE's settings")?)
        .map_err(|error| Error::data(format!("{}: not a VAE's settings", settings.display())).caused_by(error))?;
    if kept.inputs != *inputs {
        return Err(Error::data(format!("{} was trained on other data", folder.display())));
    }
    let file = TensorFile::open(&folder.join(WEIGHTS))?;
    for (key, tensor) in &vae.parameters.tensors {
        let values = Tensor::from_slice(&file.read(key)?).view(tensor.size().as_slice());
        tch::no_grad(|| tensor.shallow_clone().copy_(&values));
    }
    vae.config.scaling_factor = kept.scaling_factor;
    Ok(true)
}

/// Trains the VAE, and sets its scaling factor to 1 / deviation of the latents. False if the user stopped it.
fn train_vae(
    config: &FinetuneConfig,
    models: &mut Models,
    images: &Pictures,
    device: Device,
    Reports { world, observer, stop, .. }: Reports,
) -> Result<bool> {
    let clip_norm = (config.clip_norm > 0.0).then_some(config.clip_norm);
    let mut update = Update::new(models.vae.parameters.trained(), step::adamw(0.0), clip_norm, None);
    let micro_batches = MicroBatches::new(world, config.batch_size, device, observer);
    let training = images.training();
    let mut order = Order::of_prompts(training.len(), image_seed(config.seed, "vae rows", 0));
    for step in 1..=config.vae_steps {
        if world.any(stop.load(Ordering::Relaxed))? {
            return Ok(false);
        }
        let part = format!("vae/{step}");
        let rows = order.full_batch(step, config.batch_size);
        let rows: Vec<usize> = rows.into_iter().map(|index| training[index]).collect();
        let seeds: Vec<u64> = (0..config.batch_size).map(|index| image_seed(config.seed, &part, index)).collect();
        let rate = config.vae_learning_rate * config.schedule.factor(step, config.vae_steps, config.warmup_steps);
        let outcome = step::take(&mut update, &micro_batches, config.batch_size, rate, |range| {
            vae_loss(&models.vae, images, &rows[range.clone()], &seeds[range], device)
        })?;
        observer.event(&Event::Progress { phase: "training the VAE", done: step, total: config.vae_steps });
        if step == config.vae_steps {
            observer.event(&Event::Note(&format!("VAE: loss {:.5} after {step} steps", outcome.loss)));
        }
    }
    let rows = &training[..training.len().min(SCALED_BY)];
    let means = rows
        .chunks(config.batch_size)
        .map(|rows| tch::no_grad(|| images.pixels(rows, device).map(|pixels| models.vae.encode(&pixels).0)));
    let deviation = Tensor::cat(&means.collect::<Result<Vec<_>>>()?, 0).std(true).double_value(&[]);
    if !(deviation.is_finite() && deviation > 0.0) {
        return Err(Error::data(format!("the VAE's latents have deviation {deviation} after training"))
            .hint("more vae_steps, or a lower vae_learning_rate"));
    }
    models.vae.config.scaling_factor = 1.0 / deviation;
    Ok(true)
}
