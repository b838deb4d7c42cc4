//! `diffusion finetune`: the loop around every method. Prompts in seeded order, roll-out, reward, the method's loss, and one
//! place that steps (`step.rs`); held-out prompts are watched for reward hacking, checkpoints resume bit for bit.

mod check;
mod config;
mod deal;
mod denoise;
mod grid;
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

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use reward::{
    event::Observer,
    run::{RunFolder, checkpoints},
};

use crate::{
    Error, Result,
    source::{Source, SourceOptions},
};
use parts::Parts;
use run::{Reports, Run};

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
        let scratch = tempfile::Builder::new().prefix(".rehearsal-").tempdir_in(folder.path())?;
        saved::rehearse(scratch.path(), config, &source, &parts.models)?;
        scratch.close()?;
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
        saved::rehearse(scratch.path(), config, &source, &parts.models)?;
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
            true => error.hint("a larger gradient_accumulation, precision = \"bf16\", or a smaller height and width"),
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
