//! `social-reward demo`: the whole pipeline on a toy world in which the true popularity of a picture is known.

mod captions;
#[cfg(feature = "torch")]
mod detector;
#[cfg(feature = "torch")]
mod pipeline;
#[cfg(feature = "torch")]
mod truth;
pub(crate) mod world;
pub(crate) mod write;

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use reward::Error;

use crate::{
    cli::DemoArgs,
    commands,
    demo::write::{Split, TripletCounts, write_triplets},
    progress::Progress,
};

pub(crate) fn run(arguments: &DemoArgs) -> Result<ExitCode> {
    reward::threads::ask(arguments.threads);
    if commands::shard(None)?.0.count > 1 {
        let error = Error::usage("the demo runs in one process, and a launcher has started several");
        return Err(error.hint("start it without the launcher").into());
    }
    if let Some(images) = &arguments.truth {
        return pipeline::truth(images, &arguments.output.join("base"));
    }
    match &arguments.data_only {
        None => check(&arguments.output)?,
        Some(folder) => check_data(folder)?,
    }
    let progress = Progress::new();
    let folder = arguments.data_only.clone().unwrap_or_else(|| arguments.output.join("data"));
    let train = arguments.triplets;
    let counts = TripletCounts { train, validation: train.div_ceil(10).min(1200), test: train.div_ceil(4).min(2400) };
    let written = write_triplets(&folder, arguments.seed, counts)?;
    for split in [&written.train, &written.validation, &written.test] {
        let Split { file, triplets, prompts, ceiling } = split;
        progress
            .line(&format!("{}: {triplets} triplets, {prompts} prompts, noise ceiling {ceiling:.4}", file.display()));
    }
    captions::write_captions(&folder, arguments.seed, train)?;
    if arguments.data_only.is_some() {
        commands::print(&folder.display().to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    pipeline::run(arguments, &written, &progress)
}

/// What can be refused before anything is written: a demo empties the folders that it fills.
fn check(output: &Path) -> Result<()> {
    if cfg!(not(feature = "torch")) {
        return Err(portable().into());
    }
    let other = output.exists() && fs_err::read_dir(output)?.next().is_some();
    if other && !output.join("data/images/train").is_dir() {
        let error = Error::usage(format!("{} holds files, and none of a demo", output.display()));
        return Err(error.hint("--output DIR names a new folder, or one of an earlier demo").into());
    }
    Ok(())
}

/// Tables of somebody else stay; those of earlier toy data have their pictures beside them.
fn check_data(folder: &Path) -> Result<()> {
    let names = ["train.parquet", "validation.parquet", "test.parquet"];
    let there = names.into_iter().find(|name| folder.join(name).exists());
    match there.filter(|_| !folder.join("images/train").is_dir()) {
        None => Ok(()),
        Some(name) => Err(Error::data(format!("{} holds {name}, which is no toy data", folder.display()))
            .hint("--data-only DIR names a new folder, or one of earlier toy data")
            .into()),
    }
}

fn portable() -> Error {
    Error::usage("this is the portable build: it does not train").hint("--data-only DIR writes just the toy data")
}

#[cfg(not(feature = "torch"))]
mod pipeline {
    //! What the portable build cannot do; `check` refuses `run` before anything is written.

    use std::{path::Path, process::ExitCode};

    use anyhow::Result;

    use super::write::Written;
    use crate::{cli::DemoArgs, progress::Progress};

    pub(super) fn run(_: &DemoArgs, _: &Written, _: &Progress) -> Result<ExitCode> {
        Ok(ExitCode::FAILURE)
    }

    pub(super) fn truth(_: &Path, _: &Path) -> Result<ExitCode> {
        Err(super::portable().into())
    }
}
