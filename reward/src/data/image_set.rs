//! A set of images to judge: what `diffusion generate` wrote, a manifest, or a folder with captions.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    columns::constants,
    folder::{Listing, captioned, is_metadata, is_table_of_folder, other_tables_in, table_in},
    format::Format,
    manifest::{Manifest, ManifestRow, Reading},
    named::examples,
    parts::{parts, tables_in},
    source::ImageSource,
};
use crate::{Error, Result, foreign};

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
    /// What lies beside the images of a folder and is not read, a line each.
    pub notes: Vec<String>,
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
    pub seed: u64,
}

impl ImageSet {
    /// Reads `images.parquet` or another manifest (also a glob or a folder of tables, as Spark writes), or a folder. A folder holds `images.parquet`, `captions.csv`, a Hugging Face imagefolder's `metadata.csv`, or a `NAME.txt` beside every image; `label`
    /// is a column of the table to group rows by.
    ///
    /// # Errors
    /// Nothing there, no image, an image that is missing or has no caption, two rows of the same prompt and seed (or image), and what
    /// [`Manifest::read_labelled`] refuses.
    pub fn read(path: &Path, label: Option<&str>) -> Result<Self> {
        let reading = Reading::labelled(label);
        let folder = path.parent().unwrap_or(Path::new(""));
        if !path.is_dir() {
            return Self::of_table(path, folder, reading);
        }
        if let Some(table) = table_in(path) {
            let reading = if is_metadata(&table) { reading.of_image_folder() } else { reading };
            let note = |other: &PathBuf| format!("{} is not read: {} is", other.display(), table.display());
            let others = other_tables_in(path);
            let set = Self::of_table(&table, path, reading)?;
            let left_out = Listing::of(path).ok().and_then(|listing| listing.left_out(path, &table, &set.images));
            let notes = others.iter().map(note).chain(left_out).chain(set.notes).collect();
            return Ok(Self { notes, ..set });
        }
        let listing = Listing::of(path)?;
        let is_table = || {
            let tables = tables_in(path).unwrap_or_default();
            let is_ours = |table: &PathBuf| table.file_name().is_some_and(|name| name == "scores.parquet");
            listing.images.is_empty() && !tables.is_empty() && !tables.iter().any(is_ours)
        };
        if Format::of(path).is_some() || is_table() {
            // What is found out about it is written beside it, not among its parts.
            return Self::of_table(path, folder, reading);
        }
        if let Some(label) = label {
            return Err(Error::data(format!("{}: images with a .txt each have no column `{label}`", path.display()))
                .hint(format!("captions.csv with the columns prompt, path and {label}")));
        }
        let (manifest, notes) = captioned(path, &listing)?;
        Ok(Self { notes, ..Self::numbered(path, path, manifest, BTreeMap::new())? })
    }

    /// The set of these rows and their images only.
    #[must_use]
    pub fn of_rows(&self, rows: Range<usize>) -> Self {
        let mut places = HashMap::new();
        let mut images = Vec::new();
        let row = |row: &SetRow| {
            let image = *places.entry(row.image).or_insert_with(|| {
                images.push(self.images[row.image as usize].clone());
                images.len() as u32 - 1
            });
            SetRow { image, ..row.clone() }
        };
        let labels = self.labels.get(rows.clone()).map_or(Vec::new(), <[String]>::to_vec);
        let rows = self.rows[rows].iter().map(row).collect();
        Self { rows, images, labels, ..self.clone() }
    }

    fn of_table(path: &Path, folder: &Path, reading: Reading) -> Result<Self> {
        let mut settings: Option<BTreeMap<String, String>> = None;
        for part in parts(&[path])?.iter().filter(|part| Format::of(&part.path) == Some(Format::Parquet)) {
            let found = constants(&part.path)?;
            settings = Some(match settings {
                None => found,
                Some(known) => known.into_iter().filter(|(name, value)| found.get(name) == Some(value)).collect(),
            });
        }
        let set = Self::numbered(path, folder, Manifest::read_as(path, reading)?, settings.unwrap_or_default())?;
        let is_empty = |(_, row): &(usize, &SetRow)| set.prompt(row).trim().is_empty();
        let empty = set.rows.iter().enumerate().filter(is_empty);
        let empty: Vec<String> = empty.map(|(index, row)| format!("row {index} ({})", row.path)).collect();
        let note = format!("{}: the prompt is empty in {} row(s): {}", path.display(), empty.len(), examples(&empty));
        Ok(Self { notes: Vec::from_iter((!empty.is_empty()).then_some(note)), ..set })
    }

    fn numbered(path: &Path, folder: &Path, manifest: Manifest, settings: BTreeMap<String, String>) -> Result<Self> {
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
        let name = match path.file_name() {
            Some(_) if is_table_of_folder(path) => folder.file_name(),
            _ if path.is_dir() => path.file_name(),
            _ => path.file_stem(),
        };
        let name = name.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        let set = Self { name, folder: folder.to_owned(), prompts, images, rows, settings, labels, notes: Vec::new() };
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
        let missing: Vec<(usize, &SetRow)> = self.rows.iter().enumerate().filter(|(_, row)| is_missing(row)).collect();
        let named = |rows: &[(usize, &SetRow)]| {
            examples(&rows.iter().map(|(index, row)| format!("row {index} ({})", row.path)).collect::<Vec<_>>())
        };
        let link = |(_, row): &&(usize, &SetRow)| foreign::url(&row.path, "an image file");
        let links: Vec<(usize, &SetRow)> = missing.iter().filter(|row| link(row).is_some()).copied().collect();
        if let Some(error) = links.first().as_ref().and_then(link) {
            let (count, named) = (links.len(), named(&links));
            let what = format!("{}: {count} image(s) are URLs: {named} (rows count from 0)", path.display());
            return Err(Error::data(format!("{what}, wanted image files: only local files are read"))
                .hint(error.hint_text().unwrap_or_default()));
        }
        if missing.is_empty() {
            return Ok(());
        }
        let (count, named) = (missing.len(), named(&missing));
        Err(Error::data(format!("{}: {count} image file(s) do not exist: {named} (rows count from 0)", path.display()))
            .hint(format!("relative paths start at {}", if path.is_dir() { path } else { &self.folder }.display())))
    }

    /// The rows of this set and of `baseline` that have prompt and seed in common, in this set's order.
    ///
    /// # Errors
    /// There are none.
    pub fn pairs(&self, baseline: &Self) -> Result<Pairs> {
        let mut places: HashMap<(&str, u64), usize> =
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

/// Rows that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairs {
    /// Row of the set, row of the baseline.
    pub matched: Vec<(usize, usize)>,
    /// What was left over, for people; nothing if all rows have a partner.
    pub mismatch: Option<String>,
}

#[cfg(test)]
mod tests;
