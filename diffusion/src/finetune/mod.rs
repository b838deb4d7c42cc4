//! `diffusion finetune`: the loop around every method. It has prompts in seeded order, roll-out, reward, the method's loss, and
//! one place that steps (`step.rs`). Held-out prompts are watched for reward hacking, and checkpoints resume bit for bit.

mod check;
mod checkpoint;
mod config;
mod dealer;
mod grid;
mod held_out;
mod inputs;
mod load;
pub mod memory;
mod models;
mod own_vae;
mod perturbed;
mod reward_scale;
mod run;
mod samples;
pub mod step;
mod unsuited;

use std::sync::atomic::AtomicBool;

use reward::{
    event::Observer,
    native::{self, Failure},
    run::{
        Ended, RunFolder,
        inputs::Inputs,
        place::{self, Settings},
        resume::{ResumePoint, resume_point, way_on},
        together::{same_inputs, same_settings, same_start},
    },
    world::World,
};

use tch::Device;

use crate::{
    Error, Result,
    algorithm::Algorithm,
    pictures::{Pictures, Rows},
    source::{Source, SourceOptions},
};
use checkpoint::Progress;
use load::Parts;
use models::Models;
use own_vae::own_vae;
use run::{Reports, Run};

pub use config::{Checkpointing, FinetuneConfig, RewardCombination, RewardScale, Train};
pub use inputs::resumed_step;

/// Fine-tunes a model as `config` says, in its output folder; with `resume`, goes on from the newest complete checkpoint there.
/// Between steps it looks at `stop`. All ranks of `world` tune one model, of which rank 0 writes what is left.
///
/// # Errors
/// Settings, data or models that do not fit, a failing disk, numbers that stay non-finite, an image too large for memory, or a
/// lost rank.
pub fn finetune(
    config: &FinetuneConfig,
    resume: bool,
    world: &World,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<Ended> {
    config.check()?;
    config.check_world(world.size())?;
    same_settings(world, config)?;
    let folder = RunFolder::claim_first(world, config, resume, config.folder(), FinetuneConfig::FLAG)?;
    let place = config.folder();
    let resumed: Option<ResumePoint<Progress>> = resume_point(config, resume, observer)?;
    same_start(world, resumed.as_ref().map(|point| point.step))?;
    let run = || {
        let (source, inputs) = world.first_here(|| {
            let source = open(config)?;
            let inputs = inputs::checked(config, &source, resumed.as_ref(), observer)?;
            Ok((source, inputs))
        })?;
        same_inputs(world, &inputs)?;
        let mut parts = Parts::load(config, &source, world.local_rank(), observer)?;
        world.compute_on(parts.device)?;
        if let Some(folder) = &folder {
            let scratch = tempfile::Builder::new().prefix(".rehearsal-").tempdir_in(place)?;
            checkpoint::rehearse(scratch.path(), config, &source, &parts.models)?;
            scratch.close()?;
            folder.begin(config, resumed.as_ref(), observer)?;
        }
        let reports = Reports { world, observer, stop, place: Some(place) };
        let rows = std::mem::take(&mut parts.rows);
        let device = parts.device;
        let Some(pictures) = pictures(config, rows, &mut parts.models, Some(&inputs), device, reports)? else {
            return Ok(Ended::Interrupted { step: 0 });
        };
        let method = method(config, parts.prompts.len())?;
        let planned = parts.plan(config, method.as_ref(), resumed.as_ref().map(|point| &point.progress));
        let mut run = Run::new(config, &source, &parts, method, pictures, planned, reports)?;
        run.start(resumed.as_ref(), inputs)?;
        let ended = run.train()?;
        // What rank 0 writes last may fail.
        world.barrier()?;
        Ok(ended)
    };
    or_way_on(run, || way_on(place))
}

/// What a run would do, without doing it: trainable parameters, memory, and the time of one step, measured.
///
/// # Errors
/// As [`finetune`].
pub fn dry_run(config: &FinetuneConfig, observer: &dyn Observer, stop: &AtomicBool) -> Result<String> {
    config.check()?;
    place::check(config, false)?;
    let rehearsal = || {
        let source = open(config)?;
        let mut parts = Parts::load(config, &source, 0, observer)?;
        let scratch = tempfile::tempdir()?;
        checkpoint::rehearse(scratch.path(), config, &source, &parts.models)?;
        let short = FinetuneConfig { vae_steps: config.vae_steps.min(1), ..config.clone() };
        let reports = Reports { world: &World::alone(), observer, stop, place: None };
        let rows = std::mem::take(&mut parts.rows);
        let device = parts.device;
        let pictures = pictures(&short, rows, &mut parts.models, None, device, reports)?.unwrap_or_default();
        let method = method(config, parts.prompts.len())?;
        let planned = parts.plan(config, method.as_ref(), None);
        let mut run = Run::new(config, &source, &parts, method, pictures, planned, reports)?;
        run.rehearse()
    };
    or_way_on(rehearsal, String::new)
}

/// Runs `body`; a panic of libtorch becomes an error with the way on from what is saved.
fn or_way_on<T>(body: impl FnOnce() -> Result<T>, way_on: impl FnOnce() -> String) -> Result<T> {
    native::guarded(body).unwrap_or_else(|failure| {
        let error = Error::data(format!("fine-tuning stopped in libtorch: {failure}"));
        Err(match failure {
            Failure::OutOfMemory(_) => {
                error.hint("a larger gradient_accumulation, precision = \"bf16\", or a smaller height and width")
            }
            Failure::Libtorch(_) => error.hint(way_on()),
        })
    })
}

/// The method with its hyper-parameters, for a run of so many distinct prompts.
fn method(config: &FinetuneConfig, prompts: usize) -> Result<Box<dyn Algorithm>> {
    let method = config.method().ok_or_else(|| Error::usage("--algorithm is missing"))?;
    Ok((method.build)(&config.settings(prompts)))
}

/// The pictures of a method that trains on them, as `rows` has them; none of another. The VAE is trained first where asked, or read as an earlier part of
/// the run trained it on the same `inputs`. Nothing if the user stopped it.
fn pictures(
    config: &FinetuneConfig,
    rows: Rows,
    models: &mut Models,
    inputs: Option<&Inputs>,
    device: Device,
    reports: Reports,
) -> Result<Option<Pictures>> {
    if !config.on_pictures() {
        return Ok(Some(Pictures::default()));
    }
    let [_, height, width] = models.latents;
    let size = [height, width].map(|side| (side * models.vae.config.factor()) as u32);
    let pictures = Pictures::open(rows, config.held_out_images, size, config.seed)?;
    if config.vae_steps > 0 && !own_vae(config, models, &pictures, inputs, device, reports)? {
        return Ok(None);
    }
    Ok(Some(pictures))
}

fn open(config: &FinetuneConfig) -> Result<Source> {
    let prediction_type = config.prediction_type.as_deref().map(str::parse).transpose()?;
    // `random:NAME` is one model, whatever the seed of the run.
    Source::open(config.model.as_deref().unwrap_or_default(), SourceOptions { seed: 0, prediction_type })
}
