//! Triplets (prompt, remixed image, image nobody remixed) from parquet files; equal prompts and images are held once.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;

use super::columns::{ImageCell, ImageColumn, NullRows, Table, labels, strings};
use super::content::Cells;
use super::distinct::{Cell, DistinctImages, DistinctStrings};
use super::parts::{Part, parts};
use super::source::ImageSource;
use crate::{Error, Result, foreign};

/// Rows held at a time; few where images are embedded, as a row may hold megabytes.
const BATCH_ROWS: usize = 4096;
const BATCH_ROWS_EMBEDDED: usize = 8;

/// One row: indexes into [`Triplets::prompts`] and [`Triplets::images`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Triplet {
    /// The prompt both images were made from.
    pub prompt: u32,
    /// The image that was remixed.
    pub positive: u32,
    /// The image that nobody remixed.
    pub negative: u32,
}

/// The rows of one or several parquet files.
#[derive(Debug, Clone)]
pub struct Triplets {
    /// The distinct prompts, in order of their first row.
    pub prompts: Vec<String>,
    /// The distinct images, by resolved path or, where embedded, by content; in order of their first row.
    pub images: Vec<ImageSource>,
    /// The rows, in the order of the files.
    pub rows: Vec<Triplet>,
    /// The column named by [`ReadOptions::slice_by`].
    pub slices: Option<Slices>,
    /// The place of each row among all that were read, and the files with the place of their first row.
    places: Vec<u32>,
    files: Vec<(PathBuf, u32)>,
    /// The hash of all cells that were read.
    cells: blake3::Hash,
}

/// A column by whose values accuracy is broken down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slices {
    /// The column's name.
    pub column: String,
    /// The value in each row, `null` for null.
    pub values: Vec<String>,
}

/// How to read triplets.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// Where relative image paths start; the folder of each parquet file by default.
    pub image_root: Option<PathBuf>,
    /// A column to keep, of any type.
    pub slice_by: Option<String>,
}

impl Triplets {
    /// Reads parquet files, given as paths, globs and folders.
    ///
    /// Columns: `prompt` (strings), and for each of `pos` and `neg` either `pos_image` (bytes, or Hugging Face's
    /// `{bytes, path}`, where bytes win) or `pos_path` (strings). Other columns are not read.
    ///
    /// # Errors
    ///
    /// No file matches, a file is unreadable, a column is missing or has another type, a cell is null, or there is no
    /// row. Rows count from 0 within their file, as in pandas.
    pub fn read(files: &[String], options: &ReadOptions) -> Result<Self> {
        let root = options.image_root.as_deref().and_then(Path::to_str);
        if let Some(error) = root.and_then(|root| foreign::url(root, "a folder of images")) {
            return Err(error);
        }
        let mut reader = Reader::default();
        for part in &parts(files)? {
            reader.add(part, options)?;
        }
        if reader.rows.is_empty() {
            return Err(Error::data(format!("no rows in {}", files.join(", "))));
        }
        let Reader { prompts, images, rows, slices, files, cells } = reader;
        Ok(Self {
            prompts: prompts.into_names(),
            images: images.sources,
            places: (0..rows.len() as u32).collect(),
            rows,
            slices: options.slice_by.clone().map(|column| Slices { column, values: slices }),
            files,
            cells: cells.hash(),
        })
    }

    /// The file of a row, and its number there, counted from 0.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub fn origin(&self, row: usize) -> (&Path, usize) {
        let place = self.places[row];
        let file = self.files.partition_point(|(_, first)| *first <= place) - 1;
        let (path, first) = &self.files[file];
        (path, (place - first) as usize)
    }

    /// The hash of the rows: prompts, paths as the table spells them, embedded images by content, and which of all rows are
    /// kept. Where the table lies and how it is split into files does not count.
    pub fn content_hash(&self) -> String {
        let kept = self.places.iter().map(|place| place.to_le_bytes());
        let mut rows = Cells::default();
        rows.add(self.cells.as_bytes());
        kept.for_each(|place| rows.add(&place));
        rows.hash().to_hex().to_string()
    }

    /// The same rows less those that use one of these images; prompts and images that no row uses any more go too, so
    /// indexes change.
    #[must_use]
    pub fn without(self, bad_images: &HashSet<u32>) -> Self {
        let keep: Vec<bool> = self
            .rows
            .iter()
            .map(|row| !bad_images.contains(&row.positive) && !bad_images.contains(&row.negative))
            .collect();
        let mut rows = kept(self.rows, &keep);
        let mut prompts = Compacted::new(self.prompts.len());
        let mut images = Compacted::new(self.images.len());
        for row in &mut rows {
            row.prompt = prompts.index(row.prompt);
            row.positive = images.index(row.positive);
            row.negative = images.index(row.negative);
        }
        Self {
            prompts: prompts.take(self.prompts),
            images: images.take(self.images),
            rows,
            slices: self.slices.map(|Slices { column, values }| Slices { column, values: kept(values, &keep) }),
            places: kept(self.places, &keep),
            files: self.files,
            cells: self.cells,
        }
    }
}

fn kept<T>(items: Vec<T>, keep: &[bool]) -> Vec<T> {
    items.into_iter().zip(keep).filter_map(|(item, keep)| keep.then_some(item)).collect()
}

/// New indexes for those items that are still used, in order of use.
struct Compacted {
    new_index: Vec<Option<u32>>,
    used: u32,
}

impl Compacted {
    fn new(items: usize) -> Self {
        Self { new_index: vec![None; items], used: 0 }
    }

    fn index(&mut self, old: u32) -> u32 {
        *self.new_index[old as usize].get_or_insert_with(|| {
            self.used += 1;
            self.used - 1
        })
    }

    fn take<T>(self, items: Vec<T>) -> Vec<T> {
        let mut used: Vec<(u32, T)> =
            self.new_index.into_iter().zip(items).filter_map(|(index, item)| Some((index?, item))).collect();
        used.sort_unstable_by_key(|(index, _)| *index);
        used.into_iter().map(|(_, item)| item).collect()
    }
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    prompts: DistinctStrings,
    images: DistinctImages,
    rows: Vec<Triplet>,
    slices: Vec<String>,
    files: Vec<(PathBuf, u32)>,
    cells: Cells,
}

impl Reader {
    fn add(&mut self, part: &Part, options: &ReadOptions) -> Result<()> {
        let (table, path) = (Table::open_part(part)?, &part.path);
        table.require(&["prompt"])?;
        let positive = table.require(&["pos_image", "pos_path"])?;
        let negative = table.require(&["neg_image", "neg_path"])?;
        let mut columns = vec!["prompt", positive, negative];
        if let Some(slice_by) = options.slice_by.as_deref() {
            columns.push(table.require(&[slice_by])?);
        }
        let embedded = positive == "pos_image" || negative == "neg_image";
        let batches = table.batches(&columns, if embedded { BATCH_ROWS_EMBEDDED } else { BATCH_ROWS })?;

        let mut nulls = [NullRows::default(), NullRows::default(), NullRows::default()];
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut reading = Reading {
            path: Arc::from(path.as_path()),
            root: options.image_root.as_deref().unwrap_or(folder),
            positive,
            negative,
            rows: 0,
        };
        self.files.push((path.to_owned(), self.rows.len() as u32));
        for batch in batches {
            let batch = batch?;
            reading.read(&batch, self, &mut nulls)?;
            if let Some(slice_by) = options.slice_by.as_deref() {
                self.slices.extend(labels(path, &batch, slice_by)?);
            }
        }
        nulls[0].check(path, "prompt", "null")?;
        nulls[1].check(path, positive, "null or empty")?;
        nulls[2].check(path, negative, "null or empty")
    }
}

/// The file being read.
struct Reading<'a> {
    path: Arc<Path>,
    root: &'a Path,
    positive: &'static str,
    negative: &'static str,
    rows: usize,
}

impl Reading<'_> {
    fn read(&mut self, batch: &RecordBatch, into: &mut Reader, nulls: &mut [NullRows; 3]) -> Result<()> {
        let prompts = strings(&self.path, batch, "prompt")?;
        let positives = ImageColumn::new(&self.path, batch, self.positive, self.positive == "pos_image")?;
        let negatives = ImageColumn::new(&self.path, batch, self.negative, self.negative == "neg_image")?;
        for (index, prompt) in prompts.iter().enumerate() {
            let row = self.rows + index;
            into.cells.add(prompt.unwrap_or_default().as_bytes());
            let prompt = prompt.map(|prompt| into.prompts.index(prompt));
            let positive = self.image(positives.get(index), row, self.positive, into)?;
            let negative = self.image(negatives.get(index), row, self.negative, into)?;
            let cells = [prompt, positive, negative];
            if let [Some(prompt), Some(positive), Some(negative)] = cells {
                into.rows.push(Triplet { prompt, positive, negative });
            } else {
                let empty = cells.iter().zip(&mut *nulls).filter(|(cell, _)| cell.is_none());
                empty.for_each(|(_, nulls)| nulls.add(row));
            }
        }
        self.rows += batch.num_rows();
        Ok(())
    }

    fn image(
        &self,
        cell: Option<ImageCell>,
        row: usize,
        column: &'static str,
        into: &mut Reader,
    ) -> Result<Option<u32>> {
        Ok(match cell {
            None => None,
            Some(ImageCell::Path(path)) => {
                into.cells.add(path.as_bytes());
                Some(into.images.file(self.root, path))
            }
            Some(ImageCell::Bytes(bytes)) => {
                let index = into.images.embedded(bytes, &Cell { table: &self.path, row, column })?;
                into.cells.add(into.images.sources[index as usize].identity().as_bytes());
                Some(index)
            }
        })
    }
}

#[cfg(test)]
mod tests;
