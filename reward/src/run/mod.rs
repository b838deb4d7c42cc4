//! A run's folder: one run at a time, its settings, its metrics as JSON lines and TensorBoard events, its checkpoints.

pub mod checkpoints;
pub mod metrics;
pub mod tensorboard;

use std::{
    io::{Seek, Write},
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// A folder held by this process until it is dropped.
pub struct RunFolder {
    path: PathBuf,
    _lock: fs_err::File,
}

impl RunFolder {
    /// Creates the folder and takes its lock, which the kernel releases when the process ends, however it ends.
    ///
    /// # Errors
    /// Not a folder, not writable, or another process is running there.
    pub fn claim(path: &Path) -> Result<Self> {
        fs_err::create_dir_all(path).map_err(|error| {
            Error::data(format!("save folder: {error}")).hint("give a --save-folder that you may write to")
        })?;
        let lock_path = path.join(".lock");
        let options = fs_err::OpenOptions::new().create(true).truncate(false).read(true).write(true).clone();
        let mut lock = options.open(&lock_path).map_err(|error| {
            Error::data(format!("save folder {} is not writable: {error}", path.display()))
                .hint("give a --save-folder that you may write to")
        })?;
        match lock.file().try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let holder = fs_err::read_to_string(&lock_path).unwrap_or_default();
                return Err(Error::data(format!(
                    "{}: another run is working here (process {})",
                    path.display(),
                    holder.trim()
                ))
                .hint("wait for it, or give another --save-folder"));
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
        let path = self.path.join("config.toml");
        if !path.is_file() {
            return Ok(None);
        }
        toml::from_str(&fs_err::read_to_string(&path)?)
            .map(Some)
            .map_err(|error| Error::data(format!("{}: {}", path.display(), error.message())))
    }

    /// Writes the resolved settings as `config.toml`.
    ///
    /// # Errors
    /// The disk is full or not writable.
    pub fn write_config(&self, config: &impl serde::Serialize) -> Result<()> {
        let text = toml::to_string_pretty(config).map_err(|error| Error::data("settings").caused_by(error))?;
        crate::weights::save::replace_file(&self.path.join("config.toml"), |path| Ok(fs_err::write(path, text)?))
    }
}
