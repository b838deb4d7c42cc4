//! `social-reward diffusion generate`.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::GenerateArgs;

#[cfg(feature = "torch")]
pub(crate) fn run(arguments: &GenerateArgs) -> Result<ExitCode> {
    use diffusion::generate::{Ended, GenerateConfig, generate};

    use crate::{commands, failure, progress::Progress, settings::layered, signals};

    let config: GenerateConfig = layered(arguments, arguments.config.as_deref())?;
    config.check()?;
    commands::device(Some(config.device), config.threads);
    let (stop, progress) = (signals::listen()?, Progress::new());
    match generate(&config, &progress, &stop)? {
        Ended::Finished { table, images } => {
            progress.line(&format!("done: {images} image(s)"));
            commands::print(&table.display().to_string())?;
            Ok(ExitCode::SUCCESS)
        }
        Ended::Interrupted { done, images } => {
            progress
                .line(&format!("interrupted after {done} of {images} image(s); the same command goes on from there"));
            Ok(failure::interrupted(signals::received()))
        }
    }
}

#[cfg(not(feature = "torch"))]
pub(crate) fn run(_: &GenerateArgs) -> Result<ExitCode> {
    Err(super::needs_libtorch())
}
