//! The inputs of a run, compared with those that it began with.

use std::path::Path;

use reward::{
    data::content_hash,
    event::{Event, Observer},
    run::{
        inputs::{Inputs, with_descriptions},
        place::Settings,
        resume::{ResumePoint, resume_point},
    },
};

use super::{checkpoint::Progress, config::FinetuneConfig, load};
use crate::{
    Result,
    lora::{LoraSpec, locate},
    source::Source,
};

/// The step after which a run with these settings would go on in its output folder; nothing where it would begin.
///
/// # Errors
/// As [`resume_point`].
pub fn resumed_step(config: &FinetuneConfig, observer: &dyn Observer) -> Result<Option<usize>> {
    Ok(resume_point::<_, Progress>(config, true, observer)?.map(|point| point.step))
}

/// The inputs of a run by content. A resumed run began with the same.
///
/// # Errors
/// One cannot be read, or is another than at step 1.
pub(super) fn checked(
    config: &FinetuneConfig,
    source: &Source,
    resumed: Option<&ResumePoint<Progress>>,
    observer: &dyn Observer,
) -> Result<Inputs> {
    let mut inputs = Inputs::default();
    let shown = |path: &Path| path.display().to_string();
    for (setting, file) in [("prompts", &config.prompts), ("held_out_prompts", &config.held_out_prompts)] {
        if let Some(file) = file {
            let prompts = reward::data::prompts::read(file)?;
            inputs.add_rows(setting, &shown(file), prompts.len(), content_hash(prompts.iter()));
        }
    }
    if config.on_pictures()
        && let Some(data) = config.data()
    {
        let spelled = match (&config.images, &config.labels) {
            (Some(table), _) | (None, Some(table)) => shown(table),
            _ => config.training_file.join(", "),
        };
        let (rows, content) = load::rows(config)?.content();
        inputs.add_rows(data.setting(), &spelled, rows, content);
    }
    for (index, spec) in config.reward.iter().enumerate() {
        let files = with_descriptions(&spec.path, spec.files(config.clip.as_deref())?);
        inputs.add_files(&format!("reward {}", index + 1), &spec.path, &files, "")?;
    }
    for (index, LoraSpec { path, .. }) in config.lora.iter().enumerate() {
        let file = locate(path)?;
        let described = file.with_file_name("adapter_config.json");
        let files = [vec![file], Vec::from_iter(Some(described).filter(|path| path.is_file()))].concat();
        inputs.add_files(&format!("lora {}", index + 1), &shown(path), &files, "")?;
    }
    inputs.add_files("model", source.model(), &source.files()?, "")?;
    let Some(ResumePoint { progress, folder, .. }) = resumed else { return Ok(inputs) };
    if progress.inputs.is_empty() {
        let text = format!("{} does not say what data the run saw: taken as the same", folder.display());
        observer.event(&Event::Warning(&text));
    }
    inputs.check_same(&progress.inputs, FinetuneConfig::FLAG)?;
    Ok(inputs)
}
