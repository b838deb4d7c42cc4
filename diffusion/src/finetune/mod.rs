//! `diffusion finetune`: the loop around every method. Prompts in seeded order, roll-out, reward, the method's loss, and one
//! place that steps (`step.rs`); held-out prompts are watched for reward hacking, checkpoints resume bit for bit.

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

use std::{path::Path, sync::atomic::AtomicBool};

use reward::{
    event::Observer,
    native::{self, Failure},
    run::{
        Ended, RunFolder,
        inputs::Inputs,
        place::{self, Settings},
        resume::{ResumePoint, resume_point, way_on},
    },
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
/// Between steps it looks at `stop`.
///
/// # Errors
/// Settings, data or models that do not fit; a failing disk; numbers that stay non-finite; one image that does not fit into
/// memory.
pub fn finetune(config: &FinetuneConfig, resume: bool, observer: &dyn Observer, stop: &AtomicBool) -> Result<Ended> {
    config.check()?;
    // Before the folder is touched; `resume_point` looks again once nobody else can touch it.
    place::check_new(config, resume)?;
    let folder = RunFolder::claim(config.folder(), FinetuneConfig::FLAG)?;
    folder.settle(config)?;
    let resumed: Option<ResumePoint<Progress>> = resume_point(config, resume, observer)?;
    let run = || {
        let source = open(config)?;
        let inputs = inputs::checked(config, &source, resumed.as_ref(), observer)?;
        let mut parts = Parts::load(config, &source, observer)?;
        let scratch = tempfile::Builder::new().prefix(".rehearsal-").tempdir_in(folder.path())?;
        checkpoint::rehearse(scratch.path(), config, &source, &parts.models)?;
        scratch.close()?;
        folder.begin(config, resumed.as_ref(), observer)?;
        let (device, place) = (parts.device, Some((folder.path(), &inputs)));
        let rows = std::mem::take(&mut parts.rows);
        let pictures = pictures(config, rows, &mut parts.models, place, device, observer, stop)?;
        let Some(pictures) = pictures else { return Ok(Ended::Interrupted { step: 0 }) };
        let method = method(config, parts.prompts.len())?;
        let planned = parts.plan(config, method.as_ref(), resumed.as_ref().map(|point| &point.progress));
        let reports = Reports { observer, stop, folder: Some(&folder) };
        let mut run = Run::new(config, &source, &parts, method, pictures, planned, reports)?;
        run.start(resumed.as_ref(), inputs)?;
        run.train()
    };
    or_way_on(run, || way_on(folder.path()))
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
        let mut parts = Parts::load(config, &source, observer)?;
        let scratch = tempfile::tempdir()?;
        checkpoint::rehearse(scratch.path(), config, &source, &parts.models)?;
        let short = FinetuneConfig { vae_steps: config.vae_steps.min(1), ..config.clone() };
        let device = parts.device;
        let rows = std::mem::take(&mut parts.rows);
        let pictures = pictures(&short, rows, &mut parts.models, None, device, observer, stop)?.unwrap_or_default();
        let method = method(config, parts.prompts.len())?;
        let planned = parts.plan(config, method.as_ref(), None);
        let reports = Reports { observer, stop, folder: None };
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
/// the run trained it: `place` is the run's folder, and what it reads. Nothing if the user stopped it.
fn pictures(
    config: &FinetuneConfig,
    rows: Rows,
    models: &mut Models,
    place: Option<(&Path, &Inputs)>,
    device: Device,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<Option<Pictures>> {
    if !config.on_pictures() {
        return Ok(Some(Pictures::default()));
    }
    let [_, height, width] = models.latents;
    let size = [height, width].map(|side| (side * models.vae.config.factor()) as u32);
    let pictures = Pictures::open(rows, config.held_out_images, size, config.seed)?;
    if config.vae_steps > 0 && !own_vae(config, models, &pictures, place, device, observer, stop)? {
        return Ok(None);
    }
    Ok(Some(pictures))
}

fn open(config: &FinetuneConfig) -> Result<Source> {
    let prediction_type = config.prediction_type.as_deref().map(str::parse).transpose()?;
    // `random:NAME` is one model, whatever the seed of the run.
    Source::open(config.model.as_deref().unwrap_or_default(), SourceOptions { seed: 0, prediction_type })
}
