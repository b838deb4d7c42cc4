//! `diffusion finetune`: the loop around every method. Prompts in seeded order, roll-out, reward, the method's loss, and one
//! place that steps (`step.rs`); held-out prompts are watched for reward hacking, checkpoints resume bit for bit.

mod check;
mod config;
mod deal;
mod denoise;
mod grid;
mod inputs;
mod parts;
pub mod planner;
mod reward_work;
mod run;
mod samples;
mod saved;
mod scale;
mod setup;
mod step;
mod watch;

use std::{path::PathBuf, sync::atomic::AtomicBool};

use reward::{
    event::Observer,
    run::{
        RunFolder,
        place::{self, Settings},
        resume::{ResumePoint, resume_point, way_on},
    },
};

use crate::{
    Error, Result,
    source::{Source, SourceOptions},
};
use parts::Parts;
use run::{Reports, Run};
use saved::Progress;

pub use config::{Checkpointing, FinetuneConfig, RewardScale, Train};
pub use inputs::resumed_step;

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
        saved::rehearse(scratch.path(), config, &source, &parts.models)?;
        scratch.close()?;
        folder.begin(config, resumed.as_ref(), observer)?;
        let (device, place) = (parts.device, Some((folder.path(), &inputs)));
        let images = denoise::prepare(config, &mut parts.models, place, device, observer, stop)?;
        let Some(images) = images else { return Ok(Ended::Interrupted { step: 0 }) };
        let planned = parts.plan(config, resumed.as_ref().map(|point| &point.progress));
        let mut run =
            Run::new(config, &source, &parts, images, planned, Reports { observer, stop, folder: Some(&folder) })?;
        run.start(resumed.as_ref(), inputs)?;
        run.train()
    };
    guarded(run, || way_on(folder.path()))
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
        saved::rehearse(scratch.path(), config, &source, &parts.models)?;
        let short = FinetuneConfig { vae_steps: config.vae_steps.min(1), ..config.clone() };
        let device = parts.device;
        let images = denoise::prepare(&short, &mut parts.models, None, device, observer, stop)?;
        let planned = parts.plan(config, None);
        let images = images.unwrap_or_default();
        let mut run = Run::new(config, &source, &parts, images, planned, Reports { observer, stop, folder: None })?;
        run.rehearse()
    };
    guarded(rehearsal, String::new)
}

/// Runs `body`; what tch reports by panicking becomes an error, with the way on from what is saved.
fn guarded<T>(body: impl FnOnce() -> Result<T>, way_on: impl FnOnce() -> String) -> Result<T> {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
    caught.unwrap_or_else(|panic| {
        let text = reward::native::panic_text(&*panic);
        let error = Error::data(format!("fine-tuning stopped in libtorch: {text}"));
        Err(match step::is_out_of_memory(&text) {
            true => error.hint("a larger gradient_accumulation, precision = \"bf16\", or a smaller height and width"),
            false => error.hint(way_on()),
        })
    })
}

fn open(config: &FinetuneConfig) -> Result<Source> {
    let prediction_type = config.prediction_type.as_deref().map(str::parse).transpose()?;
    // `random:NAME` is one model, whatever the seed of the run.
    Source::open(config.model.as_deref().unwrap_or_default(), SourceOptions { seed: 0, prediction_type })
}
