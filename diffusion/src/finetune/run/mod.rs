//! The loop: a step, what is logged of it, checkpoints, the end.

mod evaluate;
mod self_check;

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use reward::{
    event::{Event, Observer, TunedStep},
    native::memory,
    optim::Update,
    run::{
        Ended, checkpoints,
        inputs::Inputs,
        metrics::Metrics,
        order::image_seed,
        resume::{ResumePoint, way_on},
        together::same_weights,
    },
    statistics::{deviation, mean},
    world::World,
};
use serde_json::json;
use tch::{Kind, Tensor};

use self_check::SelfCheck;

use super::{
    checkpoint::{self, Progress},
    config::{FinetuneConfig, Train},
    dealer::Dealer,
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
    schedule::{NoiseSchedule, Sampler},
    source::Source,
};

/// Which processes share a run, whom it reports to, who can stop it, and its folder (a rehearsal: none).
#[derive(Clone, Copy)]
pub(super) struct Reports<'a> {
    pub(super) world: &'a World,
    pub(super) observer: &'a dyn Observer,
    pub(super) stop: &'a AtomicBool,
    pub(super) place: Option<&'a Path>,
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
    dealer: Dealer,
    observer: &'a dyn Observer,
    stop: &'a AtomicBool,
    world: &'a World,
    folder: Option<&'a Path>,
    /// The run's figures, which rank 0 alone writes.
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
        Reports { world, observer, stop, place }: Reports<'a>,
    ) -> Result<Self> {
        let models = &parts.models;
        let (guidance_scale, eta, negative_branch_gradient) = config.sampling();
        let scheduler = source.scheduler()?;
        let policy = Policy {
            unet: &models.unet,
            base: models.base.as_ref(),
            sampler: Sampler::new(config.scheduler, &scheduler, config.sample_steps, eta)?,
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
        let dealer = Dealer::new(config, parts.prompts.len(), &pictures);
        // On a CPU as many rows go through at a time as a rank rolls out.
        let shared = world.size() > 1 && !parts.device.is_cuda();
        let most = if shared { config.batch_size.div_ceil(world.size()) } else { usize::MAX };
        Ok(Self {
            config,
            source,
            parts,
            policy,
            objective,
            method,
            pictures,
            update: Update::new(trained, step::adamw(config.weight_decay), clip_norm, config.ema_decay),
            micro_batches: MicroBatches::new(world, choice.micro.min(most), parts.device, observer),
            estimate,
            choice,
            dealer,
            observer,
            stop,
            world,
            folder: place,
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
            "{name}: {:.2} M parameters train beside {:.1} M of the UNet, on {:?}{} in {}, images of {}×{} ({channels} latent channels)\n\
             {} steps of {} images, {} at a time, activations {}: about {} of memory, {} of it for each image at a time",
            count as f64 / 1e6,
            total as f64 / 1e6,
            self.parts.device,
            if self.world.size() > 1 { format!(" in each of {} processes", self.world.size()) } else { String::new() },
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
            self.progress = Progress::go_on(Some(progress), folder, threads, self.observer);
            checkpoint::load(checkpoint, &mut self.update, self.method.as_mut())?;
        }
        self.progress.inputs = inputs;
        self.progress.own.checkpointing = self.choice.checkpointing;
        self.metrics = self.world.leads().then(|| Metrics::open(folder, self.progress.step)).transpose()?;
        self.observer.event(&Event::Note(&self.describe()));
        self.scale_rewards(folder)?;
        if !self.parts.held_out.is_empty() && !self.parts.rewards.is_empty() {
            let held_out = HeldOut::new(
                &self.parts.held_out,
                self.config.held_out_images,
                self.config.seed,
                self.parts.models.latents,
                self.micro_batches.size(),
            );
            let base = self.policy.as_base(|base| {
                let progress = self.watched("base images");
                held_out.snapshot(self.world, base, &self.objective, &self.parts.embeddings, &progress)
            })?;
            self.held_out = Some((held_out, base));
        }
        if self.progress.step == 0 {
            self.evaluate()?;
        }
        Ok(())
    }

    pub(super) fn train(&mut self) -> Result<Ended> {
        let total = self.config.train_steps;
        let mut check = self.self_check();
        while self.progress.step < total {
            if self.world.any(self.stop.load(Ordering::Relaxed))? {
                self.save()?;
                return Ok(Ended::Interrupted { step: self.progress.step });
            }
            let before = self.progress.step;
            let trained = self.round(before + 1, &mut check, false);
            trained.map_err(|error| self.failed(at_step(self.progress.step + 1, &error)))?;
            let step = self.progress.step;
            // A round is whole or not there: what would be due within it is due after it.
            let due = |every: usize| every > 0 && step.div_euclid(every) > before.div_euclid(every);
            if (due(self.config.evaluate_every) || step == total) && self.evaluate()? {
                return self.roll_back();
            }
            if due(self.config.checkpoint_every) || step == total {
                self.save()?;
            }
        }
        self.finish()
    }

    /// The watch over the first updates of a run that begins.
    fn self_check(&self) -> Option<SelfCheck> {
        let prompt = self.parts.prompts.first().filter(|_| self.progress.step == 0)?;
        let shape = self.parts.models.latents;
        Some(SelfCheck::new(&self.policy, &self.parts.embeddings, prompt, shape, self.config.seed))
    }

    /// Makes the round that begins with optimizer step `first`, and takes its steps: seconds of the roll-out, and what the steps
    /// measured. A `dry` one moves nothing and tells nothing.
    fn round(&mut self, first: usize, check: &mut Option<SelfCheck>, dry: bool) -> Result<(f64, Outcome)> {
        let config = self.config;
        let (part, updates) = (format!("step/{first}"), self.method.updates());
        let items = self.dealer.items((first - 1).div_euclid(updates) + 1);
        let seeds = (0..items.len()).map(|index| image_seed(config.seed, &part, index)).collect();
        let _perturbed =
            Perturbed::new(&self.parts.rewards, config.weight_noise, image_seed(config.seed, &part, usize::MAX));
        let Self { policy, objective, pictures, micro_batches, parts, method, update, observer, .. } = self;
        let scene = scene(config, parts, policy, objective, pictures, micro_batches, items, seeds);
        let mut started = Instant::now();
        let round = tch::no_grad(|| method.round(&scene, first))?;
        let rollout_seconds = started.elapsed().as_secs_f64();
        let mut all = Outcome::default();
        for number in 0..updates {
            let step = first + number;
            let factor = if dry { 0.0 } else { config.schedule.factor(step, config.train_steps, config.warmup_steps) };
            let rate = config.learning_rate * factor;
            let mut outcome = match round.items(number) {
                0 => Outcome::default(),
                count => step::take(update, micro_batches, count, rate, |items| round.loss(number, items))?,
            };
            if !round.rewards().is_empty() {
                outcome.rewards = round.rewards().to_vec();
            }
            outcome.figures.extend(round.figures());
            all.add(&outcome);
            if dry {
                continue;
            }
            if let Some(watch) = check {
                let mut lines = Vec::new();
                if number == 0 {
                    lines.extend(watch.rewards(&parts.rewards, &outcome.rewards)?);
                }
                if let Some(seen) = watch.update(policy, &parts.embeddings, &outcome)? {
                    *check = None;
                    lines.extend(seen);
                }
                for mut line in lines {
                    line["step"] = json!(step);
                    self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.add(&line))?;
                }
            }
            let rolled = if number == 0 { rollout_seconds } else { 0.0 };
            let figures = tuned(config, parts, step, rate, &outcome, rolled, started.elapsed().as_secs_f64());
            log(&figures, &outcome, parts, self.metrics.as_mut(), *observer)?;
            self.progress.step = step;
            started = Instant::now();
        }
        Ok((rollout_seconds, all))
    }

    /// An error with what is left to go on with.
    fn failed(&self, error: Error) -> Error {
        let Some(folder) = self.folder.filter(|_| error.kind() != ErrorKind::Interrupted) else { return error };
        let Some(hint) = error.hint_text() else { return error.hint(way_on(folder)) };
        let last: Option<PathBuf> = checkpoints::list(folder).ok().and_then(|mut all| all.pop()).map(|(_, path)| path);
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
        let trained = self.update.trained().iter().map(|(_, tensor)| tensor);
        same_weights(self.world, self.progress.step, trained)?;
        let Some(folder) = self.folder.filter(|_| self.world.leads()) else { return Ok(()) };
        self.progress.own.micro = self.micro_batches.size();
        let path = checkpoints::folder(folder, self.progress.step);
        checkpoint::write(&path, &self.parts.models, &self.update, self.method.as_ref(), &self.progress)
            .map_err(|error| self.failed(error))?;
        checkpoints::prune(folder, self.config.keep_checkpoints)?;
        self.observer.event(&Event::Saved(&path));
        Ok(())
    }

    fn finish(&mut self) -> Result<Ended> {
        let Some(folder) = self.folder else { return Ok(Ended::Interrupted { step: self.progress.step }) };
        let (config, source, models) = (self.config, self.source, &self.parts.models);
        if self.world.leads() {
            self.update
                .with_means(|| checkpoint::result(folder, config, source, models))
                .map_err(|error| self.failed(error))?;
        }
        let name = if config.train == Train::Lora { "lora" } else { "model" };
        Ok(Ended::Finished(folder.join(name)))
    }

    /// The plan with one round measured.
    pub(super) fn rehearse(&mut self) -> Result<String> {
        let plan = self.describe();
        self.round(1, &mut None, true)?;
        let started = Instant::now();
        let updates = self.method.updates();
        let (rollout, outcome) = self.round(1 + updates, &mut None, true)?;
        let seconds = started.elapsed().as_secs_f64();
        let Outcome { forward_seconds, backward_seconds, optimizer_seconds, .. } = outcome;
        let peak = memory(self.parts.device).map_or(0, |memory| memory.peak);
        let minutes = seconds * self.config.train_steps as f64 / updates as f64 / 60.0;
        let what = if updates == 1 { "one step".to_owned() } else { format!("one round of {updates} steps") };
        Ok(format!(
            "{plan}\n{what} measured: {seconds:.2} s (sampling {rollout:.2}, forward {forward_seconds:.2}, backward {backward_seconds:.2}, optimizer {optimizer_seconds:.2}), \
             peak memory {:.2} GB; all {} steps: about {minutes:.0} min beside evaluations",
            peak as f64 / 1e9,
            self.config.train_steps,
        ))
    }
}

/// The line of one optimizer step.
fn tuned(
    config: &FinetuneConfig,
    parts: &Parts,
    step: usize,
    rate: f64,
    outcome: &Outcome,
    rollout_seconds: f64,
    seconds: f64,
) -> TunedStep {
    let rewards = outcome.rewards.first();
    TunedStep {
        step,
        total: config.train_steps,
        loss: outcome.loss,
        reward_mean: rewards.map(|values| mean(values)),
        reward_std: rewards.map(|values| deviation(values)),
        grad_norm: outcome.updated.gradient_norm,
        learning_rate: rate,
        images_per_second: config.batch_size as f64 / seconds,
        peak_memory_bytes: memory(parts.device).map_or(0, |memory| memory.peak),
        rollout_seconds,
        forward_seconds: outcome.forward_seconds,
        backward_seconds: outcome.backward_seconds,
        optimizer_seconds: outcome.optimizer_seconds,
    }
}

/// Writes the line of a step down, and tells it.
fn log(
    figures: &TunedStep,
    outcome: &Outcome,
    parts: &Parts,
    metrics: Option<&mut Metrics>,
    observer: &dyn Observer,
) -> Result<()> {
    if !outcome.updated.applied {
        let text = if outcome.loss.is_finite() && outcome.updated.gradient_norm.is_finite() {
            format!("step {}: no image is better or worse than the others of its prompt: step left out", figures.step)
        } else {
            let (loss, norm) = (outcome.loss, outcome.updated.gradient_norm);
            format!("step {}: non-finite loss or gradient ({loss}, {norm}): step left out", figures.step)
        };
        observer.event(&Event::Warning(&text));
    }
    if let Some(metrics) = metrics {
        let mut line = json!(figures);
        for (weighted, values) in parts.rewards.iter().zip(&outcome.rewards).skip(1) {
            line[format!("{}_mean", weighted.label)] = json!(mean(values));
        }
        for (name, value) in &outcome.figures {
            line[name] = json!(value);
        }
        metrics.add(&line)?;
    }
    observer.event(&Event::Tuned(figures));
    Ok(())
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
        group: config.group(),
    }
}
