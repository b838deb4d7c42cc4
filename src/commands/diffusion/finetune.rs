//! `social-reward diffusion finetune`.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::FinetuneArgs;

#[cfg(feature = "torch")]
pub(crate) fn run(arguments: &FinetuneArgs) -> Result<ExitCode> {
    use diffusion::finetune::{FinetuneConfig, dry_run, finetune};
    use reward::{
        event::{Event, Observer},
        run::Ended,
    };

    use crate::{commands, failure, progress::Progress, settings::layered, signals, together::together};

    let config: FinetuneConfig = layered(arguments, arguments.config.as_deref())?;
    config.check()?;
    // A link that leads nowhere is named before anything is read.
    if let Some(folder) = &config.output {
        reward::files::followed(folder)?;
    }
    commands::device(Some(config.device), config.threads);
    let stop = signals::listen()?;
    if arguments.dry_run {
        commands::print(&dry_run(&config, &Progress::new(), &stop)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (ended, progress) =
        together(&arguments.world, |world, progress| finetune(&config, arguments.resume, world, progress, &stop))?;
    match ended {
        Ended::Finished(path) => {
            progress.event(&Event::Note("done"));
            if progress.leads() {
                commands::print(&path.display().to_string())?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Ended::Interrupted { step } => {
            progress.event(&Event::Note(&format!("interrupted after step {step}; --resume goes on from there")));
            Ok(failure::interrupted(signals::received()))
        }
    }
}

#[cfg(not(feature = "torch"))]
pub(crate) fn run(_: &FinetuneArgs) -> Result<ExitCode> {
    Err(super::needs_libtorch())
}
