//! A set of images to judge: what `diffusion generate` wrote, a manifest, or a folder with captions.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use super::{
    columns::constants,
    distinct::{DistinctImages, DistinctStrings},
    manifest::{Manifest, ManifestRow},
    source::ImageSource,
};
use crate::{Error, Result};

/// What counts as an image in a folder.
const EXTENSIONS: [&str; 9] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "jfif"];
/// What makes a folder a set.
const TABLES: [&str; 2] = ["images.parquet", "captions.csv"];
/// How many examples an error names.
const EXAMPLES: usize = 3;

/// Images with their prompts and seeds; no two rows have both in common.
#[derive(Debug, Clone)]
pub struct ImageSet {
    /// What it is called: the folder, or the manifest's name without its extension.
    pub name: String,
    /// Where it lies; relative paths start here.
    pub folder: PathBuf,
    /// The distinct prompts, in order of their first row.
    pub prompts: Vec<String>,
    /// The distinct images, by resolved path.
    pub images: Vec<ImageSource>,
    /// The rows, in the order of the file, of a folder by name.
    pub rows: Vec<SetRow>,
    /// What a parquet file says of all its images alike, such as the model: column and value.
    pub settings: BTreeMap<String, String>,
    /// What each row is in the column that was asked for; empty if none was.
    pub labels: Vec<String>,
}

/// One image of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetRow {
    /// Index into [`ImageSet::prompts`].
    pub prompt: u32,
    /// Index into [`ImageSet::images`].
    pub image: u32,
    /// The path as the set spells it.
    pub path: String,
    /// What it was made from; where nothing says, its place among the images of its prompt, from 0.
    pub seed: i64,
}

impl ImageSet {
    /// Reads `images.parquet` or another manifest, or a folder that holds `images.parquet`, `captions.csv` or a `NAME.txt`
    /// beside every image; `label` is a column of the table to group rows by.
    ///
    /// # Errors
    /// Nothing there, no image, an image that is missing or has no caption, two rows of the same prompt and seed (or image), and what
    /// [`Manifest::read_labelled`] refuses.
    pub fn read(path: &Path, label: Option<&str>) -> Result<Self> {
        let manifest = if !path.exists() {
            return Err(Error::data(format!("{} does not exist", path.display())));
        } else if !path.is_dir() {
            path.to_owned()
        } else if let Some(table) = table_in(path) {
            table
        } else if let Some(label) = label {
            return Err(Error::data(format!("{}: images with a .txt each have no column `{label}`", path.display()))
                .hint(format!("captions.csv with the columns prompt, path and {label}")));
        } else {
            return Self::numbered(path, captioned(path)?, BTreeMap::new());
        };
        let settings = match manifest.extension() {
            Some(extension) if extension == "parquet" => constants(&manifest)?,
            _ => BTreeMap::new(),
        };
        Self::numbered(&manifest, Manifest::read_labelled(&manifest, label)?, settings)
    }

    fn numbered(path: &Path, manifest: Manifest, settings: BTreeMap<String, String>) -> Result<Self> {
        let Manifest { prompts, images, rows, labels } = manifest;
        let mut counts = vec![0; prompts.len()];
        let rows: Vec<SetRow> = rows
            .into_iter()
            .map(|ManifestRow { prompt, image, path, seed }| {
                let place = counts[prompt as usize];
                counts[prompt as usize] += 1;
                SetRow { prompt, image, path, seed: seed.unwrap_or(place) }
            })
            .collect();
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
        let name = match path.file_name().and_then(|name| name.to_str()) {
            Some(name) if TABLES.contains(&name) => folder.file_name(),
            _ if path.is_dir() => path.file_name(),
            _ => path.file_stem(),
        };
        let name = name.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        let set = Self { name, folder: folder.to_owned(), prompts, images, rows, settings, labels };
        set.check_duplicates(path)?;
        set.check_files(path)?;
        Ok(set)
    }

    /// The prompt of a row.
    pub fn prompt(&self, row: &SetRow) -> &str {
        &self.prompts[row.prompt as usize]
    }

    /// No (prompt, seed) and no (prompt, image) may come twice.
    fn check_duplicates(&self, path: &Path) -> Result<()> {
        let (mut seeds, mut images) = (HashMap::new(), HashMap::new());
        let mut twice = Vec::new();
        for (index, row) in self.rows.iter().enumerate() {
            let prompt = self.prompt(row);
            if let Some(earlier) = images.insert((row.prompt, row.image), index) {
                twice.push(format!("rows {earlier} and {index} (\"{prompt}\", {})", row.path));
            } else if let Some(earlier) = seeds.insert((row.prompt, row.seed), index) {
                twice.push(format!("rows {earlier} and {index} (\"{prompt}\", seed {})", row.seed));
            }
        }
        if twice.is_empty() {
            return Ok(());
        }
        Err(Error::data(format!(
            "{}: {} duplicate row(s): {} (rows count from 0)",
            path.display(),
            twice.len(),
            examples(&twice)
        ))
        .hint("an image counts once; images of one prompt need seeds of their own"))
    }

    fn check_files(&self, path: &Path) -> Result<()> {
        let is_missing = |row: &SetRow| match &self.images[row.image as usize] {
            ImageSource::File(path) => !path.is_file(),
            ImageSource::Embedded(_) => false,
        };
        let missing = self.rows.iter().enumerate().filter(|(_, row)| is_missing(row));
        let missing: Vec<String> = missing.map(|(index, row)| format!("row {index} ({})", row.path)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let (count, named) = (missing.len(), examples(&missing));
        Err(Error::data(format!("{}: {count} image file(s) do not exist: {named} (rows count from 0)", path.display()))
            .hint(format!("relative paths start at {}", self.folder.display())))
    }

    /// The rows of this set and of `baseline` that have prompt and seed in common, in this set's order.
    ///
    /// # Errors
    /// There are none.
    pub fn pairs(&self, baseline: &Self) -> Result<Pairs> {
        let mut places: HashMap<(&str, i64), usize> =
            baseline.rows.iter().enumerate().map(|(place, row)| ((baseline.prompt(row), row.seed), place)).collect();
        let mut matched = Vec::new();
        let mut alone = Vec::new();
        for (place, row) in self.rows.iter().enumerate() {
            match places.remove(&(self.prompt(row), row.seed)) {
                Some(other) => matched.push((place, other)),
                None => alone.push(self.described(row)),
            }
        }
        let mut others: Vec<usize> = places.into_values().collect();
        others.sort_unstable();
        let alone_in_baseline: Vec<String> =
            others.iter().map(|place| baseline.described(&baseline.rows[*place])).collect();
        let mismatch = (!alone.is_empty() || !alone_in_baseline.is_empty()).then(|| {
            let side = |set: &Self, alone: &[String]| {
                let named = if alone.is_empty() { String::new() } else { format!(": {}", examples(alone)) };
                format!("{} of {} image(s) of {} have no partner{named}", alone.len(), set.rows.len(), set.name)
            };
            format!("{}; {}", side(self, &alone), side(baseline, &alone_in_baseline))
        });
        if matched.is_empty() {
            return Err(Error::data(format!("no image pairs: {}", mismatch.unwrap_or_default())).hint(
                "pairs have the same prompt and the same seed: make both sets from one list of prompts and --seed",
            ));
        }
        Ok(Pairs { matched, mismatch })
    }

    fn described(&self, row: &SetRow) -> String {
        format!("\"{}\" seed {}", self.prompt(row), row.seed)
    }
}

/// The table of the set that a folder is, if it is one that has a table.
pub(super) fn table_in(folder: &Path) -> Option<PathBuf> {
    TABLES.map(|name| folder.join(name)).into_iter().find(|table| table.is_file())
}

/// Rows that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairs {
    /// Row of the set, row of the baseline.
    pub matched: Vec<(usize, usize)>,
    /// What was left over, for people; nothing if all rows have a partner.
    pub mismatch: Option<String>,
}

fn examples(all: &[String]) -> String {
    let more = if all.len() > EXAMPLES { ", …" } else { "" };
    format!("{}{more}", all[..all.len().min(EXAMPLES)].join(", "))
}

/// The images of a folder by name, each with the text beside it.
fn captioned(folder: &Path) -> Result<Manifest> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        if extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str())) {
            names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort_unstable();
    if names.is_empty() {
        return Err(Error::data(format!("{}: no images in this folder", folder.display())).hint(
            "a set is an images.parquet, a CSV or JSONL manifest, or a folder of images with captions.csv or a .txt each",
        ));
    }
    let (mut prompts, mut images, mut rows) = (DistinctStrings::default(), DistinctImages::default(), Vec::new());
    for path in names {
        let caption = folder.join(&path).with_extension("txt");
        if !caption.is_file() {
            return Err(Error::data(format!("{}: no {} beside it", folder.join(&path).display(), caption.display()))
                .hint(
                    "every image needs its prompt: NAME.txt beside it, or captions.csv with columns prompt and path",
                ));
        }
        let text = fs_err::read_to_string(&caption)?;
        rows.push(ManifestRow {
            prompt: prompts.index(text.trim()),
            image: images.file(folder, &path),
            path,
            seed: None,
        });
    }
    Ok(Manifest { prompts: prompts.into_names(), images: images.sources, rows, labels: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(csv: &str) -> Result<ImageSet> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.csv");
        fs_err::write(&path, csv).unwrap();
        for name in ["1.png", "2.png", "3.png", "x.png", "y.png", "z.png"] {
            fs_err::write(folder.path().join(name), name).unwrap();
        }
        ImageSet::read(&path, None)
    }

    #[test]
    fn images_pair_by_prompt_and_seed_in_any_order() {
        let tuned = set("prompt,path,seed\na,1.png,5\na,2.png,6\nb,3.png,5\n").unwrap();
        let base = set("seed,path,prompt\n5,x.png,b\n6,y.png,a\n7,z.png,a\n").unwrap();
        let Pairs { matched, mismatch } = tuned.pairs(&base).unwrap();
        assert_eq!(matched, [(1, 1), (2, 0)]);
        let wanted = "1 of 3 image(s) of set have no partner: \"a\" seed 5; \
                      1 of 3 image(s) of set have no partner: \"a\" seed 7";
        assert_eq!(mismatch.unwrap(), wanted);
        assert_eq!(tuned.pairs(&tuned).unwrap().mismatch, None);
        let other = set("prompt,path\nc,x.png\n").unwrap();
        let error = tuned.pairs(&other).unwrap_err().to_string();
        assert!(error.starts_with("no image pairs: 3 of 3 image(s) of set have no partner: \"a\" seed 5,"), "{error}");
    }

    #[test]
    fn without_seeds_the_place_counts() {
        let seeds = |set: ImageSet| set.rows.iter().map(|row| row.seed).collect::<Vec<_>>();
        assert_eq!(seeds(set("prompt,path\na,1.png\nb,2.png\na,3.png\n").unwrap()), [0, 0, 1]);
    }

    #[test]
    fn duplicates_are_named() {
        let refused = |csv| set(csv).unwrap_err().to_string();
        let seeds = refused("prompt,path,seed\na,1.png,5\nb,1.png,5\na,2.png,5\n");
        assert!(seeds.ends_with("1 duplicate row(s): rows 0 and 2 (\"a\", seed 5) (rows count from 0)"), "{seeds}");
        let images = refused("prompt,path\na,1.png\na,./1.png\n");
        assert!(images.ends_with("1 duplicate row(s): rows 0 and 1 (\"a\", ./1.png) (rows count from 0)"), "{images}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = set("prompt,path\na,1.png\na,none.png\n").unwrap_err();
        assert!(
            error.to_string().ends_with("1 image file(s) do not exist: row 1 (none.png) (rows count from 0)"),
            "{error}"
        );
        assert!(error.hint_text().unwrap().starts_with("relative paths start at "));
        let error = ImageSet::read(Path::new("/none"), None).unwrap_err();
        assert_eq!(error.to_string(), "/none does not exist");
    }

    #[test]
    fn a_folder_has_captions_beside_or_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let refused = || ImageSet::read(folder.path(), None).unwrap_err().to_string();
        assert!(refused().ends_with("no images in this folder"));
        for (name, content) in [("b.png", ""), ("a.JPG", ""), ("a.txt", "a fox\n"), ("notes.md", "")] {
            fs_err::write(place(name), content).unwrap();
        }
        assert!(refused().contains("b.txt beside it"));
        fs_err::write(place("b.txt"), "an owl").unwrap();
        let set = ImageSet::read(folder.path(), None).unwrap();
        assert_eq!(set.prompts, ["a fox", "an owl"]);
        assert_eq!(set.name, folder.path().file_name().unwrap().to_str().unwrap());
        fs_err::write(place("captions.csv"), "prompt,path\nan owl,b.png\n").unwrap();
        let set = ImageSet::read(folder.path(), None).unwrap();
        assert_eq!(
            (set.prompts, set.images[0].label()),
            (vec!["an owl".to_owned()], place("b.png").display().to_string())
        );
    }
}
