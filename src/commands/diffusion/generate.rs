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
    let (shard, local_rank) = commands::shard(config.shard)?;
    check_outputs(&config, shard)?;
    let device = commands::device(Some(config.device), config.threads).of_rank(local_rank);
    let config = GenerateConfig { shard: Some(shard), device, ..config };
    let (stop, progress) = (signals::listen()?, Progress::new());
    match generate(&config, &progress, &stop)? {
        Ended::Finished { table, images } => {
            progress.line(&format!("done: {images} image(s)"));
            commands::print(&table.display().to_string())?;
            Ok(ExitCode::SUCCESS)
        }
        Ended::Part { images, missing } => {
            progress.line(&format!("part {shard} is done: {images} image(s); {missing} of other parts are missing"));
            progress.line("the last part to end writes the table; without --shard, one process makes what is missing");
            Ok(ExitCode::SUCCESS)
        }
        Ended::Interrupted { done, images } => {
            progress
                .line(&format!("interrupted after {done} of {images} image(s); the same command goes on from there"));
            Ok(failure::interrupted(signals::received()))
        }
    }
}

/// What can be refused before a model is loaded: a place that cannot be written, or where something is that is not ours.
#[cfg(feature = "torch")]
fn check_outputs(config: &diffusion::generate::GenerateConfig, shard: reward::world::shard::Shard) -> Result<()> {
    use reward::{Error, output, weights::file::TensorFile, world::shard::Shard};

    if let Some(folder) = &config.output {
        let is_new = !folder.exists();
        output::check_folder(folder, "give an --output that you may write to")?;
        if is_new && shard == Shard::WHOLE {
            // Made again once prompts and model are known to be there. Other parts may be about to use it.
            fs_err::remove_dir(folder).ok();
        }
        let theirs = ["images.parquet", "contact-sheet.png"].into_iter().find(|name| folder.join(name).exists());
        if let Some(name) = theirs.filter(|_| !folder.join("config.toml").exists()) {
            let wrong = format!("{} holds {name}, and no config.toml of a run that made it", folder.display());
            return Err(Error::data(wrong).hint("give another --output: nothing is written over").into());
        }
    }
    for path in [&config.save_latents, &config.save_final_latents].into_iter().flatten() {
        output::check_file(path, "give the latents a file that you may write to")?;
        let theirs = |file: TensorFile| !file.shapes().contains_key("latents");
        let used = path.is_file() && fs_err::metadata(path)?.len() > 0;
        if used && TensorFile::open(path).map_or(true, theirs) {
            let wrong = format!("{} is there already and holds no latents: it stays as it is", path.display());
            return Err(Error::data(wrong).hint("give the latents another file, or move this one away").into());
        }
    }
    Ok(())
}

#[cfg(not(feature = "torch"))]
pub(crate) fn run(_: &GenerateArgs) -> Result<ExitCode> {
    Err(super::needs_libtorch())
}
