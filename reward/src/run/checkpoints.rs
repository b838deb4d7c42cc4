//! `checkpoints/step-N/`: written beside and renamed, so that one that is there is complete.

use std::path::{Path, PathBuf};

use crate::Result;

/// The complete checkpoints of a run with their steps, oldest first.
///
/// # Errors
/// The folder cannot be listed.
pub fn list(run: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let folder = run.join("checkpoints");
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs_err::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Fills `folder` through `write` in a temporary sibling and renames it; a folder that is there is replaced at the end.
///
/// # Errors
/// What `write` says, or the disk is full; what was there stays.
pub fn replace_folder(folder: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let (partial, old) =
        (folder.with_file_name(format!(".{name}.partial")), folder.with_file_name(format!(".{name}.old")));
    for leftover in [&partial, &old] {
        if leftover.exists() {
            fs_err::remove_dir_all(leftover)?;
        }
    }
    fs_err::create_dir_all(&partial)?;
    let written = write(&partial).and_then(|()| {
        if folder.exists() {
            fs_err::rename(folder, &old)?;
        }
        Ok(fs_err::rename(&partial, folder)?)
    });
    for leftover in [&partial, &old] {
        fs_err::remove_dir_all(leftover).ok();
    }
    written
}

/// Removes all but the newest `keep` checkpoints; 0 keeps all.
///
/// # Errors
/// A folder cannot be removed.
pub fn prune(run: &Path, keep: usize) -> Result<()> {
    let all = list(run)?;
    let surplus = if keep == 0 { 0 } else { all.len().saturating_sub(keep) };
    for (_, path) in &all[..surplus] {
        fs_err::remove_dir_all(path)?;
    }
    Ok(())
}
