//! Writing files: links are followed, and a file is replaced only by a whole one.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// The place that `path` leads to, through a link where it is one. What is not there yet is `path` itself.
///
/// # Errors
/// `path`, or a folder on the way, is a link to what does not exist.
pub fn followed(path: &Path) -> Result<PathBuf> {
    let is_link = |place: &Path| fs_err::symlink_metadata(place).is_ok_and(|found| found.is_symlink());
    if let Some(link) = path.ancestors().find(|place| is_link(place) && !place.exists()) {
        let target = fs_err::read_link(link)?;
        return Err(Error::data(format!("{} is a link to {}, which does not exist", link.display(), target.display()))
            .hint("make what it leads to, or remove the link"));
    }
    // A pipe that stdout is has no path of its own.
    let target = if is_link(path) { fs_err::canonicalize(path).ok() } else { None };
    Ok(target.unwrap_or_else(|| path.to_owned()))
}

/// The folder that `path` lies in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Calls `write` with a temporary sibling of `path`, then puts the file on disk and renames it. What was at `path` stays whole
/// until the new file is. The temporary name is this call's own, so that two processes may write one file: the later one stays. A
/// link is followed; a device or a pipe is written to as it is.
///
/// The file has the permissions of the one that it replaces, or of any new file, whoever writes it. For example, safetensors
/// makes files that only their owner may read.
///
/// # Errors
/// What `write` says, or the disk is full or not writable: nothing temporary is left then. What
/// [`followed`] refuses.
pub fn replace_file(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let place = followed(path)?;
    let earlier = fs_err::metadata(&place).ok();
    if earlier.as_ref().is_some_and(|found| !found.is_file() && !found.is_dir()) {
        return write(&place);
    }
    let cannot = |error: std::io::Error| Error::data(format!("{} cannot be written: {error}", path.display()));
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    // Removed when it is dropped, unless it was renamed.
    let partial = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .suffix(".partial")
        .permissions(PermissionsExt::from_mode(0o666))
        .tempfile_in(folder_of(&place))
        .map_err(|error| cannot(error.kind().into()))?
        .into_temp_path();
    let like = match earlier {
        Some(earlier) => earlier,
        None => fs_err::metadata(&partial)?,
    };
    let shown = partial.display().to_string();
    write(&partial)
        .and_then(|()| Ok(fs_err::set_permissions(&partial, like.permissions())?))
        .and_then(|()| Ok(fs_err::File::open(&*partial)?.sync_all()?))
        .map_err(|error| error.renamed(&shown, &path.display().to_string()))?;
    partial.persist(&place).map_err(|failed| cannot(failed.error))
}

/// Writes pretty JSON through [`replace_file`].
///
/// # Errors
/// As [`replace_file`].
pub fn json_file(path: &Path, value: &serde_json::Value) -> Result<()> {
    replace_file(path, |partial| Ok(fs_err::write(partial, format!("{value:#}\n"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(folder: &Path) -> Vec<String> {
        let names = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_that_cannot_be_written_stays_whole_and_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.csv");
        fs_err::write(&path, "earlier").unwrap();
        let failed = replace_file(&path, |partial| {
            fs_err::write(partial, "half")?;
            Err(Error::data(format!("failed to write to file `{}`: disk full", partial.display())))
        });
        let wanted = format!("failed to write to file `{}`: disk full", path.display());
        assert_eq!(failed.unwrap_err().to_string(), wanted);
        assert_eq!(
            (fs_err::read(&path).unwrap(), contents(folder.path())),
            (b"earlier".to_vec(), vec!["s.csv".into()])
        );
        let full = replace_file(Path::new("/dev/full"), |partial| Ok(fs_err::write(partial, "x")?));
        assert!(full.unwrap_err().to_string().contains("`/dev/full`"), "the device is named");
        let none = replace_file(Path::new("/proc/none"), |_| Ok(())).unwrap_err().to_string();
        assert!(none.starts_with("/proc/none cannot be written: "), "{none}");
    }

    #[test]
    fn a_link_stays_and_what_it_leads_to_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
        fs_err::write(&file, "earlier").unwrap();
        fs_err::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        replace_file(&link, |partial| Ok(fs_err::write(partial, "new")?)).unwrap();
        assert_eq!(fs_err::read(&file).unwrap(), b"new");
        assert!(fs_err::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs_err::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        fs_err::remove_file(&file).unwrap();
        let dangling = replace_file(&link, |_| Ok(())).unwrap_err().to_string();
        assert!(dangling.ends_with("link is a link to file, which does not exist"), "{dangling}");
    }

    /// Both ran into one temporary name: one wrote into the other's file, or found it gone.
    #[test]
    fn writers_of_one_file_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::thread::scope(|scope| {
            for writer in 0..8_u8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        replace_file(path, |partial| Ok(fs_err::write(partial, [writer; 4096])?)).unwrap();
                    }
                });
            }
        });
        let found = fs_err::read(&path).unwrap();
        assert!(found.len() == 4096 && found.iter().all(|byte| *byte == found[0]));
        assert_eq!(contents(folder.path()), ["x"]);
    }
}
