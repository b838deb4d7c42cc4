//! A file read at positions, never mapped: one that is shortened while it is read is an error with its name, not a signal.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use crate::{Error, Result, foreign};

/// A file and the length it had when it was opened.
pub(super) struct Source {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Source {
    /// Opens a file of weights.
    ///
    /// # Errors
    /// It cannot be opened, or is something else by its first bytes (a Git LFS pointer, a web page, …).
    pub(super) fn open(path: &Path) -> Result<Self> {
        let (file, _) = fs_err::File::open(path)?.into_parts();
        let metadata = file.metadata().map_err(|error| Error::data(format!("{}: {error}", path.display())))?;
        if !metadata.is_file() {
            return Err(Error::data(format!("{}: not a file, want weights", path.display())));
        }
        let source = Self { path: path.to_owned(), file, length: metadata.len() };
        let head = source.bytes(0, source.length.min(foreign::HEAD as u64))?;
        foreign::Foreign::refuse(path, &head, "weights")?;
        Ok(source)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// `count` bytes from `start`.
    ///
    /// # Errors
    /// The file ends before; nothing is allocated then.
    pub(super) fn bytes(&self, start: u64, count: u64) -> Result<Vec<u8>> {
        if start.checked_add(count).is_none_or(|end| end > self.length) {
            return Err(self.ends());
        }
        let mut bytes = vec![0; usize::try_from(count).map_err(|_| self.ends())?];
        self.read(start, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `into` from `start`.
    ///
    /// # Errors
    /// The file ends before, or has become shorter since it was opened.
    pub(super) fn read(&self, start: u64, into: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < into.len() {
            match read_at(&self.file, &mut into[done..], start + done as u64) {
                Ok(0) => return Err(self.ends()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::data(format!("{}: {error}", self.path.display()))),
            }
        }
        Ok(())
    }

    fn ends(&self) -> Error {
        let now = self.file.metadata().map_or(self.length, |metadata| metadata.len());
        let found = match now == self.length {
            true => format!("{now} bytes, and what it holds goes on"),
            false => format!("had {} bytes when it was opened, has {now} now", self.length),
        };
        Error::data(format!("{}: {found}", self.path.display()))
            .hint("it was truncated, or is written to at this moment: copy or download it again")
    }
}

#[cfg(unix)]
fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, into, at)
}

#[cfg(windows)]
fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, into, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_shortened_is_an_error_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.bin");
        fs_err::write(&path, [7; 100]).unwrap();
        let source = Source::open(&path).unwrap();
        assert_eq!(source.bytes(98, 2).unwrap(), [7, 7]);
        assert!(source.bytes(1, u64::MAX).unwrap_err().to_string().contains("w.bin: 100 bytes"));
        fs_err::write(&path, [7; 10]).unwrap();
        let error = source.bytes(0, 100).unwrap_err().to_string();
        assert!(error.ends_with("w.bin: had 100 bytes when it was opened, has 10 now"), "{error}");
        assert!(Source::open(folder.path()).is_err());
    }
}
