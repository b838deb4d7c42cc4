//! A folder of images with a text beside each, as people and their programs leave them; what is not read is said.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use super::{
    distinct::{DistinctImages, DistinctStrings},
    manifest::{Manifest, ManifestRow},
    named::examples,
    parts::not_utf8,
    source::ImageSource,
};
use crate::{Error, Result, text};

/// What counts as an image in a folder.
const IMAGES: [&str; 9] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "jfif"];
/// Images that are not read.
const OTHER_IMAGES: [&str; 10] = ["avif", "heic", "heif", "jxl", "jp2", "svg", "psd", "tga", "exr", "ico"];
/// What a caption's name ends in, the first that is there.
const CAPTIONS: [&str; 2] = ["txt", "caption"];
/// What makes a folder a set, the first that is there: our own table, a table of captions, Hugging Face's imagefolder.
const TABLES: [&str; 9] = [
    "images.parquet",
    "captions.csv",
    "captions.tsv",
    "captions.json",
    "captions.jsonl",
    "captions.parquet",
    "metadata.csv",
    "metadata.jsonl",
    "metadata.parquet",
];

/// The table of the set that a folder is, if it is one that has a table.
pub(super) fn table_in(folder: &Path) -> Option<PathBuf> {
    let table = tables_of(folder).next()?;
    // Other programs write a `metadata.csv` beside captions too.
    let has_captions = || {
        let entries = fs_err::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).any(|path| is_caption(&path))
    };
    Some(table).filter(|table| !is_metadata(table) || !has_captions())
}

/// What [`table_in`] passes over.
pub(super) fn other_tables_in(folder: &Path) -> Vec<PathBuf> {
    tables_of(folder).skip(1).collect()
}

fn tables_of(folder: &Path) -> impl Iterator<Item = PathBuf> {
    TABLES.into_iter().map(|name| folder.join(name)).filter(|table| table.is_file())
}

/// Whether a table has the name that Hugging Face's imagefolder gives to it.
pub(super) fn is_metadata(table: &Path) -> bool {
    table.file_stem().is_some_and(|stem| stem == "metadata")
}

/// Whether a table stands for its folder.
pub(super) fn is_table_of_folder(table: &Path) -> bool {
    table.file_name().and_then(|name| name.to_str()).is_some_and(|name| TABLES.contains(&name))
}

/// Whether a file's name is that of a caption.
pub(super) fn is_caption(path: &Path) -> bool {
    CAPTIONS.contains(&ending(path).as_str())
}

/// The ending of a file's name in lower case; empty if it has none.
fn ending(path: &Path) -> String {
    path.extension().map_or(String::new(), |extension| extension.to_string_lossy().to_ascii_lowercase())
}

/// The names in a folder, by what they are. Names that begin with a dot (macOS's `._` files, `.ipynb_checkpoints`) are hidden,
/// and not images to anyone.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Images that can be read, by name.
    pub(super) images: Vec<String>,
    /// Captions by the stem of their name and their ending in lower case.
    captions: BTreeMap<(String, String), String>,
    /// Images in formats that are not read.
    unread: Vec<String>,
    /// Folders with images in them, or with an image's name.
    folders: Vec<String>,
}

impl Listing {
    /// Looks at the names in `folder`, and at those in the folders there.
    ///
    /// # Errors
    /// It cannot be read, or an image or a caption has a name that is not UTF-8.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let mut listing = Self::default();
        for entry in fs_err::read_dir(folder)? {
            let path = entry?.path();
            let (ending, raw) = (ending(&path), path.file_name().unwrap_or_default());
            let (is_image, is_other) = (IMAGES.contains(&ending.as_str()), OTHER_IMAGES.contains(&ending.as_str()));
            if raw.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if path.is_dir() {
                if is_image || is_other || holds_images(&path) {
                    listing.folders.push(raw.to_string_lossy().into_owned());
                }
                continue;
            }
            if !is_image && !is_other && !is_caption(&path) {
                continue;
            }
            let name = raw.to_str().ok_or_else(|| not_utf8(&path))?.to_owned();
            if is_image {
                listing.images.push(name);
            } else if is_other {
                listing.unread.push(name);
            } else {
                listing.captions.insert((stem(&name).to_owned(), ending), name);
            }
        }
        for names in [&mut listing.images, &mut listing.unread, &mut listing.folders] {
            names.sort_unstable();
        }
        Ok(listing)
    }

    /// A note of the images that a table of captions in `folder` leaves out, if there are any.
    pub(super) fn left_out(&self, folder: &Path, table: &Path, images: &[ImageSource]) -> Option<String> {
        // Beside a table of ours lie contact sheets and plots.
        if table.file_name().is_some_and(|name| name == TABLES[0]) {
            return None;
        }
        let named: HashSet<&Path> = images.iter().filter_map(ImageSource::path).collect();
        let left: Vec<String> =
            self.images.iter().filter(|image| !named.contains(folder.join(image).as_path())).cloned().collect();
        let (count, table) = (left.len(), table.display());
        (count > 0).then(|| format!("{table}: {count} image(s) in its folder are not in it: {}", examples(&left)))
    }

    fn caption(&self, image: &str) -> Option<&str> {
        let of = |ending: &str| self.captions.get(&(stem(image).to_owned(), ending.to_owned()));
        CAPTIONS.into_iter().find_map(of).map(String::as_str)
    }

    /// What is not read, or read twice.
    fn notes(&self, folder: &Path) -> Vec<String> {
        let mut images: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for image in &self.images {
            images.entry(stem(image)).or_default().push(image);
        }
        let shared = images.values().filter(|images| images.len() > 1).map(|images| images.join(" and "));
        let alone = self.captions.iter().filter(|((stem, _), _)| {
            !images.contains_key(stem.as_str()) && !self.unread.iter().any(|image| self::stem(image) == stem.as_str())
        });
        let lines = [
            ("image(s) of formats that are not read, convert them to PNG", self.unread.clone()),
            ("folder(s) are not read, name them as sets of their own", self.folders.clone()),
            ("caption(s) are those of several images", shared.collect()),
            ("caption(s) have no image", alone.map(|(_, name)| name.clone()).collect()),
        ];
        let lines = lines.into_iter().filter(|(_, names)| !names.is_empty());
        lines
            .map(|(what, names)| format!("{}: {} {what}: {}", folder.display(), names.len(), examples(&names)))
            .collect()
    }
}

fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

fn holds_images(folder: &Path) -> bool {
    let entries = fs_err::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| IMAGES.contains(&ending(&path).as_str()) && path.is_file())
}

/// The images of a folder by name, each with the text beside it, and what is not read.
///
/// # Errors
/// No image, one without a caption, or a caption that is empty or not UTF-8.
pub(super) fn captioned(folder: &Path, listing: &Listing) -> Result<(Manifest, Vec<String>)> {
    if listing.images.is_empty() {
        let error = Error::data(format!("{}: no images in this folder", folder.display()));
        let others: Vec<&String> = listing.folders.iter().chain(&listing.unread).collect();
        return Err(error.hint(match others[..] {
            [] => "a set is an images.parquet, a CSV, TSV, JSON or JSONL manifest, or a folder of images with captions.csv or a .txt each"
                .to_owned(),
            [first, ..] if listing.folders.is_empty() => format!("{first} is not read: convert it to PNG"),
            [first, ..] => format!("{} holds some: name it in place of this", folder.join(first).display()),
        }));
    }
    let (mut prompts, mut images, mut rows) = (DistinctStrings::default(), DistinctImages::default(), Vec::new());
    for image in &listing.images {
        let path = folder.join(image);
        let Some(caption) = listing.caption(image) else {
            let wanted = path.with_extension(CAPTIONS[0]);
            let error = Error::data(format!("{}: no {} beside it", path.display(), wanted.display()));
            return Err(error.hint(match listing.captions.get(&("captions".to_owned(), CAPTIONS[0].to_owned())) {
                Some(list) => {
                    format!("{list} is not read: a captions.csv or captions.tsv with columns prompt and path is")
                }
                None => "every image needs its prompt: NAME.txt beside it, or captions.csv (.tsv, .json, .jsonl) with \
                         columns prompt and path"
                    .to_owned(),
            }));
        };
        let caption = folder.join(caption);
        let text = text::read(&caption, "a caption")?;
        if text.trim().is_empty() {
            return Err(Error::data(format!("{} is empty, wanted the prompt of {image}", caption.display()))
                .hint("write it there; where no prompt is meant, a captions.csv may have an empty one"));
        }
        let (prompt, image_index) = (prompts.index(text.trim()), images.file(folder, image));
        rows.push(ManifestRow { prompt, image: image_index, path: image.clone(), seed: None });
    }
    let manifest = Manifest { prompts: prompts.into_names(), images: images.sources, rows, labels: Vec::new() };
    Ok((manifest, listing.notes(folder)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of `a.png` and `b.png` with their captions and these files; a name that ends in `/` is a folder.
    fn folder(more: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let plain: [(&str, &[u8]); 4] = [("a.png", b"x"), ("a.txt", b"a fox\n"), ("b.png", b"y"), ("b.txt", b"an owl")];
        for (name, content) in plain.iter().chain(more) {
            let path = folder.path().join(name);
            if name.ends_with('/') {
                fs_err::create_dir_all(path).unwrap();
                continue;
            }
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, content).unwrap();
        }
        folder
    }

    fn read(folder: &tempfile::TempDir) -> Result<(Vec<String>, Vec<String>), String> {
        let place = format!("{}", folder.path().display());
        let bare = |text: String| text.replace(&format!("{place}/"), "").replace(&place, "DIR");
        let listing = Listing::of(folder.path()).map_err(|error| bare(error.to_string()))?;
        let (manifest, notes) = captioned(folder.path(), &listing).map_err(|error| bare(error.to_string()))?;
        let rows = manifest.rows.iter().map(|row| format!("{}={}", row.path, manifest.prompts[row.prompt as usize]));
        Ok((rows.collect(), notes.into_iter().map(bare).collect()))
    }

    #[test]
    fn what_is_not_an_image_is_passed_over_and_what_is_not_read_is_said() {
        let plain = ["a.png=a fox", "b.png=an owl"];
        let hidden: [(&str, &[u8]); 3] =
            [("._a.png", b"\0\x05"), ("._a.txt", b"\0\x05"), (".ipynb_checkpoints/a.png", b"x")];
        assert_eq!(read(&folder(&hidden)).unwrap(), (plain.map(str::to_owned).to_vec(), Vec::new()));
        for (name, wanted) in [
            ("c.avif", "DIR: 1 image(s) of formats that are not read, convert them to PNG: c.avif"),
            ("sub/c.png", "DIR: 1 folder(s) are not read, name them as sets of their own: sub"),
            ("d.png/", "DIR: 1 folder(s) are not read, name them as sets of their own: d.png"),
            ("z.txt", "DIR: 1 caption(s) have no image: z.txt"),
        ] {
            let (rows, notes) = read(&folder(&[(name, b"x")])).unwrap();
            assert_eq!((&rows[..], &notes[..]), (&plain.map(str::to_owned)[..], &[wanted.to_owned()][..]));
        }
        let (rows, notes) = read(&folder(&[("a.jpg", b"z")])).unwrap();
        assert_eq!(rows, ["a.jpg=a fox", "a.png=a fox", "b.png=an owl"]);
        assert_eq!(notes, ["DIR: 1 caption(s) are those of several images: a.jpg and a.png"]);
    }

    #[test]
    fn captions_are_read_however_they_are_saved() {
        let place =
            folder(&[("c.JPG", b"z"), ("c.TXT", b"\xef\xbb\xbfa bear\r\n"), ("d.webp", b"w"), ("d.caption", b"a cat")]);
        assert_eq!(read(&place).unwrap().0[2..], ["c.JPG=a bear", "d.webp=a cat"]);
        for (content, wanted) in [
            (&b""[..], "b.txt is empty, wanted the prompt of b.png"),
            (b"\xef\xbb\xbf \n", "b.txt is empty, wanted the prompt of b.png"),
            (b"F\xfcchse", "b.txt line 1: not UTF-8 text, wanted a caption"),
            (b"\xff\xfea\0", "b.txt is UTF-16 text, wanted a caption"),
            (b"a\0", "b.txt line 1: a NUL byte, so this is no text, wanted a caption"),
        ] {
            assert_eq!(read(&folder(&[("b.txt", content)])).unwrap_err(), wanted);
        }
    }

    #[cfg(unix)]
    #[test]
    fn an_image_with_a_name_in_latin_1_is_named() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
        let place = folder(&[]);
        fs_err::write(place.path().join(OsStr::from_bytes(b"F\xfcchse.png")), "x").unwrap();
        assert!(read(&place).unwrap_err().contains("F\\xfcchse.png`: this name is not UTF-8"));
    }
}
