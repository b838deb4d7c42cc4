//! `social-reward diffusion finetune`.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::FinetuneArgs;

#[cfg(feature = "torch")]
pub(crate) fn run(arguments: &FinetuneArgs) -> Result<ExitCode> {
    use diffusion::finetune::{FinetuneConfig, dry_run, finetune};
    use reward::run::Ended;

    use crate::{commands, failure, progress::Progress, settings::layered, signals};

    let config: FinetuneConfig = layered(arguments, arguments.config.as_deref())?;
    config.check()?;
    // A link that leads nowhere is named before anything is read.
    if let Some(folder) = &config.output {
        reward::files::followed(folder)?;
    }
    commands::device(Some(config.device), config.threads);
    let (stop, progress) = (signals::listen()?, Progress::new());
    if arguments.dry_run {
        commands::print(&dry_run(&config, &progress, &stop)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    match finetune(&config, arguments.resume, &progress, &stop)? {
        Ended::Finished(path) => {
            progress.line("done");
            commands::print(&path.display().to_string())?;
            Ok(ExitCode::SUCCESS)
        }
        Ended::Interrupted { step } => {
            progress.line(&format!("interrupted after step {step}; --resume goes on from there"));
            Ok(failure::interrupted(signals::received()))
        }
    }
}

#[cfg(not(feature = "torch"))]
pub(crate) fn run(_: &FinetuneArgs) -> Result<ExitCode> {
    Err(super::needs_libtorch())
}
