//! The unit of a reward: mean and deviation over the base model's images of the training prompts, fixed at the start of a run.
//! A cosine moves by hundredths, so that constants published for other rewards mean nothing on it.

use std::{collections::BTreeMap, path::Path};

use reward::{
    files::json_file,
    statistics::{deviation, mean},
};

use crate::{Error, Result, objective::Scale};

/// Where users find them; checkpoints hold their own.
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

/// Writes the units of all rewards.
pub(super) fn write(folder: &Path, scales: &BTreeMap<String, Scale>) -> Result<()> {
    json_file(&folder.join(FILE), &serde_json::json!(scales))
}
