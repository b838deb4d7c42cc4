//! `diffusion generate`: images for prompts, in batches across prompts. Image K of every prompt has the effective seed
//! `seed + K`; its noise depends on that seed and the shape only. A run goes on where it stopped: an image is renamed into
//! place when it is whole and is never made again.

mod config;
pub mod latents;
pub mod picture;
pub mod plan;
mod sheet;
pub(crate) mod table;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use reward::{
    data::named::Named,
    device::Precision,
    event::{Event, Observer},
    native::{self, Failure},
    run::RunFolder,
    world::shard::Shard,
};
use tch::{Device, Tensor};

pub use config::GenerateConfig;

use crate::{
    Error, ErrorKind, Result,
    lora::Lora,
    pipeline::{Pipeline, default_precision},
    prompts,
    sample::{BaseSteps, Request},
    schedule::Sampler,
    source::{Source, SourceOptions},
    vae::DecodeOptions,
};
use latents::FinalLatents;
use picture::{Picture, State};
use plan::PlannedImage;

/// How a run ended.
pub enum Ended {
    /// All images are there, and so is their table.
    Finished {
        /// `images.parquet`.
        table: PathBuf,
        /// How many.
        images: usize,
    },
    /// The images of this part are there; the last part to end writes the table.
    Part {
        /// How many.
        images: usize,
        /// Images of other parts that are not there yet.
        missing: usize,
    },
    /// The user asked to stop.
    Interrupted {
        /// Images that are there.
        done: usize,
        /// Images of the whole run, or of its part.
        images: usize,
    },
}

/// Makes the images of `config`, or its shard of them, in its output folder.
///
/// # Errors
/// Usage errors for settings, latents of another shape and a folder that holds another run. What cannot be read or written; values that are not finite; not enough memory.
pub fn generate(config: &GenerateConfig, observer: &dyn Observer, stop: &AtomicBool) -> Result<Ended> {
    config.check()?;
    let model = config.model.as_deref().unwrap_or_default();
    let output = config.output.as_deref().unwrap_or(Path::new(""));
    let prompts = prompts::gather(&config.prompt, config.prompts.as_deref(), observer)?;
    let prediction_type = config.prediction_type.as_deref().map(str::parse).transpose()?;
    // `random:NAME` is one model, whatever the seed of the noise.
    let source = Source::open(model, SourceOptions { seed: 0, prediction_type })?;
    let sampler = source.sampler(config.scheduler, config.steps, config.eta)?;
    let size = Size::of(config, &source)?;
    let (width, height) = size.pixels;
    let device = config.device.resolve(0)?;
    let precision = config.precision.unwrap_or_else(|| default_precision(device));
    let shard = config.shard.unwrap_or(Shard::WHOLE);
    let config = &GenerateConfig {
        shard: None,
        width: Some(width as usize),
        height: Some(height as usize),
        precision: Some(precision),
        ..config.clone()
    };
    let images = plan::all(prompts.len(), config.images_per_prompt, config.seed);
    let noise = Noise::new(config, images.len(), size.latents)?;

    let folder = match shard {
        Shard::WHOLE => RunFolder::claim(output, "output")?,
        _ => RunFolder::claim_part(output, "output")?,
    };
    check_same_run(&folder, config)?;
    // Parts are dealt by the batches of the first to begin, so that one that goes on with smaller ones leaves no hole.
    let begun = folder.earlier_config::<GenerateConfig>()?.filter(|_| shard != Shard::WHOLE);
    let dealt_by = begun.map_or(config.batch_size, |begun| begun.batch_size);
    let finals = config.save_final_latents.as_deref();
    let finals = finals.map(|file| FinalLatents::new(file, output, images.len(), size.latents));
    let state = |image: &PlannedImage| {
        let wanted = picture::settings(config, image, &prompts[image.prompt_index], size.pixels);
        picture::state(output, image, &wanted)
    };
    let own = &images[shard.of_batches(images.len(), dealt_by)];
    let (mut left, mut damaged) = (Vec::new(), Named::default());
    for image in own {
        let state = state(image)?;
        if state == State::Damaged {
            damaged.add(image.path());
        }
        if state != State::Finished || finals.as_ref().is_some_and(|finals| !finals.has(image)) {
            left.push(image.clone());
        }
    }
    if damaged.count() > 0 {
        let text = format!("{} image(s) are cut off or damaged, and are made again: {damaged}", damaged.count());
        observer.event(&Event::Warning(&text));
    }
    folder.write_config(&GenerateConfig { batch_size: dealt_by, ..config.clone() })?;
    fs_err::create_dir_all(output.join("images"))?;
    for path in [&config.save_latents, &config.save_final_latents].into_iter().flatten() {
        // Now, and not after hours.
        fs_err::create_dir_all(path.parent().unwrap_or(path))?;
    }
    if let Some(path) = config.save_latents.as_ref().filter(|_| shard.index == 0) {
        let whole = images.iter().map(|image| noise.of(image)).collect::<Vec<_>>();
        latents::write(path, &Tensor::stack(&whole, 0))?;
    }

    let total = own.len();
    let run = Run { config, device, precision, observer, stop, prompts: &prompts, sampler, size, noise, finals, total };
    if !left.is_empty() && !run.make(&source, &left)? {
        let done = own.iter().filter(|image| output.join(image.path()).exists()).count();
        return Ok(Ended::Interrupted { done, images: own.len() });
    }
    let mut finishing = None;
    if shard != Shard::WHOLE {
        // Parts may end at the same time: one finishes after the other.
        let lock = fs_err::File::create(output.join(".finish"))?;
        lock.file().lock().ok();
        finishing = Some(lock);
        let missing = images.iter().filter(|image| !output.join(image.path()).exists()).count();
        let mut whole = missing == 0;
        for image in images.iter().filter(|_| missing == 0) {
            whole &= state(image)? == State::Finished;
        }
        if !whole {
            return Ok(Ended::Part { images: own.len(), missing });
        }
    }
    if let Some(finals) = &run.finals {
        finals.finish()?;
    }
    let table = output.join("images.parquet");
    table::write(&table, config, &prompts, &images, size.pixels)?;
    if config.contact_sheet {
        sheet::write(output, &images, config.images_per_prompt, size.pixels)?;
    }
    drop(finishing);
    Ok(Ended::Finished { table, images: images.len() })
}

/// The folder holds no images yet, or images of the same settings: one that failed before its first may be tried otherwise.
fn check_same_run(folder: &RunFolder, config: &GenerateConfig) -> Result<()> {
    let place = folder.path().display();
    let earlier = folder.earlier_config::<GenerateConfig>().map_err(|error| {
        Error::usage(format!("{place} holds another run")).caused_by(error).hint("give another --output")
    })?;
    let images = folder.path().join("images");
    let begun = images.is_dir() && fs_err::read_dir(images)?.next().is_some();
    let changed = earlier.filter(|_| begun).map(|earlier| config.changed_since(&earlier)).unwrap_or_default();
    if changed.is_empty() {
        return Ok(());
    }
    Err(Error::usage(format!("{place} holds another run: {} differ(s)", changed.join(", ")))
        .hint(format!("use the settings of {place}/config.toml to go on with it, or give another --output")))
}

/// How large images and latents are.
#[derive(Debug, Clone, Copy)]
struct Size {
    /// Width and height of an image.
    pixels: (u32, u32),
    /// Channels, height, width of its latents.
    latents: [i64; 3],
}

impl Size {
    /// As asked for, else as the model was trained.
    fn of(config: &GenerateConfig, source: &Source) -> Result<Self> {
        let (unet, vae) = (source.unet_config()?, source.vae()?.0);
        let ([native_height, native_width], factor) = (unet.sample_size, vae.factor());
        let side = |name: &str, asked: Option<usize>, native: i64| {
            let side = asked.map_or(native * factor, |asked| asked as i64);
            if side % factor == 0 {
                return Ok(side);
            }
            Err(Error::usage(format!("{name} = {side}: want a multiple of {factor}, as the VAE of this model needs")))
        };
        let (height, width) =
            (side("height", config.height, native_height)?, side("width", config.width, native_width)?);
        let latents = [unet.channels, height.div_euclid(factor), width.div_euclid(factor)];
        Ok(Self { pixels: (width as u32, height as u32), latents })
    }
}

/// Where initial noise comes from.
enum Noise {
    /// From the seeds, `[channels, height, width]` each.
    Seeds([i64; 3]),
    /// From a file, `[N, channels, height, width]`.
    Given(Tensor),
}

impl Noise {
    fn new(config: &GenerateConfig, count: usize, shape: [i64; 3]) -> Result<Self> {
        match &config.latents {
            Some(path) => Ok(Self::Given(latents::read(path, count, shape)?)),
            None => Ok(Self::Seeds(shape)),
        }
    }

    /// Noise of unit variance, `[channels, height, width]`.
    fn of(&self, image: &PlannedImage) -> Tensor {
        match self {
            Self::Seeds(shape) => crate::noise::initial_latents(&[image.seed], *shape).get(0),
            Self::Given(all) => all.get(image.number as i64),
        }
    }
}

/// A run under way.
struct Run<'a> {
    config: &'a GenerateConfig,
    device: Device,
    precision: Precision,
    observer: &'a dyn Observer,
    stop: &'a AtomicBool,
    prompts: &'a [String],
    sampler: Sampler,
    size: Size,
    noise: Noise,
    finals: Option<FinalLatents>,
    total: usize,
}

impl Run<'_> {
    /// Makes the images that are left; `false` if the user asked to stop.
    fn make(&self, source: &Source, left: &[PlannedImage]) -> Result<bool> {
        let config = self.config;
        let tokenizer = source.tokenizer()?;
        prompts::warn(self.prompts, &config.negative_prompt, &tokenizer, self.observer)?;
        if left.len() < self.total {
            let text = format!("{} of {} images are there already", self.total - left.len(), self.total);
            self.observer.event(&Event::Note(&text));
        }
        source.tell(self.observer)?;
        let lora = Lora::open_all(&config.lora, &source.layers()?, config.lora_scale)?;
        let decoding = DecodeOptions { slicing: true, tile_side: config.vae_tile.map(|side| side as i64) };
        let pipeline = guarded(|| Pipeline::load(source, lora, decoding, self.device, self.precision.kind()))?;
        let started = Instant::now();
        let (steps, mut done) = (self.sampler.timesteps().len(), 0);
        for batch in left.chunks(config.batch_size) {
            let report = |done: usize, step: usize| {
                let made = done as f64 + batch.len() as f64 * step as f64 / steps as f64;
                self.observer.event(&Event::Generating {
                    done: self.total - left.len() + done,
                    total: self.total,
                    step,
                    steps,
                    images_per_second: made / started.elapsed().as_secs_f64(),
                });
            };
            match guarded(|| self.batch(&pipeline, batch, &|step| report(done, step))) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(false),
                Err(error) => return Err(error),
            }
            done += batch.len();
            report(done, 0);
            if self.stop.load(Ordering::Relaxed) && done < left.len() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes and writes the images of one batch.
    fn batch(&self, pipeline: &Pipeline, batch: &[PlannedImage], finished: &dyn Fn(usize)) -> Result<()> {
        let config = self.config;
        let prompts: Vec<&str> = batch.iter().map(|image| self.prompts[image.prompt_index].as_str()).collect();
        let seeds: Vec<u64> = batch.iter().map(|image| image.seed).collect();
        let noise: Vec<Tensor> = batch.iter().map(|image| self.noise.of(image)).collect();
        let negative = (config.guidance_scale > 1.0).then(|| pipeline.embed(&[&config.negative_prompt])).transpose()?;
        // As the text encoder's adapters are the LoRA's too, they join at the same step.
        let as_base = |prompts: &[&str], wanted: bool| wanted.then(|| pipeline.embed_as_base(prompts)).transpose();
        let base = as_base(&prompts, config.base_steps > 0)?;
        let base_negative = as_base(&[&config.negative_prompt], base.is_some() && negative.is_some())?;
        let request = Request {
            sampler: &self.sampler,
            prompts: &pipeline.embed(&prompts)?,
            negative_prompts: negative.as_ref(),
            base: base.as_ref().map(|prompts| BaseSteps {
                count: config.base_steps,
                prompts,
                negative_prompts: base_negative.as_ref(),
            }),
            latents: &Tensor::stack(&noise, 0),
            seeds: &seeds,
            guidance_scale: config.guidance_scale,
            precision: pipeline.kind,
        };
        let latents = pipeline.denoise(&request, self.stop, finished)?;
        for (image, latents) in batch.iter().zip(latents.unbind(0)) {
            let (width, height) = self.size.pixels;
            let picture = Picture { width, height, rgb: pipeline.decode(&latents)? };
            if let Some(finals) = &self.finals {
                finals.keep(image, &latents)?;
            }
            let path = config.output.as_deref().unwrap_or(Path::new("")).join(image.path());
            picture::write(&path, &picture, config, image, &self.prompts[image.prompt_index])?;
        }
        Ok(())
    }
}

/// libtorch reports errors by panicking; that memory ran out is one that the user can act on.
fn guarded<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    native::guarded(run).unwrap_or_else(|failure| {
        Err(match failure {
            Failure::OutOfMemory(_) => Error::data("not enough memory for this model, size and batch")
                .hint("--batch-size 1 and --precision bf16 need less"),
            Failure::Libtorch(text) => Error::data(format!("libtorch: {text}")),
        })
    })
}
