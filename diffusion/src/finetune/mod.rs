//! `diffusion finetune`: the loop around every method. Prompts in seeded order, roll-out, reward, the method's loss, and one
//! place that steps ([`step`]); held-out prompts are watched for reward hacking, checkpoints resume bit for bit.

mod config;
mod deal;
mod denoise;
mod grid;
pub mod planner;
mod saved;
mod scale;
mod setup;
mod step;
mod watch;

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use reward::{
    event::{Event, Observer, TunedStep},
    native::memory,
    run::{RunFolder, checkpoints, metrics::Metrics},
    weights::save::replace_file,
};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    algorithm::{Algorithm, AlgorithmName, Loss, Objective, Scale, Weighted},
    noise,
    pipeline::default_precision,
    policy::{Batch, Plan, Policy},
    prompts,
    schedule::{NoiseSchedule, Sampler, SamplerName},
    source::{Source, SourceOptions},
};
use deal::{Deal, image_seed};
use planner::{Choice, Estimate};
use saved::Progress;
use setup::{Embeddings, Models};
use step::{Outcome, Stepper, Work};
use watch::{HeldOut, Snapshot};

pub use config::{Checkpointing, FinetuneConfig, RewardScale, Train};

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// All steps are done, or the stop rule held; what was trained is in this folder.
    Finished(PathBuf),
    /// Asked to stop; everything up to `step` is saved.
    Interrupted {
        /// Optimizer steps done.
        step: usize,
    },
}

/// Fine-tunes a model as `config` says, in its output folder; with `resume`, goes on from the newest complete checkpoint there.
/// Between steps it looks at `stop`.
///
/// # Errors
/// Settings, data or models that do not fit; a failing disk; numbers that stay non-finite; one image that does not fit into
/// memory.
pub fn finetune(config: &FinetuneConfig, resume: bool, observer: &dyn Observer, stop: &AtomicBool) -> Result<Ended> {
    config.check()?;
    let output = config.output.as_deref().unwrap_or(Path::new(""));
    let folder = RunFolder::claim(output, "output")?;
    let resumed = resume_point(&folder, config, resume)?;
    guarded(|| {
        let source = open(config)?;
        let mut parts = Parts::load(config, &source, observer)?;
        folder.write_config(config)?;
        let device = parts.device;
        let images = denoise::prepare(config, &mut parts.models, folder.path(), device, observer, stop)?;
        let Some(images) = images else { return Ok(Ended::Interrupted { step: 0 }) };
        let progress = resumed.as_deref().map(saved::progress).transpose()?;
        let planned = parts.plan(config, progress.as_ref());
        let mut run =
            Run::new(config, &source, &parts, images, planned, Reports { observer, stop, folder: Some(&folder) })?;
        run.start(resumed.as_deref().zip(progress))?;
        run.train()
    })
}

/// What a run would do, without doing it: trainable parameters, memory, and the time of one step, measured.
///
/// # Errors
/// As [`finetune`].
pub fn dry_run(config: &FinetuneConfig, observer: &dyn Observer, stop: &AtomicBool) -> Result<String> {
    config.check()?;
    guarded(|| {
        let source = open(config)?;
        let mut parts = Parts::load(config, &source, observer)?;
        let scratch = tempfile::tempdir()?;
        let short = FinetuneConfig { vae_steps: config.vae_steps.min(1), ..config.clone() };
        let device = parts.device;
        let images = denoise::prepare(&short, &mut parts.models, scratch.path(), device, observer, stop)?;
        let planned = parts.plan(config, None);
        let images = images.unwrap_or_default();
        let mut run = Run::new(config, &source, &parts, images, planned, Reports { observer, stop, folder: None })?;
        run.rehearse()
    })
}

/// Runs `body`; what tch reports by panicking becomes an error.
fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
    caught.unwrap_or_else(|panic| {
        let text = reward::native::panic_text(&*panic);
        let error = Error::data(format!("fine-tuning stopped in libtorch: {text}"));
        Err(match step::is_out_of_memory(&text) {
            true => error.hint("precision = \"bf16\", a smaller height and width, or fewer held_out_images"),
            false => error.hint("--resume goes on from the last checkpoint"),
        })
    })
}

/// The checkpoint to go on from, after checking that the folder is this run's.
fn resume_point(folder: &RunFolder, config: &FinetuneConfig, resume: bool) -> Result<Option<PathBuf>> {
    let Some(earlier) = folder.earlier_config::<FinetuneConfig>()? else { return Ok(None) };
    let place = folder.path().display();
    if !resume {
        return Err(Error::usage(format!("{place} holds another run"))
            .hint("--resume goes on with it; or give another --output"));
    }
    let changed = config.changed_since(&earlier);
    if !changed.is_empty() {
        return Err(Error::usage(format!("--resume: {} differ(s) from the run in {place}", changed.join(", ")))
            .hint(format!("use the settings of {place}/config.toml, or start another run in another --output")));
    }
    Ok(checkpoints::list(folder.path())?.pop().map(|(_, path)| path))
}

fn open(config: &FinetuneConfig) -> Result<Source> {
    let prediction_type = config.prediction_type.as_deref().map(str::parse).transpose()?;
    // `random:NAME` is one model, whatever the seed of the run.
    Source::open(config.model.as_deref().unwrap_or_default(), SourceOptions { seed: 0, prediction_type })
}

/// What is loaded before a run starts, rewards first: they are the smallest, and the likeliest to be wrong.
struct Parts {
    rewards: Vec<Weighted>,
    prompts: Vec<String>,
    held_out: Vec<String>,
    models: Models,
    embeddings: Embeddings,
    device: Device,
    kind: Kind,
}

impl Parts {
    fn load(config: &FinetuneConfig, source: &Source, observer: &dyn Observer) -> Result<Self> {
        let read = |file: &Option<PathBuf>| file.as_deref().map_or(Ok(Vec::new()), reward::data::prompts::read);
        let (mut prompts, held_out) = (read(&config.prompts)?, read(&config.held_out_prompts)?);
        let shared = held_out.iter().filter(|prompt| prompts.contains(prompt)).count();
        if shared > 0 {
            let text =
                format!("{shared} held-out prompt(s) are among the training prompts: they show no more than those");
            observer.event(&Event::Warning(&text));
        }
        if let Some(table) = &config.images {
            prompts = denoise::prompts(table)?;
        }
        let sampler = Sampler::new(SamplerName::Ddim, &source.scheduler()?, config.sample_steps, config.sampling().1)?;
        drop(sampler);
        let device = config.device.resolve()?;
        let kind = config.precision.unwrap_or_else(|| default_precision(device)).kind();
        let mut rewards: Vec<Weighted> = Vec::new();
        for spec in &config.reward {
            let reward = spec.load(config.clip.as_deref(), device, kind)?;
            if !reward.differentiable() && config.algorithm != Some(AlgorithmName::Denoising) {
                return Err(Error::usage(format!(
                    "reward `{}` has no gradient, which this method needs",
                    reward.name()
                )));
            }
            let mut label = reward.name().to_owned();
            let same = rewards.iter().filter(|other| other.reward.name() == label).count();
            if same > 0 {
                label = format!("{label}-{}", same + 1);
            }
            rewards.push(Weighted { label, reward, weight: spec.weight });
        }
        if source.prediction_type_is_assumed() {
            let text = "prediction type: epsilon (a single file does not say; prediction_type does)";
            observer.event(&Event::Note(text));
        }
        prompts::warn(&prompts, &config.negative_prompt, &source.tokenizer()?, observer)?;
        let models = Models::load(config, source, device, kind)?;
        let all = prompts.iter().chain(&held_out).map(String::as_str);
        let embeddings = Embeddings::new(
            source,
            all.chain([config.negative_prompt.as_str(), ""]),
            &models.text_adapters,
            models.unet.config.cross_attention_dim,
            (device, kind),
        )?;
        Ok(Self { rewards, prompts, held_out, models, embeddings, device, kind })
    }

    /// What a step will take, and what follows; a resumed run goes on as it was. The models are set accordingly.
    fn plan(&mut self, config: &FinetuneConfig, progress: Option<&Progress>) -> (Estimate, Choice) {
        let (unet, vae) = (&self.models.unet, &self.models.vae);
        let count = |tensors: &mut dyn Iterator<Item = &Tensor>| -> usize { tensors.map(Tensor::numel).sum() };
        let trained = unet.parameters.trained();
        let training = count(&mut trained.iter().map(|(_, tensor)| tensor));
        let all = count(&mut unet.parameters.tensors.values().chain(vae.parameters.tensors.values()));
        let method = config.method();
        let plan = method.as_ref().map(|method| method.plan(config.sample_steps, &mut noise::stream(0, "plan")));
        let counts = [all.max(training), training];
        let estimate =
            Estimate::new(config, (&unet.config, &vae.config), counts, self.models.latents, plan.as_ref(), self.kind);
        let choice = match progress {
            Some(Progress { micro, checkpointing, .. }) => Choice {
                checkpointing: *checkpointing,
                micro: config.gradient_accumulation.map_or(*micro, |parts| config.batch_size.div_ceil(parts)),
            },
            None => estimate.choose(config, memory(self.device).map(|memory| memory.free)),
        };
        self.models.unet.checkpointing = choice.checkpointing;
        self.models.vae.checkpointing = choice.checkpointing;
        for weighted in &mut self.rewards {
            weighted.reward.set_checkpointing(choice.checkpointing);
        }
        (estimate, choice)
    }
}

/// Whom a run reports to, who can stop it, and where it writes (a rehearsal: nowhere).
#[derive(Clone, Copy)]
struct Reports<'a> {
    observer: &'a dyn Observer,
    stop: &'a AtomicBool,
    folder: Option<&'a RunFolder>,
}

/// A run under way.
struct Run<'a> {
    config: &'a FinetuneConfig,
    source: &'a Source,
    parts: &'a Parts,
    policy: Policy<'a>,
    objective: Objective<'a>,
    method: Option<Box<dyn Algorithm>>,
    images: denoise::Images,
    stepper: Stepper,
    estimate: Estimate,
    choice: Choice,
    deal: Deal,
    observer: &'a dyn Observer,
    stop: &'a AtomicBool,
    folder: Option<&'a RunFolder>,
    metrics: Option<Metrics>,
    progress: Progress,
    held_out: Option<(HeldOut, Snapshot)>,
}

impl<'a> Run<'a> {
    fn new(
        config: &'a FinetuneConfig,
        source: &'a Source,
        parts: &'a Parts,
        images: denoise::Images,
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
            negative: parts.embeddings.of(&[config.negative_prompt.clone()]),
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
        let method = config.method();
        let trained = models.unet.parameters.trained();
        let clip_norm = config.clip_norm;
        let stepper =
            Stepper::new(trained, config.weight_decay, clip_norm, config.ema_decay, choice.micro, parts.device);
        let items = if method.is_some() { parts.prompts.len() } else { images.len() };
        Ok(Self {
            config,
            source,
            parts,
            policy,
            objective,
            method,
            images,
            stepper,
            estimate,
            choice,
            deal: Deal::new(items, config.seed),
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
        let count: usize = self.stepper.trained().iter().map(|(_, tensor)| tensor.numel()).sum();
        let total: usize = self.parts.models.unet.parameters.tensors.values().map(Tensor::numel).sum();
        let [channels, height, width] = self.parts.models.latents;
        let factor = self.parts.models.vae.config.factor();
        let name = config.algorithm.map_or("", AlgorithmName::name);
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
            self.stepper.micro,
            if self.choice.checkpointing { "computed again in the backward pass" } else { "kept" },
            gigabytes(self.estimate.bytes(Choice { micro: self.stepper.micro, ..self.choice })),
            gigabytes(match self.choice.checkpointing {
                true => self.estimate.image_recomputed,
                false => self.estimate.image,
            }),
        )
    }

    /// Brings everything to where training goes on: the checkpoint's state, the rewards' scales, the base model's held-out images.
    fn start(&mut self, resumed: Option<(&Path, Progress)>) -> Result<()> {
        let Some(folder) = self.folder else { return Ok(()) };
        if let Some((path, progress)) = resumed {
            let threads = std::mem::replace(&mut self.progress, progress).threads;
            saved::load(path, &mut self.stepper)?;
            if threads != self.progress.threads {
                let text = format!(
                    "resumed with {threads} threads instead of {}: the last bits will differ",
                    self.progress.threads
                );
                self.observer.event(&Event::Warning(&text));
            }
        }
        self.progress.checkpointing = self.choice.checkpointing;
        self.metrics = Some(Metrics::open(folder.path(), self.progress.step)?);
        self.observer.event(&Event::Note(&self.describe()));
        self.scale_rewards(Some(folder.path()))?;
        if !self.parts.held_out.is_empty() && !self.parts.rewards.is_empty() {
            let held_out = HeldOut::new(
                &self.parts.held_out,
                self.config.held_out_images,
                self.config.seed,
                self.parts.models.latents,
                self.config.batch_size,
            );
            let base = self.policy.as_base(|base| {
                held_out.snapshot(base, &self.objective, &self.parts.embeddings, &|done, total| {
                    self.observer.event(&Event::Progress { phase: "base images", done, total });
                })
            })?;
            self.held_out = Some((held_out, base));
        }
        if self.progress.step == 0 {
            self.evaluate()?;
        }
        Ok(())
    }

    /// Sets the unit of every reward: what an earlier part of the run found, or else from images of the base model.
    fn scale_rewards(&mut self, folder: Option<&Path>) -> Result<()> {
        if self.method.is_none() || self.config.reward_scale == RewardScale::Raw {
            return Ok(());
        }
        let known = folder.map(scale::read).transpose()?.flatten();
        let scales = match known {
            Some(known) => known,
            None => {
                let images = HeldOut::new(
                    &self.parts.prompts,
                    self.config.scale_images,
                    image_seed(self.config.seed, "scale", 0),
                    self.parts.models.latents,
                    self.config.batch_size,
                );
                let snapshot = self.policy.as_base(|base| {
                    images.snapshot(base, &self.objective, &self.parts.embeddings, &|done, total| {
                        self.observer.event(&Event::Progress { phase: "images for the rewards' scale", done, total });
                    })
                })?;
                let mut scales = BTreeMap::new();
                for weighted in &self.parts.rewards {
                    scales
                        .insert(weighted.label.clone(), scale::of(&weighted.label, snapshot.measure(&weighted.label))?);
                }
                if let Some(folder) = folder {
                    scale::write(folder, &scales)?;
                }
                scales
            }
        };
        for (scale, weighted) in self.objective.scales.iter_mut().zip(&self.parts.rewards) {
            *scale = *scales
                .get(&weighted.label)
                .ok_or_else(|| Error::data(format!("{}: no scale of reward `{}`", scale::FILE, weighted.label)))?;
        }
        Ok(())
    }

    fn train(&mut self) -> Result<Ended> {
        let config = self.config;
        let total = config.train_steps;
        for step in self.progress.step + 1..=total {
            if self.stop.load(Ordering::Relaxed) {
                self.save()?;
                return Ok(Ended::Interrupted { step: self.progress.step });
            }
            let started = Instant::now();
            let rate = config.learning_rate * config.schedule.factor(step, total, config.warmup_steps);
            let outcome = self.step(step, rate).map_err(|error| at_step(step, &error))?;
            self.progress.step = step;
            self.progress.micro = self.stepper.micro;
            self.log(step, rate, &outcome, started.elapsed().as_secs_f64())?;
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

    /// One optimizer step over the batch of step `step`.
    fn step(&mut self, step: usize, rate: f64) -> Result<Outcome> {
        let (config, parts) = (self.config, self.parts);
        let part = format!("step/{step}");
        let seeds: Vec<u64> = (0..config.batch_size).map(|index| image_seed(config.seed, &part, index)).collect();
        let Some(method) = &self.method else {
            let work = denoising(config, parts, &self.policy, &self.images).of_step(&mut self.deal, step, config);
            return self.stepper.step(&work, config.batch_size, rate, self.observer);
        };
        let distinct = self.deal.step(step, config.batch_size.div_euclid(config.images_per_prompt));
        let prompts = distinct
            .iter()
            .flat_map(|prompt| std::iter::repeat_n(&parts.prompts[*prompt], config.images_per_prompt).cloned());
        let stream = &mut noise::stream(config.seed, &format!("plan/{step}"));
        let _perturbed =
            Perturbed::new(&parts.rewards, config.weight_noise, image_seed(config.seed, &part, usize::MAX));
        let work = RewardWork {
            policy: &self.policy,
            objective: &self.objective,
            method: method.as_ref(),
            embeddings: &parts.embeddings,
            plan: method.plan(self.policy.sampler.timesteps().len(), stream),
            prompts: prompts.collect(),
            seeds,
            latents: parts.models.latents,
        };
        self.stepper.step(&work, config.batch_size, rate, self.observer)
    }

    fn log(&mut self, step: usize, rate: f64, outcome: &Outcome, seconds: f64) -> Result<()> {
        if !outcome.applied {
            let text = format!(
                "step {step}: non-finite loss or gradient ({}, {}): step left out",
                outcome.loss, outcome.gradient_norm
            );
            self.observer.event(&Event::Warning(&text));
        }
        let rewards = outcome.rewards.first();
        let [rollout_seconds, forward_seconds, backward_seconds, optimizer_seconds] = outcome.seconds;
        let figures = TunedStep {
            step,
            total: self.config.train_steps,
            loss: outcome.loss,
            reward_mean: rewards.map(|values| watch::mean(values)),
            reward_std: rewards.map(|values| watch::deviation(values)),
            grad_norm: outcome.gradient_norm,
            learning_rate: rate,
            images_per_second: self.config.batch_size as f64 / seconds,
            peak_memory_bytes: memory(self.parts.device).map_or(0, |memory| memory.peak),
            rollout_seconds,
            forward_seconds,
            backward_seconds,
            optimizer_seconds,
        };
        if let Some(metrics) = &mut self.metrics {
            metrics.add(&json!(figures))?;
        }
        self.observer.event(&Event::Tuned(&figures));
        Ok(())
    }

    /// Compares held-out images with the base model's, writes the figures and a picture, and keeps the best. True where the
    /// stop rule holds.
    fn evaluate(&mut self) -> Result<bool> {
        let (Some(folder), Some(metrics)) = (self.folder, &mut self.metrics) else { return Ok(false) };
        let step = self.progress.step;
        if self.method.is_none() {
            let work = denoising(self.config, self.parts, &self.policy, &self.images);
            let loss = self.stepper.with_means(|| work.held_out_loss(self.config))?;
            if let Some(loss) = loss {
                metrics.add(&json!({"step": step, "held_out_loss": loss}))?;
                self.observer.event(&Event::Note(&format!("step {step}: held-out loss {loss:.5}")));
            }
        }
        let Some((held_out, base)) = &self.held_out else { return Ok(false) };
        let (policy, objective, parts, observer) = (&self.policy, &self.objective, self.parts, self.observer);
        let tuned = self.stepper.with_means(|| {
            held_out.snapshot(policy, objective, &parts.embeddings, &|done, total| {
                observer.event(&Event::Progress { phase: "held-out images", done, total });
            })
        })?;
        let comparison = held_out.compare(&tuned, base, &parts.rewards);
        let mut line = comparison.line.clone();
        line.insert("step".to_owned(), json!(step));
        if let Some(norm) = watch::lora_norm(&parts.models.unet.parameters) {
            line.insert("lora_norm".to_owned(), json!(norm));
        }
        metrics.add(&json!(line))?;
        let (png, size) = grid::png(&base.pixels, &tuned.pixels)?;
        fs_err::create_dir_all(folder.path().join("samples"))?;
        let path = folder.path().join(format!("samples/step-{step:06}.png"));
        replace_file(&path, |partial| Ok(fs_err::write(partial, &png)?))?;
        metrics.image(step, "base above, tuned below", &png, size)?;
        let best = self.progress.best_composite.is_none_or(|best| comparison.composite > best);
        let text = format!(
            "step {step}: held-out reward {:.4}, gain {:+.3} [{:+.3}, {:+.3}], ε-drift {:.2e}{}{}",
            comparison.line["held_out_reward"].as_f64().unwrap_or(f64::NAN),
            comparison.gain,
            comparison.interval[0],
            comparison.interval[1],
            comparison.line["epsilon_drift"].as_f64().unwrap_or(f64::NAN),
            if comparison.fallen.is_empty() {
                String::new()
            } else {
                format!(", fell: {}", comparison.fallen.join(", "))
            },
            if best { ", best so far" } else { "" },
        );
        self.observer.event(&Event::Note(&text));
        if best {
            self.progress.best_composite = Some(comparison.composite);
            let path = folder.path().join("best");
            let (models, stepper, progress) = (&parts.models, &self.stepper, &self.progress);
            stepper.with_means(|| saved::checkpoint(&path, models, stepper, progress))?;
        }
        let rose = comparison.interval[0] > 0.0;
        let hacked = self.config.stop_after_falls.is_some_and(|falls| comparison.fallen.len() >= falls);
        Ok(rose && hacked && step > 0)
    }

    /// What the stop rule does: the best weights are the run's result.
    fn roll_back(&mut self) -> Result<Ended> {
        let Some(folder) = self.folder else { return self.finish() };
        let best = folder.path().join("best");
        let text = format!(
            "step {}: the reward rises while other measures fall: stopped, back to {}",
            self.progress.step,
            best.display()
        );
        self.observer.event(&Event::Warning(&text));
        saved::weights(&best.join("trained.safetensors"), &self.stepper)?;
        self.stepper.ema = None;
        self.finish()
    }

    fn save(&mut self) -> Result<()> {
        let Some(folder) = self.folder else { return Ok(()) };
        self.progress.micro = self.stepper.micro;
        let path = folder.path().join(format!("checkpoints/step-{}", self.progress.step));
        saved::checkpoint(&path, &self.parts.models, &self.stepper, &self.progress)?;
        checkpoints::prune(folder.path(), self.config.keep_checkpoints)?;
        self.observer.event(&Event::Saved(&path));
        Ok(())
    }

    fn finish(&mut self) -> Result<Ended> {
        let Some(folder) = self.folder else { return Ok(Ended::Interrupted { step: self.progress.step }) };
        let (config, source, models) = (self.config, self.source, &self.parts.models);
        self.stepper.with_means(|| saved::result(folder.path(), config, source, models))?;
        let name = if config.train == Train::Lora { "lora" } else { "model" };
        Ok(Ended::Finished(folder.path().join(name)))
    }

    /// The plan with one step measured.
    fn rehearse(&mut self) -> Result<String> {
        let plan = self.describe();
        if self.method.is_some() && self.config.reward_scale == RewardScale::Standardised {
            // The unit changes no time: one image tells nothing of it, so it is left as it is.
            self.objective.scales.iter_mut().for_each(|scale| *scale = Scale::RAW);
        }
        self.step(1, 0.0)?;
        let started = Instant::now();
        let outcome = self.step(2, 0.0)?;
        let seconds = started.elapsed().as_secs_f64();
        let [rollout, forward, backward, optimizer] = outcome.seconds;
        let peak = memory(self.parts.device).map_or(0, |memory| memory.peak);
        let minutes = seconds * self.config.train_steps as f64 / 60.0;
        Ok(format!(
            "{plan}\none step measured: {seconds:.2} s (sampling {rollout:.2}, forward {forward:.2}, backward {backward:.2}, optimizer {optimizer:.2}), \
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

/// The supervised work, on no rows yet.
fn denoising<'a>(
    config: &FinetuneConfig,
    parts: &'a Parts,
    policy: &'a Policy<'a>,
    images: &'a denoise::Images,
) -> denoise::DenoisingWork<'a> {
    denoise::DenoisingWork {
        policy,
        vae: &parts.models.vae,
        images,
        embeddings: &parts.embeddings,
        snr_gamma: config.snr_gamma,
        prompt_dropout: config.prompt_dropout,
        rows: Vec::new(),
        seeds: Vec::new(),
    }
}

/// One step of a reward method.
struct RewardWork<'a> {
    policy: &'a Policy<'a>,
    objective: &'a Objective<'a>,
    method: &'a dyn Algorithm,
    embeddings: &'a Embeddings,
    plan: Plan,
    prompts: Vec<String>,
    seeds: Vec<u64>,
    latents: [i64; 3],
}

impl Work for RewardWork<'_> {
    type Prepared = (Batch, Tensor);

    fn prepare(&self, micro_batches: &[Range<usize>]) -> Result<Vec<Self::Prepared>> {
        let one = |range: &Range<usize>| {
            let prompts = self.prompts[range.clone()].to_vec();
            let context = self.embeddings.of(&prompts);
            let batch = Batch::new(prompts, context, self.seeds[range.clone()].to_vec(), self.latents);
            let start = self.method.rollout(self.policy, &self.plan, &batch);
            (batch, start)
        };
        if self.plan.cut == 0 {
            return Ok(micro_batches.iter().map(one).collect());
        }
        self.policy.merged(|| Ok(micro_batches.iter().map(one).collect()))
    }

    fn loss(&self, (batch, start): Self::Prepared) -> Result<Loss> {
        self.method.loss(self.policy, &start, &self.plan, &batch, self.objective)
    }
}

/// Rewards with noise on their weights until it is dropped: maxima that a little noise removes are no preference.
struct Perturbed {
    saved: Vec<(Tensor, Tensor)>,
}

impl Perturbed {
    /// `share`: deviation of the noise in deviations of each tensor.
    fn new(rewards: &[Weighted], share: f64, seed: u64) -> Self {
        let mut saved = Vec::new();
        if share > 0.0 {
            let weights = rewards.iter().flat_map(|weighted| weighted.reward.weights());
            for (index, mut weight) in weights.enumerate().filter(|(_, weight)| weight.dim() > 1) {
                tch::no_grad(|| {
                    saved.push((weight.shallow_clone(), weight.copy()));
                    let noise = noise::normal(seed, &format!("weight/{index}"), &weight.size());
                    let noise = noise.to_device(weight.device()).to_kind(weight.kind());
                    weight += noise * (weight.to_kind(Kind::Float).std(true) * share).to_kind(weight.kind());
                });
            }
        }
        Self { saved }
    }
}

impl Drop for Perturbed {
    fn drop(&mut self) {
        tch::no_grad(|| {
            for (weight, before) in &self.saved {
                weight.shallow_clone().copy_(before);
            }
        });
    }
}
