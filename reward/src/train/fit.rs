//! The training loop: seeded order, decode-ahead, one gradient step per batch, validation, checkpoints, exact resume.

use std::{
    collections::HashMap,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use serde_json::json;
use tch::{Kind, Tensor};

use super::{
    checkpoint::{Progress, load_state, save_checkpoint, save_model},
    config::TrainConfig,
    encoder::{Encoder, Examples, Fetched, Fetcher, distinct_images},
    inputs::checked,
    prefix_cache::PrefixCache,
    prepare::{decode_options, prepare},
    step::Stepper,
    trainable::{Trainable, TrainingMode},
    validate::validate,
};
use crate::{
    Error, Result,
    clip::model::Clip,
    data::{loader::ordered, named::Named, preflight::OnBadImage, triplets::Triplet},
    event::{Event, Observer, Step},
    native::{Failure, guarded},
    run::{
        Ended, RunFolder, checkpoints,
        deal::Deal,
        metrics::Metrics,
        order::Order,
        place::Settings,
        resume::{ResumePoint, resume_point, way_on},
        together::{same_inputs, same_settings, same_start, same_weights},
    },
    threads,
    weights::{Checkpoint, OpenOptions},
    world::World,
};

/// Trains a reward as `config` says, in its save folder; with `resume`, goes on from the newest complete checkpoint there.
/// Between steps it looks at `stop`. All ranks of `world` train one model, of which rank 0 writes what is left.
///
/// # Errors
/// Settings, data or model that do not fit; a failing disk; a loss that stays non-finite; libtorch out of memory; a rank that is
/// lost.
pub fn train(
    config: &TrainConfig,
    resume: bool,
    world: &World,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<Ended> {
    config.check()?;
    guarded(|| run(config, resume, world, observer, stop)).unwrap_or_else(|failure| {
        let (error, way_on) =
            (Error::data(format!("training stopped in libtorch: {failure}")), way_on(config.folder()));
        Err(match failure {
            Failure::OutOfMemory(_) => {
                error.hint(format!("raise --gradient-accumulation or add --gradient-checkpointing; {way_on}"))
            }
            Failure::Libtorch(_) => error.hint(way_on),
        })
    })
}

fn run(config: &TrainConfig, resume: bool, world: &World, observer: &dyn Observer, stop: &AtomicBool) -> Result<Ended> {
    let (Some(mode), Some(save_folder)) = (config.training_mode, &config.save_folder) else {
        return Err(Error::usage("training_mode and save_folder are missing"));
    };
    let device = config.device.resolve(world.local_rank())?;
    world.compute_on(device)?;
    same_settings(world, config)?;
    let folder = RunFolder::claim_first(world, config, resume, save_folder, "save-folder")?;
    let resumed: Option<ResumePoint<Progress>> = resume_point(config, resume, observer)?;
    same_start(world, resumed.as_ref().map(|point| point.step))?;
    let options = OpenOptions {
        activation: config.activation,
        seed: config.seed,
        weights: config.weights.as_deref(),
        architecture: None,
    };
    let open = || Checkpoint::open_base(config.checkout_path.as_deref(), config.model.as_deref(), options);
    let source = world.first_here(open)?;
    source.check_vocabulary()?;
    let data = prepare(config, &source.config, observer, stop)?;
    let inputs = checked(config, &source, data.inputs.clone(), resumed.as_ref(), observer)?;
    same_inputs(world, &inputs)?;
    if let Some(folder) = &folder {
        folder.begin(config, resumed.as_ref(), observer)?;
    }
    source.announce(observer);

    threads::settle(source.config.largest_product());
    let threads = tch::get_num_threads() as usize;
    let earlier = resumed.as_ref().map(|point| &point.progress);
    let progress = Progress { inputs, ..Progress::go_on(earlier, save_folder, threads, observer) };
    let resumed_from = resumed.map(|point| point.folder);
    let trainable = Trainable::new(mode, &source.config);
    let current = match &resumed_from {
        Some(path) => Some(Checkpoint::open(&path.to_string_lossy(), OpenOptions::default())?),
        None => None,
    };
    let mut clip = Clip::load(&source, device, config.precision.kind(), |name| trainable.trains(name))?;
    if let Some(current) = &current {
        clip.load_trained(current)?;
    }
    clip.checkpointing = config.gradient_checkpointing;
    let cache = open_cache(config, world, &source, &clip, trainable)?;
    let decode = decode_options(config, &source.config);
    let fetcher = Fetcher::new(cache, decode, &source.config, trainable);
    let mut fit = Fit {
        config,
        world,
        observer,
        stop,
        folder: save_folder,
        source: &source,
        clip: &clip,
        fetcher: &fetcher,
        encoder: Encoder::new(&clip, trainable, &fetcher),
        training: &data.training,
        validation: data.validation.as_ref(),
        stepper: Stepper::new(&clip, mode, config.loss_name, config.margin, config.clip_norm),
        metrics: folder.as_ref().map(|folder| Metrics::open(folder.path(), progress.step)).transpose()?,
        progress,
    };
    if let Some(path) = &resumed_from {
        load_state(path, &mut fit.stepper.update.adam, &clip)?;
    }
    fit.announce(mode);
    let ended = fit.run()?;
    // What rank 0 writes last may fail.
    world.barrier()?;
    Ok(ended)
}

fn open_cache(
    config: &TrainConfig,
    world: &World,
    source: &Checkpoint,
    clip: &Clip,
    trainable: Trainable,
) -> Result<PrefixCache> {
    let gigabytes = |gigabytes: f64| (gigabytes * 1e9) as u64;
    match config.cache.as_str() {
        "off" => Ok(PrefixCache::off()),
        "ram" => {
            let free = || quarter_of_free_memory().div_euclid(world.local_size() as u64);
            Ok(PrefixCache::ram(config.cache_gb.map_or_else(free, gigabytes)))
        }
        folder => {
            let context = cache_context(config, source, clip.kind, trainable)?;
            PrefixCache::disk(folder.into(), context, gigabytes(config.cache_gb.unwrap_or(100.0)))
        }
    }
}

/// What a cached activation depends on besides the picture or prompt: the frozen weights, and what is not in them, as
/// activation, heads and preprocessing.
fn cache_context(config: &TrainConfig, source: &Checkpoint, kind: Kind, trainable: Trainable) -> Result<blake3::Hash> {
    let mut context = blake3::Hasher::new();
    let settings = (&source.config, config.exif_rotate, config.fast_decode, config.max_pixels, kind);
    context.update(format!("2 {settings:?} {trainable:?}").as_bytes());
    for (name, shape) in source.config.parameters() {
        if !trainable.trains(&name) {
            context.update(name.as_bytes());
            for value in source.read(&name, &shape)? {
                context.update(&value.to_le_bytes());
            }
        }
    }
    Ok(context.finalize())
}

/// Bytes; 4 GB where the system does not say.
fn quarter_of_free_memory() -> u64 {
    let memory = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = available.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.map_or(4_000_000_000, |kilobytes| kilobytes * 256)
}

/// This rank's part of the batches of a run, as the loader and the training step both take them.
struct Batches<'a> {
    rows: &'a [Triplet],
    order: Order,
    size: usize,
    micro: usize,
    deal: Deal,
}

impl Batches<'_> {
    fn steps_per_epoch(&self) -> usize {
        self.order.steps_per_epoch(self.size)
    }

    /// Micro-batches of step `step`: their rows, and the distinct images of those.
    fn of_step(&mut self, step: usize) -> Vec<(Vec<Triplet>, Vec<u32>)> {
        let own = self.deal.own(&self.order.batch(step, self.size));
        let rows: Vec<Triplet> = own.into_iter().map(|row| self.rows[row]).collect();
        rows.chunks(self.micro).map(|rows| (rows.to_vec(), distinct_images(rows))).collect()
    }
}

struct Fit<'a> {
    config: &'a TrainConfig,
    world: &'a World,
    observer: &'a dyn Observer,
    stop: &'a AtomicBool,
    folder: &'a Path,
    source: &'a Checkpoint,
    clip: &'a Clip,
    fetcher: &'a Fetcher,
    encoder: Encoder<'a>,
    training: &'a Examples,
    validation: Option<&'a Examples>,
    stepper: Stepper,
    /// The run's figures, which rank 0 alone writes.
    metrics: Option<Metrics>,
    progress: Progress,
}

impl<'a> Fit<'a> {
    fn batches(&self) -> Batches<'a> {
        let rows = &self.training.triplets.rows;
        let size = self.config.batch_size;
        let micro = size.div_ceil(self.config.micro_batches(self.clip.device));
        let mut order = Order::of_rows(rows.len(), self.config.seed);
        let deal = Deal::new(self.world.rank(), self.world.size(), &mut order, size);
        Batches { rows, order, size, micro, deal }
    }

    fn total_steps(&self) -> usize {
        let all = self.batches().steps_per_epoch() * self.config.n_epochs;
        self.config.max_steps.map_or(all, |most| most.min(all))
    }

    fn announce(&self, mode: TrainingMode) {
        let counts = |trained_only: bool| -> usize {
            let parameters = self.clip.parameters.values();
            parameters.filter(|tensor| !trained_only || tensor.requires_grad()).map(Tensor::numel).sum()
        };
        let text = format!(
            "{mode:?}: {:.1} of {:.1} M parameters train on {:?}{}, {} steps of {} triplets, from step {}",
            counts(true) as f64 / 1e6,
            counts(false) as f64 / 1e6,
            self.clip.device,
            if self.world.size() > 1 { format!(" in each of {} processes", self.world.size()) } else { String::new() },
            self.total_steps(),
            self.config.batch_size,
            self.progress.step + 1,
        );
        self.observer.event(&Event::Note(&text));
    }

    fn run(&mut self) -> Result<Ended> {
        if self.progress.step == 0 {
            self.validate()?;
        }
        let (training, fetcher) = (self.training, self.fetcher);
        let mut batches = self.batches();
        let steps = self.progress.step + 1..=self.total_steps();
        let images = steps
            .clone()
            .flat_map(move |step| batches.of_step(step).into_iter().flat_map(|(_, images)| images).collect::<Vec<_>>());
        ordered(
            images,
            self.config.workers(),
            4 * self.config.batch_size,
            |image| (image, fetcher.fetch(training, image)),
            |fetched| self.steps(steps, fetched),
        )
    }

    fn steps(
        &mut self,
        steps: std::ops::RangeInclusive<usize>,
        fetched: &mut dyn Iterator<Item = (u32, Result<Fetched>)>,
    ) -> Result<Ended> {
        let mut batches = self.batches();
        let (total, steps_per_epoch) = (*steps.end(), batches.steps_per_epoch());
        for step in steps {
            if self.world.any(self.stop.load(Ordering::Relaxed))? {
                self.save()?;
                return Ok(Ended::Interrupted { step: self.progress.step });
            }
            let started = Instant::now();
            let micro_batches = self.gather(batches.of_step(step), fetched)?;
            let rows: usize = micro_batches.iter().map(|(rows, _)| rows.len()).sum();
            let rows = self.world.sum([rows as f64])?[0] as usize;
            if rows == 0 {
                return Err(Error::data("a batch has no readable image")
                    .hint("--preflight full finds every bad image before training"));
            }
            let rate = self.config.learning_rate * self.config.schedule.factor(step, total, self.config.warmup_steps);
            let (encoder, training) = (&self.encoder, self.training);
            let inputs = micro_batches.into_iter().map(|(rows, fetched)| encoder.inputs(training, &rows, fetched));
            let updated =
                self.stepper.step(self.world, encoder, inputs, rows, rate).map_err(|error| self.failed(error))?;
            if !updated.applied {
                let text = format!(
                    "step {step}: non-finite loss or gradient ({}, {}): step left out",
                    updated.loss, updated.gradient_norm
                );
                self.observer.event(&Event::Warning(&text));
            }
            self.progress.step = step;
            let figures = Step {
                step,
                total,
                epoch: (step - 1).div_euclid(steps_per_epoch) + 1,
                loss: updated.loss,
                learning_rate: rate,
                grad_norm: updated.gradient_norm,
                triplets_per_second: rows as f64 / started.elapsed().as_secs_f64(),
            };
            self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.add(&json!(figures)))?;
            self.observer.event(&Event::Step(&figures));
            let due = |every: usize| every > 0 && step.is_multiple_of(every);
            let epoch_ends = step.is_multiple_of(steps_per_epoch) || step == total;
            if epoch_ends || due(self.config.validate_every) {
                self.validate()?;
            }
            if epoch_ends || due(self.config.checkpoint_every) {
                self.save()?;
            }
        }
        self.finish()
    }

    /// The micro-batches of a batch with their images; rows whose image cannot be decoded are left out where the user said so.
    #[allow(clippy::type_complexity, reason = "rows and images of one micro-batch; named nowhere else")]
    fn gather(
        &self,
        batch: Vec<(Vec<Triplet>, Vec<u32>)>,
        fetched: &mut dyn Iterator<Item = (u32, Result<Fetched>)>,
    ) -> Result<Vec<(Vec<Triplet>, HashMap<u32, Fetched>)>> {
        let mut micro_batches = Vec::new();
        for (rows, wanted) in batch {
            let mut images = HashMap::new();
            for (image, result) in fetched.take(wanted.len()) {
                match result {
                    Ok(image_data) => drop(images.insert(image, image_data)),
                    Err(error) if self.config.on_bad_image == OnBadImage::Skip => {
                        self.observer.event(&Event::Warning(&format!("{error}: its rows are left out")));
                    }
                    Err(error) => return Err(error),
                }
            }
            let whole = |row: &&Triplet| images.contains_key(&row.positive) && images.contains_key(&row.negative);
            let rows: Vec<Triplet> = rows.iter().filter(whole).copied().collect();
            if !rows.is_empty() {
                micro_batches.push((rows, images));
            }
        }
        Ok(micro_batches)
    }

    /// Validates, keeps the best model, and writes the figures down.
    fn validate(&mut self) -> Result<()> {
        let Some(examples) = self.validation else { return Ok(()) };
        let validation = validate(self.config, self.world, &self.encoder, examples, self.observer)?;
        let step = self.progress.step;
        let line = json!({
            "step": step,
            "validation_accuracy": validation.accuracy,
            "validation_interval_low": validation.interval_low,
            "validation_interval_high": validation.interval_high,
            "validation_mean_gap": validation.mean_gap,
            "validation_auc": validation.auc,
        });
        self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.add(&line))?;
        let best = self.progress.best.is_none_or(|best| validation.accuracy > best);
        self.observer.event(&Event::Validated { step, validation: &validation, best });
        if best {
            self.progress.best = Some(validation.accuracy);
            if self.world.leads() {
                let path = self.folder.join("best");
                save_model(&path, self.clip, self.source).map_err(|error| self.failed(error))?;
            }
        }
        Ok(())
    }

    /// An error with what is left to go on with.
    fn failed(&self, error: Error) -> Error {
        let run = self.folder;
        let Some(hint) = error.hint_text() else { return error.hint(way_on(run)) };
        let good = match checkpoints::list(run).ok().and_then(|mut all| all.pop()) {
            Some((_, path)) => {
                format!("the last checkpoint is good: --checkout-path {} starts another run from it", path.display())
            }
            None => "no checkpoint was written yet".to_owned(),
        };
        let hint = format!("{hint}; {good}");
        error.hint(hint)
    }

    fn save(&mut self) -> Result<()> {
        let trained = self.stepper.update.trained().iter().map(|(_, tensor)| tensor);
        same_weights(self.world, self.progress.step, trained)?;
        if !self.world.leads() {
            return Ok(());
        }
        let path = checkpoints::folder(self.folder, self.progress.step);
        save_checkpoint(&path, self.clip, self.source, &self.stepper.update.adam, &self.progress)
            .map_err(|error| self.failed(error))?;
        checkpoints::prune(self.folder, self.config.keep_checkpoints)?;
        self.observer.event(&Event::Saved(&path));
        Ok(())
    }

    fn finish(&mut self) -> Result<Ended> {
        let mut truncated = Named::default();
        for image in self.fetcher.truncated() {
            truncated.add(image);
        }
        if let Some(warning) = truncated.truncated_images() {
            self.observer.event(&Event::Warning(&warning));
        }
        let path = self.folder.join("final");
        if self.world.leads() {
            save_model(&path, self.clip, self.source).map_err(|error| self.failed(error))?;
        }
        Ok(Ended::Finished(path))
    }
}
