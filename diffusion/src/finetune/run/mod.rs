//! The loop: a step, what is logged of it, checkpoints, the end.

mod evaluate;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use reward::{
    event::{Event, Observer, TunedStep},
    native::memory,
    optim::Update,
    run::{
        Ended, RunFolder, checkpoints,
        inputs::Inputs,
        metrics::Metrics,
        order::{Order, image_seed},
        resume::{ResumePoint, way_on},
    },
    statistics::{deviation, mean},
};
use serde_json::json;
use tch::{Kind, Tensor};

use super::{
    checkpoint::{self, Progress},
    config::{FinetuneConfig, Train},
    held_out::{HeldOut, Snapshot},
    load::Parts,
    memory::{Choice, Estimate},
    perturbed::Perturbed,
    step::{self, Outcome},
};
use crate::{
    Error, ErrorKind, Result,
    algorithm::{Algorithm, Scene},
    micro_batches::MicroBatches,
    objective::{Objective, Scale},
    pictures::Pictures,
    policy::Policy,
    schedule::{NoiseSchedule, Sampler, SamplerName},
    source::Source,
};

/// Whom a run reports to, who can stop it, and where it writes (a rehearsal: nowhere).
#[derive(Clone, Copy)]
pub(super) struct Reports<'a> {
    pub(super) observer: &'a dyn Observer,
    pub(super) stop: &'a AtomicBool,
    pub(super) folder: Option<&'a RunFolder>,
}

/// A run under way.
pub(super) struct Run<'a> {
    config: &'a FinetuneConfig,
    source: &'a Source,
    parts: &'a Parts,
    policy: Policy<'a>,
    objective: Objective<'a>,
    method: Box<dyn Algorithm>,
    pictures: Pictures,
    update: Update,
    micro_batches: MicroBatches<'a>,
    estimate: Estimate,
    choice: Choice,
    order: Order,
    observer: &'a dyn Observer,
    stop: &'a AtomicBool,
    folder: Option<&'a RunFolder>,
    metrics: Option<Metrics>,
    progress: Progress,
    held_out: Option<(HeldOut, Snapshot)>,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        config: &'a FinetuneConfig,
        source: &'a Source,
        parts: &'a Parts,
        method: Box<dyn Algorithm>,
        pictures: Pictures,
        (estimate, choice): (Estimate, Choice),
        Reports { observer, stop, folder }: Reports<'a>,
    ) -> Result<Self> {
        let models = &parts.models;
        let (guidance_scale, eta, negative_branch_gradient) = config.sampling();
        let scheduler = source.scheduler()?;
        let policy = Policy {
            unet: &models.unet,
            base: models.base.as_ref(),
            sampler: Sampler::new(SamplerName::Ddim, &scheduler, config.sample_steps, eta)?,
            schedule: NoiseSchedule::new(&scheduler),
            prediction: scheduler.prediction_type,
            guidance_scale,
            negative: parts.embeddings.of(std::slice::from_ref(&config.negative_prompt)),
            negative_branch_gradient,
        };
        let objective = Objective {
            vae: &models.vae,
            rewards: &parts.rewards,
            scales: vec![Scale::RAW; parts.rewards.len()],
            shaping: config.shaping,
            margin: config.margin,
            loss_scale: config.loss_scale,
            anchor: config.anchor,
            pixel_noise: config.pixel_noise,
        };
        let trained = models.unet.parameters.trained();
        let clip_norm = (config.clip_norm > 0.0).then_some(config.clip_norm);
        let items = if config.on_pictures() { pictures.training_rows() } else { parts.prompts.len() };
        Ok(Self {
            config,
            source,
            parts,
            policy,
            objective,
            method,
            pictures,
            update: Update::new(trained, step::adamw(config.weight_decay), clip_norm, config.ema_decay),
            micro_batches: MicroBatches::new(choice.micro, parts.device, observer),
            estimate,
            choice,
            order: Order::of_prompts(items, config.seed),
            observer,
            stop,
            folder,
            metrics: None,
            progress: Progress { threads: tch::get_num_threads() as usize, ..Progress::default() },
            held_out: None,
        })
    }

    /// The plan in words.
    fn describe(&self) -> String {
        let config = self.config;
        let count: usize = self.update.trained().iter().map(|(_, tensor)| tensor.numel()).sum();
        let total: usize = self.parts.models.unet.parameters.tensors.values().map(Tensor::numel).sum();
        let [channels, height, width] = self.parts.models.latents;
        let factor = self.parts.models.vae.config.factor();
        let name = config.method().map_or("", |method| method.name);
        let gigabytes = |bytes: f64| format!("{:.2} GB", bytes / 1e9);
        format!(
            "{name}: {:.2} M parameters train beside {:.1} M of the UNet, on {:?} in {}, images of {}×{} ({channels} latent channels)\n\
             {} steps of {} images, {} at a time, activations {}: about {} of memory, {} of it for each image at a time",
            count as f64 / 1e6,
            total as f64 / 1e6,
            self.parts.device,
            if self.parts.kind == Kind::Float { "fp32" } else { "bf16" },
            width * factor,
            height * factor,
            config.train_steps,
            config.batch_size,
            self.micro_batches.size(),
            if self.choice.checkpointing { "computed again in the backward pass" } else { "kept" },
            gigabytes(self.estimate.bytes(Choice { micro: self.micro_batches.size(), ..self.choice })),
            gigabytes(match self.choice.checkpointing {
                true => self.estimate.image_recomputed,
                false => self.estimate.image,
            }),
        )
    }

    /// Brings everything to where training goes on: the checkpoint's state, the rewards' scales, the base model's held-out images.
    pub(super) fn start(&mut self, resumed: Option<&ResumePoint<Progress>>, inputs: Inputs) -> Result<()> {
        let Some(folder) = self.folder else { return Ok(()) };
        if let Some(ResumePoint { folder: checkpoint, progress, .. }) = resumed {
            let threads = self.progress.threads;
            self.progress = Progress::go_on(Some(progress), folder.path(), threads, self.observer);
            checkpoint::load(checkpoint, &mut self.update, self.method.as_mut())?;
        }
        self.progress.inputs = inputs;
        self.progress.own.checkpointing = self.choice.checkpointing;
        self.metrics = Some(Metrics::open(folder.path(), self.progress.step)?);
        self.observer.event(&Event::Note(&self.describe()));
        self.scale_rewards(folder.path())?;
        if !self.parts.held_out.is_empty() && !self.parts.rewards.is_empty() {
            let held_out = HeldOut::new(
                &self.parts.held_out,
                self.config.held_out_images,
                self.config.seed,
                self.parts.models.latents,
                self.micro_batches.size(),
            );
            let base = self.policy.as_base(|base| {
                held_out.snapshot(base, &self.objective, &self.parts.embeddings, &self.watched("base images"))
            })?;
            self.held_out = Some((held_out, base));
        }
        if self.progress.step == 0 {
            self.evaluate()?;
        }
        Ok(())
    }

    pub(super) fn train(&mut self) -> Result<Ended> {
        let config = self.config;
        let total = config.train_steps;
        for step in self.progress.step + 1..=total {
            if self.stop.load(Ordering::Relaxed) {
                self.save()?;
                return Ok(Ended::Interrupted { step: self.progress.step });
            }
            let started = Instant::now();
            let rate = config.learning_rate * config.schedule.factor(step, total, config.warmup_steps);
            let (rollout_seconds, outcome) =
                self.step(step, rate).map_err(|error| self.failed(at_step(step, &error)))?;
            self.progress.step = step;
            self.progress.own.micro = self.micro_batches.size();
            self.log(step, rate, &outcome, rollout_seconds, started.elapsed().as_secs_f64())?;
            let due = |every: usize| every > 0 && step.is_multiple_of(every);
            if (due(config.evaluate_every) || step == total) && self.evaluate()? {
                return self.roll_back();
            }
            if due(config.checkpoint_every) || step == total {
                self.save()?;
            }
        }
        self.finish()
    }

    /// Makes the round of step `step` and takes its optimizer steps: seconds of the roll-out, and what the steps measured.
    fn step(&mut self, step: usize, rate: f64) -> Result<(f64, Outcome)> {
        let config = self.config;
        let part = format!("step/{step}");
        let mut items = Vec::new();
        for item in self.order.full_batch(step, config.batch_size.div_euclid(config.images_per_prompt)) {
            let item = if config.on_pictures() { self.pictures.training_row(item) } else { item };
            items.extend(std::iter::repeat_n(item, config.images_per_prompt));
        }
        let seeds = (0..config.batch_size).map(|index| image_seed(config.seed, &part, index)).collect();
        let _perturbed =
            Perturbed::new(&self.parts.rewards, config.weight_noise, image_seed(config.seed, &part, usize::MAX));
        let Self { policy, objective, pictures, micro_batches, parts, method, update, .. } = self;
        let scene = scene(config, parts, policy, objective, pictures, micro_batches, items, seeds);
        let started = Instant::now();
        let round = tch::no_grad(|| method.round(&scene, step))?;
        let rollout_seconds = started.elapsed().as_secs_f64();
        let mut take =
            |number| step::take(update, micro_batches, config.batch_size, rate, |images| round.loss(number, images));
        let mut outcome = take(0)?;
        for number in 1..round.updates() {
            outcome = outcome.then(take(number)?);
        }
        Ok((rollout_seconds, outcome))
    }

    fn log(&mut self, step: usize, rate: f64, outcome: &Outcome, rollout_seconds: f64, seconds: f64) -> Result<()> {
        if !outcome.updated.applied {
            let text = format!(
                "step {step}: non-finite loss or gradient ({}, {}): step left out",
                outcome.loss, outcome.updated.gradient_norm
            );
            self.observer.event(&Event::Warning(&text));
        }
        let rewards = outcome.rewards.first();
        let figures = TunedStep {
            step,
            total: self.config.train_steps,
            loss: outcome.loss,
            reward_mean: rewards.map(|values| mean(values)),
            reward_std: rewards.map(|values| deviation(values)),
            grad_norm: outcome.updated.gradient_norm,
            learning_rate: rate,
            images_per_second: self.config.batch_size as f64 / seconds,
            peak_memory_bytes: memory(self.parts.device).map_or(0, |memory| memory.peak),
            rollout_seconds,
            forward_seconds: outcome.forward_seconds,
            backward_seconds: outcome.backward_seconds,
            optimizer_seconds: outcome.optimizer_seconds,
        };
        if let Some(metrics) = &mut self.metrics {
            let mut line = json!(figures);
            for (weighted, values) in self.parts.rewards.iter().zip(&outcome.rewards).skip(1) {
                line[format!("{}_mean", weighted.label)] = json!(mean(values));
            }
            metrics.add(&line)?;
        }
        self.observer.event(&Event::Tuned(&figures));
        Ok(())
    }

    /// An error with what is left to go on with.
    fn failed(&self, error: Error) -> Error {
        let Some(folder) = self.folder.filter(|_| error.kind() != ErrorKind::Interrupted) else { return error };
        let Some(hint) = error.hint_text() else { return error.hint(way_on(folder.path())) };
        let last: Option<PathBuf> =
            checkpoints::list(folder.path()).ok().and_then(|mut all| all.pop()).map(|(_, path)| path);
        let good = match (last, self.config.train) {
            (None, _) => "no checkpoint was written yet".to_owned(),
            (Some(path), Train::Full) => format!("the last checkpoint is good: {}", path.display()),
            (Some(path), Train::Lora) => {
                format!("the last checkpoint is good: `lora = \"{}\"` starts another run from it", path.display())
            }
        };
        let hint = format!("{hint}; {good}");
        error.hint(hint)
    }

    fn save(&mut self) -> Result<()> {
        let Some(folder) = self.folder else { return Ok(()) };
        self.progress.own.micro = self.micro_batches.size();
        let path = checkpoints::folder(folder.path(), self.progress.step);
        checkpoint::write(&path, &self.parts.models, &self.update, self.method.as_ref(), &self.progress)
            .map_err(|error| self.failed(error))?;
        checkpoints::prune(folder.path(), self.config.keep_checkpoints)?;
        self.observer.event(&Event::Saved(&path));
        Ok(())
    }

    fn finish(&mut self) -> Result<Ended> {
        let Some(folder) = self.folder else { return Ok(Ended::Interrupted { step: self.progress.step }) };
        let (config, source, models) = (self.config, self.source, &self.parts.models);
        self.update
            .with_means(|| checkpoint::result(folder.path(), config, source, models))
            .map_err(|error| self.failed(error))?;
        let name = if config.train == Train::Lora { "lora" } else { "model" };
        Ok(Ended::Finished(folder.path().join(name)))
    }

    /// The plan with one step measured.
    pub(super) fn rehearse(&mut self) -> Result<String> {
        let plan = self.describe();
        self.step(1, 0.0)?;
        let started = Instant::now();
        let (rollout, outcome) = self.step(2, 0.0)?;
        let seconds = started.elapsed().as_secs_f64();
        let Outcome { forward_seconds, backward_seconds, optimizer_seconds, .. } = outcome;
        let peak = memory(self.parts.device).map_or(0, |memory| memory.peak);
        let minutes = seconds * self.config.train_steps as f64 / 60.0;
        Ok(format!(
            "{plan}\none step measured: {seconds:.2} s (sampling {rollout:.2}, forward {forward_seconds:.2}, backward {backward_seconds:.2}, optimizer {optimizer_seconds:.2}), \
             peak memory {:.2} GB; all {} steps: about {minutes:.0} min beside evaluations",
            peak as f64 / 1e9,
            self.config.train_steps,
        ))
    }
}

/// The same error with the step it happened in.
fn at_step(step: usize, error: &Error) -> Error {
    let named = Error::data(format!("step {step}: {error}"));
    match error.hint_text() {
        Some(hint) => named.hint(hint),
        None => named,
    }
}

/// The images `items` with `seeds`, of a run.
#[allow(clippy::too_many_arguments, reason = "parts of a run, borrowed one by one")]
fn scene<'a>(
    config: &FinetuneConfig,
    parts: &'a Parts,
    policy: &'a Policy<'a>,
    objective: &'a Objective<'a>,
    pictures: &'a Pictures,
    micro_batches: &'a MicroBatches<'a>,
    items: Vec<usize>,
    seeds: Vec<u64>,
) -> Scene<'a> {
    Scene {
        policy,
        objective,
        embeddings: &parts.embeddings,
        prompts: &parts.prompts,
        pictures,
        micro_batches,
        latents: parts.models.latents,
        seed: config.seed,
        items,
        seeds,
    }
}
