//! `social-reward reward train`.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::TrainArgs;

#[cfg(feature = "torch")]
pub(crate) fn run(arguments: &TrainArgs) -> Result<ExitCode> {
    use reward::{
        event::{Event, Observer},
        run::Ended,
        train::{config::TrainConfig, fit::train},
    };

    use crate::{commands, failure, settings::layered, signals, together::together};

    let config: TrainConfig = layered(arguments, arguments.config.as_deref())?;
    config.check()?;
    // A link that leads nowhere is named before anything is read.
    if let Some(folder) = &config.save_folder {
        reward::files::followed(folder)?;
    }
    commands::device(Some(config.device), config.threads);
    let stop = signals::listen()?;
    let (ended, progress) =
        together(&arguments.world, |world, progress| train(&config, arguments.resume, world, progress, &stop))?;
    match ended {
        Ended::Finished(model) => {
            progress.event(&Event::Note(&format!("done: {}", model.display())));
            Ok(ExitCode::SUCCESS)
        }
        Ended::Interrupted { step } => {
            progress.event(&Event::Note(&format!("interrupted after step {step}; --resume goes on from there")));
            Ok(failure::interrupted(signals::received()))
        }
    }
}

#[cfg(not(feature = "torch"))]
pub(crate) fn run(_: &TrainArgs) -> Result<ExitCode> {
    Err(reward::Error::usage("this is the portable build: it scores and validates, but does not train")
        .hint("`make setup`, then build with default features")
        .into())
}
