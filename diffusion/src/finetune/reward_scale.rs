//! The unit of a reward: mean and deviation over the base model's images of the training prompts, fixed at the start of a run.
//! A cosine moves by hundredths, so that constants published for other rewards mean nothing on it.

use std::{collections::BTreeMap, path::Path};

use reward::{
    files::json_file,
    statistics::{deviation, mean},
};

use crate::{Error, Result, objective::Scale};

/// Where a run keeps them.
pub(super) const FILE: &str = "reward_scale.json";

/// The unit of a reward, from values over the base model's images.
///
/// # Errors
/// They are all the same, so that there is no unit.
pub(super) fn of(label: &str, values: &[f64]) -> Result<Scale> {
    let (mean, deviation) = (mean(values), deviation(values));
    if deviation > 1e-9 && deviation.is_finite() {
        return Ok(Scale { mean, deviation });
    }
    Err(Error::data(format!("reward `{label}` gives {mean} for all {} images of the base model", values.len()))
        .hint("reward_scale = \"raw\" needs no unit; but a reward that scores all images equally cannot be optimised"))
}

/// Reads the scales that a run began with, for checkpoints of earlier versions, which do not hold them.
pub(super) fn read(folder: &Path) -> Result<Option<BTreeMap<String, Scale>>> {
    let path = folder.join(FILE);
    if !path.is_file() {
        return Ok(None);
    }
    serde_json::from_str(&reward::text::read(&path, "the rewards' scales")?)
        .map(Some)
        .map_err(|error| Error::data(format!("{}: not the rewards' scales", path.display())).caused_by(error))
}

/// Writes them.
pub(super) fn write(folder: &Path, scales: &BTreeMap<String, Scale>) -> Result<()> {
    json_file(&folder.join(FILE), &serde_json::json!(scales))
}
