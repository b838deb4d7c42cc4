//! Where a run goes on: the newest checkpoint that is whole.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    checkpoints, checksums,
    place::{self, Settings},
};
use crate::{
    Error, Result,
    event::{Event, Observer},
    text,
    weights::file::TensorFile,
};

/// What says where a run is, in each checkpoint.
pub const PROGRESS: &str = "progress.json";

/// A checkpoint to go on from.
#[derive(Debug)]
pub struct ResumePoint<P> {
    /// The checkpoint.
    pub folder: PathBuf,
    /// Optimizer steps done.
    pub step: usize,
    /// What its `progress.json` says.
    pub progress: P,
    /// Newer checkpoints that are damaged.
    damaged: Vec<PathBuf>,
}

impl<P> ResumePoint<P> {
    /// Gives damaged checkpoints another name, so that the run's own can take theirs.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn set_damaged_aside(&self) -> Result<()> {
        for folder in &self.damaged {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            let free = (1..).map(|number| match number {
                1 => format!("{name}.damaged"),
                _ => format!("{name}.damaged-{number}"),
            });
            let place = free.map(|name| folder.with_file_name(name)).find(|place| !place.exists());
            place.map_or(Ok(()), |place| fs_err::rename(folder, place))?;
        }
        Ok(())
    }
}

/// Where a run with these settings begins (nothing) or, with `resume`, goes on. Changes nothing on disk.
///
/// A checkpoint that is damaged is passed over with a warning that names the file.
///
/// # Errors
/// As [`place::check`]; or every checkpoint is damaged.
pub fn resume_point<C: Settings, P: DeserializeOwned>(
    config: &C,
    resume: bool,
    observer: &dyn Observer,
) -> Result<Option<ResumePoint<P>>> {
    if !place::check(config, resume)? {
        return Ok(None);
    }
    let mut damaged: Vec<(PathBuf, Error)> = Vec::new();
    for (step, folder) in checkpoints::list(config.folder())?.into_iter().rev() {
        match read(&folder, step, config.tensor_files()) {
            Ok((progress, verified)) => {
                for (folder, error) in &damaged {
                    let name = folder.file_name().unwrap_or_default().to_string_lossy();
                    let text = format!("{error}: going on from step {step}; {name} is kept as {name}.damaged");
                    observer.event(&Event::Warning(&text));
                }
                if !verified {
                    let text = format!("{} has no {}, so damage would not be seen", folder.display(), checksums::FILE);
                    observer.event(&Event::Note(&text));
                }
                let damaged = damaged.into_iter().map(|(folder, _)| folder).collect();
                return Ok(Some(ResumePoint { folder, step, progress, damaged }));
            }
            Err(error) => damaged.push((folder, error)),
        }
    }
    if damaged.is_empty() {
        return Ok(None);
    }
    let list: Vec<String> = damaged.into_iter().map(|(_, error)| error.to_string()).collect();
    Err(Error::data(format!("--resume: no checkpoint is whole: {}", list.join("; ")))
        .hint(format!("bring one back from a copy, or start another run in another --{}", C::FLAG)))
}

/// The progress of a checkpoint of which all files are whole, and whether checksums say so.
fn read<P: DeserializeOwned>(folder: &Path, step: usize, tensor_files: &[&str]) -> Result<(P, bool)> {
    let verified = checksums::verify(folder)?;
    for name in tensor_files {
        TensorFile::open(&folder.join(name))?;
    }
    let path = folder.join(PROGRESS);
    let wrong = |error| Error::data(format!("{} is not a checkpoint's progress", path.display())).caused_by(error);
    let value: Value = serde_json::from_str(&text::read(&path, "a checkpoint's progress")?).map_err(wrong)?;
    if value["step"] != step {
        return Err(Error::data(format!("{} is of step {}, wanted {step}", path.display(), value["step"])));
    }
    Ok((serde_json::from_value(value).map_err(wrong)?, verified))
}

/// What a hint may say of the checkpoints of a run that failed: only of one that is there.
pub fn way_on(run: &Path) -> String {
    match checkpoints::list(run).ok().and_then(|mut all| all.pop()) {
        Some((step, _)) => format!("--resume goes on from the last checkpoint, of step {step}"),
        None => "no checkpoint was written yet, so that --resume begins at step 1".to_owned(),
    }
}
