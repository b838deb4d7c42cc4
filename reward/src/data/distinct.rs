//! Distinct prompts and images of a table, numbered in order of appearance.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::source::{Embedded, ImageSource};
use crate::{Error, Result, foreign};

/// Distinct strings, numbered in order of appearance.
#[derive(Default)]
pub(crate) struct DistinctStrings(HashMap<String, u32>);

impl DistinctStrings {
    pub(crate) fn index(&mut self, name: &str) -> u32 {
        if let Some(&index) = self.0.get(name) {
            return index;
        }
        let index = self.0.len() as u32;
        self.0.insert(name.to_owned(), index);
        index
    }

    pub(crate) fn into_names(self) -> Vec<String> {
        let mut names = vec![String::new(); self.0.len()];
        for (name, index) in self.0 {
            names[index as usize] = name;
        }
        names
    }
}

/// Collects the distinct images of a table.
#[derive(Debug, Default)]
pub(crate) struct DistinctImages {
    pub(crate) sources: Vec<ImageSource>,
    index: HashMap<blake3::Hash, u32>,
    spill: Option<Arc<File>>,
    spilled: u64,
}

/// The cell of a table that an image was embedded in.
pub(crate) struct Cell<'a> {
    pub(crate) table: &'a Arc<Path>,
    pub(crate) row: usize,
    pub(crate) column: &'static str,
}

impl DistinctImages {
    /// The index of the image at `path`, relative to `root` unless absolute.
    pub(crate) fn file(&mut self, root: &Path, path: &str) -> u32 {
        let source = ImageSource::File(match foreign::url(path, "an image file") {
            // Kept as it is written, for whoever reads it to refuse in these words.
            Some(_) => path.into(),
            // `components` drops `./` and doubled slashes, so that two spellings are one image.
            None => root.join(path).components().collect(),
        });
        *self.index.entry(source.identity()).or_insert_with(|| {
            self.sources.push(source);
            self.sources.len() as u32 - 1
        })
    }

    /// The index of an image that is known from elsewhere.
    pub(crate) fn other(&mut self, image: &ImageSource) -> u32 {
        *self.index.entry(image.identity()).or_insert_with(|| {
            self.sources.push(image.clone());
            self.sources.len() as u32 - 1
        })
    }

    /// The index of an embedded image; new content is written to the temporary file.
    pub(crate) fn embedded(&mut self, bytes: &[u8], cell: &Cell) -> Result<u32> {
        let content = blake3::hash(bytes);
        if let Some(&index) = self.index.get(&content) {
            return Ok(index);
        }
        let index = self.sources.len() as u32;
        let spill = self.spill(bytes).map_err(|error| {
            let folder = std::env::temp_dir();
            Error::data(format!("cannot keep the images of {} in {}: {error}", cell.table.display(), folder.display()))
                .hint("embedded images need a temporary file; TMPDIR names a folder with room for them")
        })?;
        let Cell { table, row, column } = *cell;
        let (offset, table) = (self.spilled, table.clone());
        self.sources.push(ImageSource::Embedded(Embedded {
            spill,
            offset,
            length: bytes.len(),
            content,
            table,
            row,
            column,
        }));
        self.spilled += bytes.len() as u64;
        self.index.insert(content, index);
        Ok(index)
    }

    fn spill(&mut self, bytes: &[u8]) -> std::io::Result<Arc<File>> {
        let spill = match &self.spill {
            Some(spill) => spill.clone(),
            None => self.spill.insert(Arc::new(tempfile::tempfile()?)).clone(),
        };
        spill.write_all_at(bytes, self.spilled)?;
        Ok(spill)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_a_path_are_one_image() {
        let mut images = DistinctImages::default();
        let root = Path::new("/data");
        let indexes = ["a.png", "./a.png", "sub//a.png", "/data/a.png", "sub/a.png", "/other/a.png"];
        assert_eq!(indexes.map(|path| images.file(root, path)), [0, 0, 1, 0, 1, 2]);
        assert_eq!(images.sources[1].label(), "/data/sub/a.png");
        let url = images.file(root, "https://example.org//a.png?w=512");
        assert_eq!(images.sources[url as usize].label(), "https://example.org//a.png?w=512");
    }

    #[test]
    fn embedded_images_are_kept_once_and_read_back() {
        let mut images = DistinctImages::default();
        let table: Arc<Path> = Arc::from(Path::new("T.parquet"));
        let mut index =
            |bytes: &[u8], row| images.embedded(bytes, &Cell { table: &table, row, column: "pos_image" }).unwrap();
        assert_eq!([index(b"first", 0), index(b"second", 1), index(b"first", 2), index(b"", 3)], [0, 1, 0, 2]);
        let [first, second, empty] = &images.sources[..] else { panic!("{:?}", images.sources) };
        assert_eq!(second.read().unwrap(), b"second");
        assert_eq!(second.read_head(3).unwrap(), b"sec");
        assert_eq!(first.read().unwrap(), b"first");
        assert_eq!(
            empty.read().unwrap_err().to_string(),
            "T.parquet row 3 column pos_image is empty (0 bytes), wanted an image"
        );
        assert_ne!(first.identity(), second.identity());
    }
}
