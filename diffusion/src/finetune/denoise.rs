//! Training on images with prompts: the table, its pictures, a VAE trained first where asked, and the work of a step.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ops::Range,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use rand::RngExt;
use reward::{
    clip::{preprocess, preprocessing},
    data::{image, manifest::Manifest, source::ImageSource},
    event::{Event, Observer},
    native::memory,
    run::{checkpoints, checksums, inputs::Inputs},
    weights::{file::TensorFile, save::json_file},
};
use tch::{Device, Kind, Tensor};

use super::{
    config::FinetuneConfig,
    deal::{Deal, image_seed},
    setup::{Embeddings, Models},
    step::{Stepper, Work},
    watch::mean,
};
use crate::{
    Error, Result,
    algorithm::{Loss, denoising},
    noise,
    policy::Policy,
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

/// The pictures to train on.
#[derive(Default)]
pub(super) struct Images {
    prompts: Vec<String>,
    sources: Vec<ImageSource>,
    /// Index of the prompt and of the picture.
    rows: Vec<(u32, u32)>,
    /// Rows that are never trained on, to watch the loss by.
    held_out: Vec<usize>,
    /// Height and width in pixels.
    size: [u32; 2],
    /// RGB bytes `[3, H, W]` of pictures seen so far, within a budget.
    pixels: RefCell<HashMap<u32, Tensor>>,
    budget: Cell<u64>,
}

/// The distinct prompts of a table of images.
pub(super) fn prompts(table: &Path) -> Result<Vec<String>> {
    Ok(Manifest::read(table)?.prompts)
}

/// Opens the pictures of `config` (none where the method has a reward), and trains the VAE first where asked, or reads the one
/// that an earlier part of the run trained: `place` is its folder, and what it reads. Nothing if the user stopped it.
pub(super) fn prepare(
    config: &FinetuneConfig,
    models: &mut Models,
    place: Option<(&Path, &Inputs)>,
    device: Device,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<Option<Images>> {
    let Some(table) = &config.images else { return Ok(Some(Images::default())) };
    let manifest = Manifest::read(table)?;
    let factor = models.vae.config.factor();
    let [_, height, width] = models.latents;
    let rows: Vec<(u32, u32)> = manifest.rows.iter().map(|row| (row.prompt, row.image)).collect();
    // A tenth at most, and every distinct row at least once in training.
    let count = config.held_out_images.min(rows.len().div_euclid(10));
    let images = Images {
        held_out: Deal::new(rows.len(), image_seed(config.seed, "held-out rows", 0)).step(1, count.max(1))[..count]
            .to_vec(),
        prompts: manifest.prompts,
        sources: manifest.images,
        rows,
        size: [height * factor, width * factor].map(|side| side as u32),
        budget: Cell::new(memory(Device::Cpu).map_or(0, |memory| memory.free.div_euclid(4))),
        ..Images::default()
    };
    images.check()?;
    if config.vae_steps > 0 && !own_vae(config, models, &images, place, device, observer, stop)? {
        return Ok(None);
    }
    Ok(Some(images))
}

impl Images {
    /// Rows that train.
    pub(super) fn len(&self) -> usize {
        self.rows.len() - self.held_out.len()
    }

    /// Row `index` of those that train, in the table's order.
    fn training_row(&self, index: usize) -> usize {
        let mut row = index;
        let mut held_out = self.held_out.clone();
        held_out.sort_unstable();
        for held in held_out {
            row += usize::from(held <= row);
        }
        row
    }

    /// Every picture can be read, before hours of training.
    fn check(&self) -> Result<()> {
        for source in &self.sources {
            reward::data::preflight::check_header(source, |bytes| image::probe(bytes, &source.label()).map(drop))?;
        }
        Ok(())
    }

    /// A picture's RGB bytes, `[3, H, W]`: its centre, resized.
    fn bytes(&self, picture: u32) -> Result<Tensor> {
        if let Some(pixels) = self.pixels.borrow().get(&picture) {
            return Ok(pixels.shallow_clone());
        }
        let [height, width] = self.size.map(i64::from);
        let source = &self.sources[picture as usize];
        let side = height.max(width);
        let how = preprocessing::Preprocessing::default();
        let options = image::DecodeOptions::default();
        let loaded = preprocess::load(&source.read()?, &source.label(), side as u32, &how, &options)?;
        let square = Tensor::from_slice(&loaded.pixels).view([side, side, 3]).permute([2, 0, 1]);
        let (top, left) = ((side - height).div_euclid(2), (side - width).div_euclid(2));
        let pixels = square.narrow(1, top, height).narrow(2, left, width).contiguous();
        let bytes = (3 * height * width) as u64;
        if let Some(left) = self.budget.get().checked_sub(bytes) {
            self.budget.set(left);
            self.pixels.borrow_mut().insert(picture, pixels.shallow_clone());
        }
        Ok(pixels)
    }

    /// Pictures of rows as the VAE takes them, `[B, 3, H, W]`, −1..=1.
    fn pixels(&self, rows: &[usize], device: Device) -> Result<Tensor> {
        let pictures = rows.iter().map(|row| self.bytes(self.rows[*row].1)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&pictures, 0).to_device(device).to_kind(Kind::Float) / 127.5 - 1.0)
    }
}

/// The supervised step.
pub(super) struct DenoisingWork<'a> {
    pub(super) policy: &'a Policy<'a>,
    pub(super) vae: &'a Vae,
    pub(super) images: &'a Images,
    pub(super) embeddings: &'a Embeddings,
    pub(super) snr_gamma: Option<f64>,
    pub(super) prompt_dropout: f64,
    /// Of the batch, counted among all rows of the table.
    pub(super) rows: Vec<usize>,
    /// Of each row, for its noise, noise level and whether its prompt is left out.
    pub(super) seeds: Vec<u64>,
}

/// A micro-batch with its noise.
pub(super) struct Noised {
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    context: Tensor,
}

impl<'a> DenoisingWork<'a> {
    /// The work of step `step` of the run.
    pub(super) fn of_step(self, deal: &mut Deal, step: usize, config: &FinetuneConfig) -> Self {
        let rows =
            deal.step(step, config.batch_size).into_iter().map(|index| self.images.training_row(index)).collect();
        let part = format!("step/{step}");
        let seeds = (0..config.batch_size).map(|index| image_seed(config.seed, &part, index)).collect();
        Self { rows, seeds, ..self }
    }

    /// The loss on rows that never train, at noise and noise levels that are always the same; nothing where there are none.
    pub(super) fn held_out_loss(self, config: &FinetuneConfig) -> Result<Option<f64>> {
        let rows = self.images.held_out.clone();
        if rows.is_empty() {
            return Ok(None);
        }
        let seeds = (0..rows.len()).map(|index| image_seed(config.seed, "held-out", index)).collect();
        let work = Self { rows, seeds, prompt_dropout: 0.0, ..self };
        let ranges: Vec<_> = (0..work.rows.len()).map(|row| row..row + 1).collect();
        let losses = tch::no_grad(|| {
            let one = |prepared| Ok(work.loss(prepared)?.loss.double_value(&[]));
            work.prepare(&ranges)?.into_iter().map(one).collect::<Result<Vec<f64>>>()
        })?;
        Ok(Some(mean(&losses)))
    }
}

impl Work for DenoisingWork<'_> {
    type Prepared = Noised;

    fn prepare(&self, micro_batches: &[Range<usize>]) -> Result<Vec<Noised>> {
        let device = self.policy.negative.device();
        let one = |range: &Range<usize>| {
            let (rows, seeds) = (&self.rows[range.clone()], &self.seeds[range.clone()]);
            let (latents, log_variance) = self.vae.encode(&self.images.pixels(rows, device)?);
            let shape = [latents.size()[1], latents.size()[2], latents.size()[3]];
            let draw = |name: &str| noise::named(seeds, name, shape).to_device(device);
            let latents = (latents + (log_variance * 0.5).exp() * draw("posterior")) * self.vae.config.scaling_factor;
            // A frozen VAE computes channels last and hands that on, a UNet whose weights train does not: its GroupNorms
            // would take several times as long.
            let latents = latents.contiguous();
            let steps = self.policy.schedule.alphas_cumprod().len() as i64;
            let timesteps: Vec<i64> =
                seeds.iter().map(|seed| noise::stream(*seed, "timestep").random_range(0..steps)).collect();
            let prompt = |(row, seed): (&usize, &u64)| -> String {
                let left_out = noise::stream(*seed, "dropout").random::<f64>() < self.prompt_dropout;
                if left_out { String::new() } else { self.images.prompts[self.images.rows[*row].0 as usize].clone() }
            };
            let prompts: Vec<String> = rows.iter().zip(seeds).map(prompt).collect();
            Ok(Noised {
                noise: draw("noise"),
                latents,
                timesteps: Tensor::from_slice(&timesteps).to_device(device),
                context: self.embeddings.of(&prompts),
            })
        };
        micro_batches.iter().map(one).collect()
    }

    fn loss(&self, Noised { latents, noise, timesteps, context }: Noised) -> Result<Loss> {
        let noised = denoising::Noised { latents: &latents, noise: &noise, timesteps: &timesteps, context: &context };
        let (policy, gamma) = (self.policy, self.snr_gamma);
        let losses = denoising::losses(policy.unet, &policy.schedule, policy.prediction, &noised, gamma);
        Ok(Loss { loss: losses.mean(Kind::Float), rewards: Vec::new() })
    }
}

/// The VAE's own step: reconstruction and a little of the distance from a unit normal.
struct VaeWork<'a> {
    vae: &'a Vae,
    images: &'a Images,
    rows: Vec<usize>,
    seeds: Vec<u64>,
    device: Device,
}

impl Work for VaeWork<'_> {
    type Prepared = Range<usize>;

    fn prepare(&self, micro_batches: &[Range<usize>]) -> Result<Vec<Range<usize>>> {
        Ok(micro_batches.to_vec())
    }

    fn loss(&self, range: Range<usize>) -> Result<Loss> {
        let pixels = self.images.pixels(&self.rows[range.clone()], self.device)?;
        let (latents, log_variance) = self.vae.encode(&pixels);
        let shape = [latents.size()[1], latents.size()[2], latents.size()[3]];
        let noise = noise::named(&self.seeds[range], "posterior", shape).to_device(self.device);
        let decoded = self.vae.decode(&(&latents + (&log_variance * 0.5).exp() * noise));
        let distance = (latents.square() + log_variance.exp() - &log_variance - 1.0).mean(Kind::Float) * 0.5;
        let loss = (decoded - pixels).square().mean(Kind::Float) + distance * KL_WEIGHT;
        Ok(Loss { loss, rewards: Vec::new() })
    }
}

/// Reads the VAE that an earlier part of this run trained, or trains it and keeps it. False if the user stopped it: it begins
/// again then.
fn own_vae(
    config: &FinetuneConfig,
    models: &mut Models,
    images: &Images,
    place: Option<(&Path, &Inputs)>,
    device: Device,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<bool> {
    let kept: Result<bool> = place.map_or(Ok(false), |(folder, inputs)| {
        // Trained again, it is the same.
        kept_vae(&folder.join(VAE), &mut models.vae, inputs).or_else(|error| {
            observer.event(&Event::Warning(&format!("{error}: the VAE is trained again")));
            Ok(false)
        })
    });
    if !kept? {
        if !train_vae(config, models, images, device, observer, stop)? {
            return Ok(false);
        }
        if let Some((folder, inputs)) = place {
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
    images: &Images,
    device: Device,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<bool> {
    let trained = models.vae.parameters.trained();
    let mut stepper = Stepper::new(trained, 0.0, config.clip_norm, None, config.batch_size, device);
    let mut deal = Deal::new(images.len(), image_seed(config.seed, "vae rows", 0));
    for step in 1..=config.vae_steps {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let part = format!("vae/{step}");
        let work = VaeWork {
            vae: &models.vae,
            images,
            rows: deal.step(step, config.batch_size).into_iter().map(|index| images.training_row(index)).collect(),
            seeds: (0..config.batch_size).map(|index| image_seed(config.seed, &part, index)).collect(),
            device,
        };
        let rate = config.vae_learning_rate * config.schedule.factor(step, config.vae_steps, config.warmup_steps);
        let outcome = stepper.step(&work, config.batch_size, rate, observer)?;
        observer.event(&Event::Progress { phase: "training the VAE", done: step, total: config.vae_steps });
        if step == config.vae_steps {
            observer.event(&Event::Note(&format!("VAE: loss {:.5} after {step} steps", outcome.loss)));
        }
    }
    let rows: Vec<usize> = (0..images.len().min(SCALED_BY)).map(|index| images.training_row(index)).collect();
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
