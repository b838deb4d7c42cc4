//! Rows `ddpo` and `dpo`: optimizer steps of methods that follow no reward's gradient, beside ddpo-pytorch's loop and diffusers'
//! DPO example, both on diffusers with PEFT. The sides take turns, each in a process of its own, on equally many threads; the
//! median of all timed steps counts.
//!
//! Ours goes through the library as a run does: a scene, the method's round and its losses, the update.

use std::{collections::BTreeMap, num::NonZeroUsize, process::Command, time::Instant};

use anyhow::{Context, Result, ensure};
use diffusion::{
    algorithm::{Algorithm, Round, Scene},
    finetune::{FinetuneConfig, step},
    lora::fresh,
    micro_batches::MicroBatches,
    objective::{Objective, Scale, Weighted},
    pictures::{Pictures, Rows},
    policy::Policy,
    prompt_encoder::Embeddings,
    schedule::{NoiseSchedule, Sampler},
    source::{Source, SourceOptions},
    unet::Unet,
    vae::Vae,
};
use reward::{
    event::Silent,
    native::{memory, operator_times},
    optim::Update,
    rewards::Reward,
    run::order::image_seed,
    threads,
    world::World,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::{data, finetune, mean, median, numbers, peer, stable_diffusion};

/// Turns of each side.
const TURNS: usize = 3;
/// Sampling steps of DDPO.
const STEPS: usize = 10;
/// Threads of both sides; a tiny model takes one by itself.
const THREADS: usize = 2;
const PROMPTS: [&str; 2] = ["a photo of a red fox in the snow", "a castle on a hill, oil painting"];

/// What one of our processes does.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    /// The method.
    method: String,
    /// A diffusers folder.
    model: String,
    /// Triplets in parquet; empty where the method makes its own images.
    training_file: Vec<String>,
    /// Height and width in pixels.
    side: i64,
    /// Images, or pairs, of a step; all go through at a time.
    items: usize,
    rank: usize,
    /// Timed steps, after one that does not count.
    steps: usize,
    threads: usize,
    /// Whether waiting threads spin, as PyTorch's do, and not sleep, as the program's do unless the user says otherwise.
    spinning: bool,
    /// Whether one more step shows where the time goes.
    profile: bool,
}

/// What one of our processes measured.
#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    /// Seconds of each timed step.
    seconds: Vec<f64>,
    /// Means over the timed steps: roll-out, forward, backward, optimizer.
    phases: [f64; 4],
    peak_rss_bytes: u64,
    /// Operators and their shares of a step.
    shares: String,
}

/// A round of DDPO: roll-out, reward and one update over whole trajectories.
pub(crate) fn ddpo() -> Result<()> {
    let (tiny, base) = (finetune::tiny()?, stable_diffusion::model()?);
    for (name, model, side, images, steps, threads, spinning) in [
        ("tiny", &tiny, 64, 8, 5, 1, false),
        ("tiny, all threads spinning", &tiny, 64, 8, 5, THREADS, true),
        ("2.1-base", &base, 128, 2, 1, THREADS, false),
    ] {
        let task = |profile| Task {
            method: "ddpo".to_owned(),
            model: model.clone(),
            training_file: Vec::new(),
            side,
            items: images,
            rank: 4,
            steps,
            threads,
            spinning,
            profile,
        };
        let [side, count, rounds, thread_count] =
            [side.to_string(), images.to_string(), steps.to_string(), threads.to_string()];
        let flags = ["--side", &side, "--images", &count, "--train-batch", &count, "--rounds", &rounds];
        let arguments = [&[model.as_str()], flags.as_slice(), &["--threads", &thread_count]].concat();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            ours.push(measure(&task(false))?);
            theirs.push(peer("ddpo.py", &arguments)?);
        }
        let (own, other) = (seconds_of(&ours), seconds_of_peer(&theirs)?);
        let rate = |seconds: f64| images as f64 / seconds;
        println!(
            "ddpo: {name}, {side}², {images} images, {STEPS} steps: ours {:.3} images/s, ddpo-pytorch's loop {:.3}, {:.2}×; peak {:.2} GB against {:.2} GB; train_batch_size {}, threads {threads}",
            rate(own),
            rate(other),
            other / own,
            peak(&ours) / 1e9,
            peak_of_peer(&theirs) / 1e9,
            theirs[0]["train_batch_size"],
        );
        tell_phases(&format!("ddpo: {name}"), &ours, Some(&theirs));
        println!("ddpo: {name}: {}", measure(&task(true))?.shares);
    }
    Ok(())
}

/// A step of Diffusion-DPO on pairs of pictures.
pub(crate) fn dpo() -> Result<()> {
    let (model, table) = (stable_diffusion::model()?, data("few", &["--images", "32"])?.join("triplets.parquet"));
    for side in [128, 256] {
        let task = |profile| Task {
            method: "dpo".to_owned(),
            model: model.clone(),
            training_file: vec![table.display().to_string()],
            side,
            items: 2,
            rank: 8,
            steps: 3,
            threads: THREADS,
            spinning: false,
            profile,
        };
        let [side, threads] = [side.to_string(), THREADS.to_string()];
        let cached = [model.as_str(), "--side", &side, "--pairs", "2", "--steps", "3", "--threads", &threads];
        let encoding = [&cached[..], &["--encode"]].concat();
        let (mut ours, mut theirs, mut published) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TURNS {
            ours.push(measure(&task(false))?);
            theirs.push(peer("dpo.py", &cached)?);
            published.push(peer("dpo.py", &encoding)?);
        }
        let own = seconds_of(&ours);
        for (what, theirs) in [("pictures and prompts encoded before", &theirs), ("encoding in every step", &published)]
        {
            let other = seconds_of_peer(theirs)?;
            println!(
                "dpo: 2.1-base, {side}², 2 pairs: ours {own:.2} s a step, diffusers' example, {what}, {other:.2} s, {:.2}×; peak {:.2} GB against {:.2} GB; {THREADS} threads",
                other / own,
                peak(&ours) / 1e9,
                peak_of_peer(theirs) / 1e9,
            );
        }
        tell_phases(&format!("dpo: {side}²"), &ours, None);
        println!("dpo: {side}²: {}", measure(&task(true))?.shares);
    }
    Ok(())
}

fn seconds_of(turns: &[Measured]) -> f64 {
    median(turns.iter().flat_map(|turn| turn.seconds.clone()).collect())
}

fn seconds_of_peer(turns: &[Value]) -> Result<f64> {
    let seconds: Vec<f64> = turns.iter().flat_map(|turn| numbers(&turn["seconds"])).collect();
    ensure!(!seconds.is_empty(), "no time in {turns:?}");
    Ok(median(seconds))
}

fn peak(turns: &[Measured]) -> f64 {
    turns.iter().map(|turn| turn.peak_rss_bytes as f64).fold(0.0, f64::max)
}

fn peak_of_peer(turns: &[Value]) -> f64 {
    turns.iter().filter_map(|turn| turn["peak_rss_bytes"].as_f64()).fold(0.0, f64::max)
}

fn tell_phases(row: &str, ours: &[Measured], theirs: Option<&[Value]>) {
    let phase = |index: usize| median(ours.iter().map(|turn| turn.phases[index]).collect());
    let [rollout, forward, backward, optimizer] = [0, 1, 2, 3].map(phase);
    let seconds: Vec<f64> = ours.iter().flat_map(|turn| turn.seconds.clone()).collect();
    println!(
        "{row}: steps of {seconds:.2?} s; roll-out {rollout:.2} s, forward {forward:.2}, backward {backward:.2}, optimizer {optimizer:.2}"
    );
    for theirs in theirs.unwrap_or_default() {
        println!("{row}: theirs {} s, {}", theirs["seconds"], theirs["phases"]);
    }
}

/// Runs `task` in a process of its own.
fn measure(task: &Task) -> Result<Measured> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env("OMP_WAIT_POLICY", if task.spinning { "active" } else { "passive" });
    let output = command.args(["method-steps", &serde_json::to_string(task)?]).output()?;
    ensure!(output.status.success(), "method-steps: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The mean of the red channel: a reward that costs nothing.
struct Redness;

impl Reward for Redness {
    fn name(&self) -> &str {
        "redness"
    }

    fn score(&self, pixels: &Tensor, _: &[&str]) -> reward::Result<Tensor> {
        Ok(pixels.select(1, 0).mean_dim([1_i64, 2].as_slice(), false, Kind::Float))
    }

    fn differentiable(&self) -> bool {
        true
    }
}

/// What a process of [`measure`] does: optimizer steps of a method.
pub(crate) fn method_steps(task: &str) -> Result<()> {
    let task: Task = serde_json::from_str(task)?;
    threads::ask(NonZeroUsize::new(task.threads));
    let config = FinetuneConfig {
        algorithm: Some(task.method.parse()?),
        training_file: task.training_file.clone(),
        sample_steps: STEPS,
        batch_size: task.items,
        lora_rank: task.rank,
        prompt_dropout: 0.0,
        ..FinetuneConfig::default()
    };
    let source = Source::open(&task.model, SourceOptions::default())?;
    let alpha = config.lora_rank as f64;
    let adapters = fresh(&source.layers()?.unet, &config.lora_targets, config.lora_rank, alpha, config.seed)?;
    let (unet_config, weights) = source.unet()?;
    let unet = Unet::new(&unet_config, weights.adapters(adapters))?;
    let (vae_config, weights) = source.vae()?;
    let vae = Vae::new(&vae_config, weights)?;
    let (pictures, prompts) = match task.training_file.is_empty() {
        true => (Pictures::default(), PROMPTS.map(str::to_owned).to_vec()),
        false => {
            let rows = Rows::of_pairs(&task.training_file, None)?;
            let prompts = rows.prompts.clone();
            (Pictures::open(rows, 0, [task.side as u32; 2], config.seed)?, prompts)
        }
    };
    let all = prompts.iter().map(String::as_str).chain([""]);
    let place = (Device::Cpu, Kind::Float);
    let embeddings = Embeddings::new(&source, all, &BTreeMap::new(), unet_config.cross_attention_dim, place)?;
    let scheduler = source.scheduler()?;
    let (guidance_scale, eta, negative_branch_gradient) = config.sampling();
    let policy = Policy {
        unet: &unet,
        base: None,
        sampler: Sampler::new(config.scheduler, &scheduler, config.sample_steps, eta)?,
        schedule: NoiseSchedule::new(&scheduler),
        prediction: scheduler.prediction_type,
        guidance_scale,
        negative: embeddings.of(&[String::new()]),
        negative_branch_gradient,
    };
    let rewards = [Weighted { label: "redness".to_owned(), reward: Box::new(Redness), weight: 1.0 }];
    let objective = Objective {
        vae: &vae,
        rewards: &rewards,
        scales: vec![Scale::RAW],
        shaping: config.shaping,
        margin: config.margin,
        loss_scale: config.loss_scale,
        anchor: config.anchor,
        pixel_noise: config.pixel_noise,
    };
    let world = World::alone();
    let micro_batches = MicroBatches::new(&world, task.items, Device::Cpu, &Silent);
    let latent_side = task.side.div_euclid(vae_config.factor());
    let scene = |number: usize| Scene {
        policy: &policy,
        objective: &objective,
        embeddings: &embeddings,
        prompts: &prompts,
        pictures: &pictures,
        micro_batches: &micro_batches,
        latents: [unet_config.channels, latent_side, latent_side],
        seed: config.seed,
        items: (0..task.items).map(|item| item % prompts.len()).collect(),
        seeds: (0..task.items).map(|item| image_seed(config.seed, &format!("step/{number}"), item)).collect(),
        group: 1,
    };
    let method = config.method().context("no method")?;
    let mut method = (method.build)(&config.settings(prompts.len()));
    let mut update =
        Update::new(unet.parameters.trained(), step::adamw(config.weight_decay), Some(config.clip_norm), None);
    let (mut seconds, mut phases) = (Vec::new(), Vec::new());
    for number in 1..=1 + task.steps {
        let scene = scene(number);
        let started = Instant::now();
        phases.push(take(method.as_mut(), &scene, number, &mut update, config.learning_rate)?);
        seconds.push(started.elapsed().as_secs_f64());
    }
    let mut shares = String::new();
    if task.profile {
        let (number, mut done) = (2 + task.steps, Ok([0.0; 4]));
        let scene = scene(number);
        shares = stable_diffusion::shares(&operator_times(|| {
            done = take(method.as_mut(), &scene, number, &mut update, config.learning_rate);
        }));
        done?;
    }
    let measured = Measured {
        seconds: seconds.split_off(1),
        phases: [0, 1, 2, 3]
            .map(|phase| mean(&phases[1..].iter().map(|phases: &[f64; 4]| phases[phase]).collect::<Vec<_>>())),
        peak_rss_bytes: memory(Device::Cpu).map_or(0, |memory| memory.peak),
        shares,
    };
    println!("{}", json!(measured));
    Ok(())
}

/// One round of one optimizer step; seconds of roll-out, forward, backward and optimizer.
fn take(method: &mut dyn Algorithm, scene: &Scene, number: usize, update: &mut Update, rate: f64) -> Result<[f64; 4]> {
    let started = Instant::now();
    let round: Box<dyn Round> = tch::no_grad(|| method.round(scene, number))?;
    let rollout = started.elapsed().as_secs_f64();
    let outcome = step::take(update, scene.micro_batches, round.items(0), rate, |items| round.loss(0, items))?;
    ensure!(outcome.updated.applied, "step {number} moved nothing");
    Ok([rollout, outcome.forward_seconds, outcome.backward_seconds, outcome.optimizer_seconds])
}
