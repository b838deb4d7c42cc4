//! `social-reward demo`: a toy world in which the true popularity of a picture is known; a small CLIP learns it.

mod captions;
pub(crate) mod world;
pub(crate) mod write;

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    cli::DemoArgs,
    commands,
    demo::write::{Split, TripletCounts, write_triplets},
    progress::Progress,
};

pub(crate) fn run(arguments: &DemoArgs) -> Result<ExitCode> {
    let progress = Progress::new();
    let folder = arguments.data_only.clone().unwrap_or_else(|| arguments.output.join("data"));
    let train = arguments.triplets;
    let counts = TripletCounts { train, validation: train.div_ceil(10), test: train.div_ceil(4) };
    let written = write_triplets(&folder, arguments.seed, counts)?;
    for split in [&written.train, &written.validation, &written.test] {
        let Split { file, triplets, prompts, ceiling } = split;
        progress
            .line(&format!("{}: {triplets} triplets, {prompts} prompts, noise ceiling {ceiling:.4}", file.display()));
    }
    if arguments.data_only.is_some() {
        captions::write_captions(&folder, arguments.seed, train)?;
        commands::print(&folder.display().to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    train_and_validate(arguments, &written, &progress)
}

#[cfg(feature = "torch")]
fn train_and_validate(arguments: &DemoArgs, written: &write::Written, progress: &Progress) -> Result<ExitCode> {
    use reward::train::{
        config::TrainConfig,
        fit::{Ended, train},
    };

    use crate::{cli::ValidateArgs, failure, signals};

    let text = include_str!("../../configs/reward/demo.toml");
    let run = arguments.output.join("reward");
    let config = TrainConfig {
        training_file: vec![written.train.file.display().to_string()],
        validation_file: vec![written.validation.file.display().to_string()],
        save_folder: Some(run.clone()),
        seed: arguments.seed,
        ..toml::from_str(text)?
    };
    let stop = signals::listen()?;
    if run.exists() {
        fs_err::remove_dir_all(&run)?;
    }
    if let Ended::Interrupted { .. } = train(&config, false, progress, &stop)? {
        return Ok(failure::interrupted(signals::received()));
    }
    progress.line(&format!("held-out test prompts; no scorer can expect more than {:.4}:", written.test.ceiling));
    commands::validate::run(&ValidateArgs {
        validation_file: vec![written.test.file.display().to_string()],
        checkout_path: Some(run.join("best").display().to_string()),
        slice_by: Some("style".to_owned()),
        ..ValidateArgs::default()
    })
}

#[cfg(not(feature = "torch"))]
fn train_and_validate(_: &DemoArgs, _: &write::Written, _: &Progress) -> Result<ExitCode> {
    Err(reward::Error::usage("this is the portable build: it does not train")
        .hint("--data-only DIR writes just the toy data")
        .into())
}
