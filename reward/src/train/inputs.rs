//! The inputs of a run, compared with those that it began with.

use super::{checkpoint::Progress, config::TrainConfig};
use crate::{
    Result,
    event::{Event, Observer},
    run::{
        inputs::Inputs,
        place::Settings,
        resume::{ResumePoint, resume_point},
    },
    weights::{Checkpoint, DEFAULT_MODEL},
};

/// The step after which a run with these settings would go on in its save folder; nothing where it would begin.
///
/// # Errors
/// As [`resume_point`].
pub fn resumed_step(config: &TrainConfig, observer: &dyn Observer) -> Result<Option<usize>> {
    Ok(resume_point::<_, Progress>(config, true, observer)?.map(|point| point.step))
}

/// The inputs of a run: `inputs`, its data, and its base model. A resumed run began with the same.
///
/// # Errors
/// The model cannot be read, or an input is another than at step 1.
pub(super) fn checked(
    config: &TrainConfig,
    source: &Checkpoint,
    mut inputs: Inputs,
    resumed: Option<&ResumePoint<Progress>>,
    observer: &dyn Observer,
) -> Result<Inputs> {
    let spelled = config.checkout_path.as_deref().or(config.model.as_deref()).unwrap_or(DEFAULT_MODEL);
    let description = source.config.to_hugging_face().to_string();
    inputs.add_files("model", spelled, &source.files(), &description)?;
    let Some(ResumePoint { progress, folder, .. }) = resumed else { return Ok(inputs) };
    if progress.inputs.is_empty() {
        let text = format!("{} does not say what data the run saw: taken as the same", folder.display());
        observer.event(&Event::Warning(&text));
    }
    inputs.check_same(&progress.inputs, TrainConfig::FLAG)?;
    Ok(inputs)
}
