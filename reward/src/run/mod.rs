//! A run's folder: one run at a time, its settings, its metrics as JSON lines and TensorBoard events, its checkpoints.

pub mod checkpoints;
pub mod checksums;
pub mod deal;
pub mod inputs;
pub mod metrics;
pub mod order;
pub mod place;
pub mod progress;
pub mod resume;
pub mod tensorboard;
#[cfg(feature = "torch")]
pub mod together;

use std::{
    io::{Seek, Write},
    path::{Path, PathBuf},
};

use crate::{Error, Result, event::Observer, files::followed};
use place::{CONFIG, Settings};
use resume::ResumePoint;

/// End of a run: finished or interrupted.
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// All steps are done; the result is in this folder.
    Finished(PathBuf),
    /// Asked to stop; everything up to `step` is saved.
    Interrupted {
        /// Optimizer steps done.
        step: usize,
    },
}

/// A folder held by this process until it is dropped.
pub struct RunFolder {
    path: PathBuf,
    _lock: fs_err::File,
}

impl RunFolder {
    /// Creates the folder and takes its lock, which the kernel releases when the process ends, however it ends. `flag` is
    /// the one that names the folder, for messages.
    ///
    /// # Errors
    /// Not a folder, not writable, or another process is running there.
    pub fn claim(path: &Path, flag: &str) -> Result<Self> {
        Self::claim_as(path, flag, std::fs::File::try_lock)
    }

    /// As [`Self::claim`], but beside other processes that each do a part of the run.
    ///
    /// # Errors
    /// As there; another process does the whole run here.
    pub fn claim_part(path: &Path, flag: &str) -> Result<Self> {
        Self::claim_as(path, flag, std::fs::File::try_lock_shared)
    }

    fn claim_as(
        path: &Path,
        flag: &str,
        try_lock: fn(&std::fs::File) -> std::result::Result<(), std::fs::TryLockError>,
    ) -> Result<Self> {
        fs_err::create_dir_all(path).map_err(|error| {
            Error::data(format!("{}: {error}", flag.replace('-', " ")))
                .hint(format!("give a --{flag} that you may write to"))
        })?;
        let lock_path = path.join(".lock");
        let options = fs_err::OpenOptions::new().create(true).truncate(false).read(true).write(true).clone();
        let mut lock = options.open(&lock_path).map_err(|error| {
            Error::data(format!("{} {} is not writable: {error}", flag.replace('-', " "), path.display()))
                .hint(format!("give a --{flag} that you may write to"))
        })?;
        match try_lock(lock.file()) {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let holder = fs_err::read_to_string(&lock_path).unwrap_or_default();
                return Err(Error::data(format!(
                    "{}: another run is working here (process {})",
                    path.display(),
                    holder.trim()
                ))
                .hint(format!("wait for it, or give another --{flag}")));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(error.into()),
        }
        lock.file().set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "{}", std::process::id())?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The settings of the run that is in this folder already, if there is one.
    ///
    /// # Errors
    /// `config.toml` is there but cannot be read as these settings.
    pub fn earlier_config<C: serde::de::DeserializeOwned>(&self) -> Result<Option<C>> {
        let path = self.path.join(CONFIG);
        if path.is_file() { place::read_config(&path).map(Some) } else { Ok(None) }
    }

    /// Ends what a process that was killed here began to rename.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn settle(&self, config: &impl Settings) -> Result<()> {
        if self.path.join(CONFIG).is_file() {
            config.folders().iter().try_for_each(|name| checkpoints::settle(&followed(&self.path.join(name))?))?;
            checkpoints::settle_all(&self.path)?;
        }
        Ok(())
    }

    /// Makes the folder that of a run with settings `config` which begins, or goes on from `resumed`. Nothing is there from later steps, and `checkpoints/` is, so that a run whose checkpoints were taken away is known.
    ///
    /// # Errors
    /// The disk is full or not writable.
    pub fn begin<C: Settings, P>(
        &self,
        config: &C,
        resumed: Option<&ResumePoint<P>>,
        observer: &dyn Observer,
    ) -> Result<()> {
        let folder = self.path.join(checkpoints::FOLDER);
        if !folder.is_dir() {
            fs_err::create_dir(&folder)?;
        }
        resumed.map_or(Ok(()), ResumePoint::set_damaged_aside)?;
        checkpoints::sweep(&self.path)?;
        metrics::cut(&self.path, resumed.map_or(0, |point| point.step), observer)?;
        self.write_config(config)
    }

    /// Writes the resolved settings as `config.toml`.
    ///
    /// # Errors
    /// The disk is full or not writable.
    pub fn write_config(&self, config: &impl serde::Serialize) -> Result<()> {
        let text = toml::to_string_pretty(config).map_err(|error| Error::data("settings").caused_by(error))?;
        crate::files::replace_file(&self.path.join(CONFIG), |path| Ok(fs_err::write(path, text)?))
    }
}

/// Names of the settings, outside those in `free`, whose values differ between two runs, in alphabetical order.
pub fn changed_settings(now: &impl serde::Serialize, then: &impl serde::Serialize, free: &[&str]) -> Vec<String> {
    fn as_map(settings: &impl serde::Serialize) -> serde_json::Map<String, serde_json::Value> {
        match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(map)) => map,
            _ => serde_json::Map::new(),
        }
    }
    let (now, then) = (as_map(now), as_map(then));
    let mut names: Vec<String> = now.keys().chain(then.keys()).cloned().collect();
    names.sort();
    names.dedup();
    names.retain(|name| now.get(name) != then.get(name) && !free.contains(&name.as_str()));
    names
}
