//! `social-reward reward train`.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::TrainArgs;

#[cfg(feature = "torch")]
pub(crate) fn run(arguments: &TrainArgs) -> Result<ExitCode> {
    use reward::{
        run::Ended,
        train::{config::TrainConfig, fit::train},
    };

    use crate::{commands, failure, progress::Progress, settings::layered, signals};

    let config: TrainConfig = layered(arguments, arguments.config.as_deref())?;
    config.check()?;
    // A link that leads nowhere is named before anything is read.
    if let Some(folder) = &config.save_folder {
        reward::files::followed(folder)?;
    }
    commands::device(Some(config.device), config.threads);
    let (stop, progress) = (signals::listen()?, Progress::new());
    match train(&config, arguments.resume, &progress, &stop)? {
        Ended::Finished(model) => {
            progress.line(&format!("done: {}", model.display()));
            Ok(ExitCode::SUCCESS)
        }
        Ended::Interrupted { step } => {
            progress.line(&format!("interrupted after step {step}; --resume goes on from there"));
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
