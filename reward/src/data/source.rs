//! Where the bytes of an image lie: in a file of its own, or embedded in a table and spilled to a temporary file.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Error, Result, foreign};

/// An image that can be read again at any time, from any thread.
#[derive(Debug, Clone)]
pub enum ImageSource {
    /// A file, at its resolved path.
    File(PathBuf),
    /// Bytes that came inside a parquet file.
    Embedded(Embedded),
}

/// An image that came inside a parquet file. Its bytes lie in an unlinked temporary file, which vanishes with the last
/// image of it.
#[derive(Debug, Clone)]
pub struct Embedded {
    pub(super) spill: Arc<File>,
    pub(super) offset: u64,
    pub(super) length: usize,
    pub(super) content: blake3::Hash,
    pub(super) table: Arc<Path>,
    pub(super) row: usize,
    pub(super) column: &'static str,
}

impl ImageSource {
    /// The whole image file, undecoded. It is an error if it does not exist, is a folder or is empty.
    pub fn read(&self) -> Result<Vec<u8>> {
        self.read_head(usize::MAX)
    }

    /// The first `limit` bytes of the image file (all of them if it is shorter); errors as those of [`Self::read`].
    pub fn read_head(&self, limit: usize) -> Result<Vec<u8>> {
        let bytes = match self {
            Self::File(path) => read_file(path, limit)?,
            Self::Embedded(image) => {
                let mut bytes = vec![0; image.length.min(limit)];
                image
                    .spill
                    .read_exact_at(&mut bytes, image.offset)
                    .map_err(|error| Error::data(format!("{}: {error}", self.label())))?;
                bytes
            }
        };
        if bytes.is_empty() {
            return Err(Error::data(format!("{} is empty (0 bytes), wanted an image", self.label())));
        }
        Ok(bytes)
    }

    /// The path of a file of its own.
    pub(super) fn path(&self) -> Option<&Path> {
        if let Self::File(path) = self { Some(path) } else { None }
    }

    /// The name for messages: the path, or `T.parquet row 12 column pos_image` (rows count from 0).
    pub fn label(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Embedded(image) => {
                format!("{} row {} column {}", image.table.display(), image.row, image.column)
            }
        }
    }

    /// Equal for equal images: the hash of the path, or of the content if embedded.
    pub fn identity(&self) -> blake3::Hash {
        match self {
            Self::File(path) => {
                // The prefix keeps a path apart from content that spells it.
                blake3::Hasher::new().update(b"path:").update(path.as_os_str().as_encoded_bytes()).finalize()
            }
            Self::Embedded(image) => image.content,
        }
    }
}

/// The commonest failure in plain words, the others as the system puts them.
pub(crate) fn not_opened(path: &Path, error: std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::data(format!("{} does not exist", path.display())),
        _ => error.into(),
    }
}

fn read_file(path: &Path, limit: usize) -> Result<Vec<u8>> {
    if let Some(error) = path.to_str().and_then(|text| foreign::url(text, "an image file")) {
        return Err(error);
    }
    let metadata = fs_err::metadata(path).map_err(|error| not_opened(path, error))?;
    if !metadata.is_file() {
        let found = if metadata.is_dir() { "a folder" } else { "not a regular file" };
        return Err(Error::data(format!("{} is {found}, wanted an image file", path.display())));
    }
    let mut bytes = Vec::with_capacity(limit.min(metadata.len() as usize));
    fs_err::File::open(path)?.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_image_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str| {
            let message = ImageSource::File(folder.path().join(name)).read().unwrap_err().to_string();
            message.replace(&folder.path().display().to_string(), "DIR")
        };
        fs_err::write(folder.path().join("empty.jpg"), b"").unwrap();
        assert_eq!(read(""), "DIR/ is a folder, wanted an image file");
        assert_eq!(read("none.jpg"), "DIR/none.jpg does not exist");
        let url = ImageSource::File("s3://bucket/a.png".into()).read().unwrap_err().to_string();
        assert!(url.starts_with("`s3://bucket/a.png` is a URL, wanted an image file"), "{url}");
        assert_eq!(read("empty.jpg"), "DIR/empty.jpg is empty (0 bytes), wanted an image");
    }
}
