//! Checks of where results go: a place that cannot be written is found before anything is computed.

use std::path::Path;

use crate::{
    Error, Result,
    files::{folder_of, followed},
};

const WAY_OUT: &str = "give an --output that you may write to";

/// Finds out whether a file can be written at `path`, whose folder is made where there is none. `way_out`: the hint if not.
///
/// # Errors
/// It is a folder, its folder cannot be made or written to, or what [`followed`] refuses.
pub fn check_file(path: &Path, way_out: &str) -> Result<()> {
    let place = followed(path)?;
    let wrong =
        |why: String| Error::data(format!("{} cannot be written: {why}", path.display())).hint(way_out.to_owned());
    if place.is_dir() {
        return Err(wrong("it is a folder".to_owned()));
    }
    // A device or a pipe takes what is written to it.
    if place.is_file() || !place.exists() { writable(folder_of(&place)).map_err(wrong) } else { Ok(()) }
}

/// Finds out whether files can be written into the folder `path`, which is made where there is none. `way_out`: the hint if not.
///
/// # Errors
/// It is a file, cannot be made or written to, or what [`followed`] refuses.
pub fn check_folder(path: &Path, way_out: &str) -> Result<()> {
    let place = followed(path)?;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let wrong =
        |why: String| Error::data(format!("{} cannot be written to: {why}", path.display())).hint(way_out.to_owned());
    if place.exists() && !place.is_dir() {
        return Err(wrong("it is a file, wanted a folder".to_owned()));
    }
    writable(&place).map_err(wrong)
}

/// Refuses a place where something is already, but for an empty folder or an empty file, or that cannot be written.
///
/// # Errors
/// It is not empty, its folder cannot be made or written to, or what [`followed`] refuses.
pub fn check_new(path: &Path) -> Result<()> {
    let place = followed(path)?;
    let found = match fs_err::metadata(&place) {
        Ok(found) if found.is_dir() && fs_err::read_dir(&place)?.next().is_some() => "holds files already",
        Ok(found) if found.is_file() && found.len() > 0 => "is there already",
        Ok(found) if found.is_dir() => return check_folder(path, WAY_OUT),
        _ => return check_file(path, WAY_OUT),
    };
    Err(Error::data(format!("{} {found}, and is not written over", path.display()))
        .hint("give another --output, or remove it"))
}

/// Makes the folder and a file in it, which is removed again; or says why that cannot be.
fn writable(folder: &Path) -> std::result::Result<(), String> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    fs_err::create_dir_all(folder).map_err(|error| error.to_string())?;
    let made = tempfile::Builder::new().prefix(".writable-").tempfile_in(folder);
    made.map(drop).map_err(|error| format!("{}: {}", folder.display(), error.kind()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn said(result: Result<impl std::fmt::Debug>, folder: &Path) -> String {
        result.unwrap_err().to_string().replace(&format!("{}/", folder.display()), "")
    }

    #[test]
    fn a_link_is_followed_and_one_that_leads_nowhere_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs_err::create_dir(at("real")).unwrap();
        symlink("real", at("link")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        assert_eq!(followed(&at("link")).unwrap(), fs_err::canonicalize(at("real")).unwrap());
        assert_eq!(followed(&at("link/x")).unwrap(), at("link/x"));
        assert_eq!(followed(&at("none/x")).unwrap(), at("none/x"));
        let wanted = "dangling is a link to nowhere, which does not exist";
        for path in ["dangling", "dangling/x/y"] {
            assert_eq!(said(followed(&at(path)), folder.path()), wanted);
            assert_eq!(said(check_folder(&at(path), ""), folder.path()), wanted);
            assert_eq!(said(check_file(&at(path), ""), folder.path()), wanted);
        }
    }

    #[test]
    fn what_cannot_be_written_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs_err::write(at("file"), "x").unwrap();
        check_file(&at("new/deep/s.csv"), "").unwrap();
        assert!(at("new/deep").is_dir());
        check_file(&at("file"), "").unwrap();
        check_file(Path::new("/dev/null"), "").unwrap();
        assert_eq!(said(check_file(&at("new"), ""), folder.path()), "new cannot be written: it is a folder");
        let inside = said(check_file(&at("file/s.csv"), ""), folder.path());
        assert!(inside.starts_with("file/s.csv cannot be written: "), "{inside}");
        let wanted = "file cannot be written to: it is a file, wanted a folder";
        assert_eq!(said(check_folder(&at("file"), ""), folder.path()), wanted);
        let hint = check_file(Path::new("/proc/s.csv"), "--output DIR").unwrap_err();
        assert_eq!(hint.hint_text(), Some("--output DIR"));
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_there_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs_err::write(at("empty"), "").unwrap();
        fs_err::create_dir(at("folder")).unwrap();
        for free in ["none", "empty", "folder"] {
            check_new(&at(free)).unwrap();
        }
        fs_err::write(at("folder/x"), "x").unwrap();
        let full = said(check_new(&at("folder")), folder.path());
        assert_eq!(full, "folder holds files already, and is not written over");
        assert_eq!(
            said(check_new(&at("folder/x")), folder.path()),
            "folder/x is there already, and is not written over"
        );
    }
}
