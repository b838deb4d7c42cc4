//! `checkpoints/step-N/`: written beside and renamed, so that one that is there is complete; with checksums, so that one that
//! was damaged since is seen.

use std::path::{Path, PathBuf};

use super::checksums;
use crate::{Result, files::followed};

/// Where a run keeps them.
pub const FOLDER: &str = "checkpoints";

/// The checkpoints of a run with their steps, oldest first.
///
/// # Errors
/// The folder cannot be listed.
pub fn list(run: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let folder = run.join(FOLDER);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs_err::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // As it is written: `step-08` and `step-+8` are not ours.
        let step = name.strip_prefix("step-").and_then(|step| step.parse().ok());
        if let Some(step) = step.filter(|step| *name == format!("step-{step}")) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Where the checkpoint of `step` belongs.
pub fn folder(run: &Path, step: usize) -> PathBuf {
    run.join(FOLDER).join(format!("step-{step}"))
}

/// Fills a checkpoint's folder through `write`, with the checksums of its files, as [`replace_folder`].
///
/// # Errors
/// As [`replace_folder`].
pub fn write(folder: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    replace_folder(folder, |partial| {
        write(partial)?;
        checksums::write(partial)
    })
}

/// Fills `folder` through `write` in a temporary sibling and renames it; a folder that is there is replaced at the end. What
/// else somebody put into it stays, and where it is a link, what it points to is replaced.
///
/// # Errors
/// What `write` says, or the disk is full; what was there stays.
pub fn replace_folder(folder: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let folder = followed(folder)?;
    settle(&folder)?;
    let [partial, old] = ["partial", "old"].map(|end| sibling(&folder, end));
    if partial.exists() {
        fs_err::remove_dir_all(&partial)?;
    }
    fs_err::create_dir_all(&partial)?;
    let written = write(&partial).and_then(|()| {
        if folder.exists() {
            fs_err::rename(&folder, &old)?;
        }
        Ok(fs_err::rename(&partial, &folder)?)
    });
    if written.is_err() {
        fs_err::remove_dir_all(&partial).ok();
    }
    written.and(settle(&folder))
}

fn sibling(folder: &Path, end: &str) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!(".{name}.{end}"))
}

/// Ends a replacement that was begun, perhaps by a process that was killed. Where only the old folder is there, it gets its name
/// back. Else what the new folder lacks moves there, and the rest of the old one goes.
///
/// # Errors
/// The disk refuses.
pub fn settle(folder: &Path) -> Result<()> {
    let old = sibling(folder, "old");
    if !old.is_dir() {
        return Ok(());
    }
    if !folder.exists() {
        return Ok(fs_err::rename(&old, folder)?);
    }
    for entry in fs_err::read_dir(&old)? {
        let entry = entry?;
        let place = folder.join(entry.file_name());
        if fs_err::symlink_metadata(&place).is_err() {
            fs_err::rename(entry.path(), place)?;
        }
    }
    Ok(fs_err::remove_dir_all(old)?)
}

/// [`settle`]s every checkpoint, so that [`list`] gives all.
///
/// # Errors
/// As [`settle`].
pub fn settle_all(run: &Path) -> Result<()> {
    for name in hidden(run)? {
        if let Some(step) = name.strip_prefix('.').and_then(|name| name.strip_suffix(".old")) {
            settle(&run.join(FOLDER).join(step))?;
        }
    }
    Ok(())
}

/// Removes what killed processes left unfinished.
///
/// # Errors
/// A folder cannot be removed.
pub fn sweep(run: &Path) -> Result<()> {
    for name in hidden(run)? {
        if name.ends_with(".partial") || name.ends_with(".removed") {
            fs_err::remove_dir_all(run.join(FOLDER).join(name))?;
        }
    }
    Ok(())
}

/// Names of folders beside the checkpoints that begin as our temporary ones do.
fn hidden(run: &Path) -> Result<Vec<String>> {
    let folder = run.join(FOLDER);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".step-") && entry.path().is_dir() {
            names.push(name);
        }
    }
    Ok(names)
}

/// Removes all but the newest `keep` checkpoints; 0 keeps all.
///
/// # Errors
/// A folder cannot be removed.
pub fn prune(run: &Path, keep: usize) -> Result<()> {
    let all = list(run)?;
    let surplus = if keep == 0 { 0 } else { all.len().saturating_sub(keep) };
    for (_, path) in &all[..surplus] {
        // Half of one must not look like one.
        let removed = sibling(path, "removed");
        fs_err::rename(path, &removed)?;
        fs_err::remove_dir_all(removed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs_err::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_what_we_write_is_a_checkpoint_and_the_oldest_go() {
        let run = tempfile::tempdir().unwrap();
        for name in ["step-2", "step-10", "step-08", "step-+9", "step-x", "step-12.damaged", ".step-14.partial"] {
            fs_err::create_dir_all(run.path().join(FOLDER).join(name)).unwrap();
        }
        let steps = || list(run.path()).unwrap().iter().map(|(step, _)| *step).collect::<Vec<_>>();
        assert_eq!(steps(), [2, 10]);
        prune(run.path(), 1).unwrap();
        assert_eq!(steps(), [10]);
        sweep(run.path()).unwrap();
        assert_eq!(names(&run.path().join(FOLDER)), ["step-+9", "step-08", "step-10", "step-12.damaged", "step-x"]);
    }

    #[test]
    fn a_replacement_keeps_what_it_does_not_know_and_follows_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("disk/best"), folder.path().join("best"));
        fs_err::create_dir_all(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        fs_err::write(real.join("weights"), "old").unwrap();
        fs_err::write(real.join("notes.txt"), "mine").unwrap();
        replace_folder(&link, |partial| Ok(fs_err::write(partial.join("weights"), "new")?)).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs_err::read_to_string(link.join("weights")).unwrap(), "new");
        assert_eq!(fs_err::read_to_string(real.join("notes.txt")).unwrap(), "mine");
        assert_eq!(names(&folder.path().join("disk")), ["best"], "nothing is left beside it");
        let failed = replace_folder(&link, |_| Err(crate::Error::data("full")));
        assert_eq!(failed.unwrap_err().to_string(), "full");
        assert_eq!(names(&real), ["notes.txt", "weights"]);
    }

    /// Killed between its two renames, a replacement leaves both folders under other names.
    #[test]
    fn a_folder_gets_its_name_back() {
        let run = tempfile::tempdir().unwrap();
        let [old, new] = [".step-4.old", ".step-4.partial"].map(|name| run.path().join(FOLDER).join(name));
        for folder in [&old, &new] {
            fs_err::create_dir_all(folder).unwrap();
            fs_err::write(folder.join("weights"), folder.to_str().unwrap()).unwrap();
        }
        settle_all(run.path()).unwrap();
        assert_eq!(list(run.path()).unwrap().len(), 1);
        let weights = fs_err::read_to_string(folder(run.path(), 4).join("weights")).unwrap();
        assert_eq!(weights, old.to_str().unwrap());
    }
}
