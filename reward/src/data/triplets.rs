//! Triplets (prompt, remixed image, image nobody remixed) from parquet files; equal prompts and images are held once.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_cast::display::{ArrayFormatter, FormatOptions};

use super::columns::{ImageCell, ImageColumn, NullRows, Table, expand, strings};
use super::distinct::{Cell, DistinctImages, DistinctStrings};
use super::source::ImageSource;
use crate::{Error, Result};

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
}

/// A column by whose values accuracy is broken down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slices {
    /// Its name.
    pub column: String,
    /// Its value in each row, `null` for null.
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
    /// Reads parquet files, given as paths and globs.
    ///
    /// Columns: `prompt` (strings), and for each of `pos` and `neg` either `pos_image` (bytes, or Hugging Face's
    /// `{bytes, path}`, where bytes win) or `pos_path` (strings). Other columns are not read.
    ///
    /// # Errors
    ///
    /// No file matches, a file is unreadable, a column is missing or has another type, a cell is null (rows count
    /// from 0 within their file, as in pandas), or there is no row at all.
    pub fn read(files: &[String], options: &ReadOptions) -> Result<Self> {
        let paths = expand(files)?;
        let mut reader = Reader::default();
        for path in &paths {
            reader.add(path, options)?;
        }
        if reader.rows.is_empty() {
            return Err(Error::data(format!("no rows in {}", files.join(", "))));
        }
        let Reader { prompts, images, rows, slices, files } = reader;
        Ok(Self {
            prompts: prompts.into_names(),
            images: images.sources,
            places: (0..rows.len() as u32).collect(),
            rows,
            slices: options.slice_by.clone().map(|column| Slices { column, values: slices }),
            files,
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
}

impl Reader {
    fn add(&mut self, path: &Path, options: &ReadOptions) -> Result<()> {
        let table = Table::open(path)?;
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
        let mut part = Part {
            path: Arc::from(path),
            root: options.image_root.as_deref().unwrap_or(folder),
            positive,
            negative,
            rows: 0,
        };
        self.files.push((path.to_owned(), self.rows.len() as u32));
        for batch in batches {
            let batch = batch?;
            part.read(&batch, self, &mut nulls)?;
            if let Some(slice_by) = options.slice_by.as_deref() {
                self.add_slices(&batch, slice_by)?;
            }
        }
        ["prompt", positive, negative].iter().zip(&nulls).try_for_each(|(column, nulls)| nulls.check(path, column))
    }

    fn add_slices(&mut self, batch: &RecordBatch, column: &str) -> Result<()> {
        let format = FormatOptions::new().with_null("null");
        let text = ArrayFormatter::try_new(&batch[column], &format)
            .map_err(|error| Error::data(format!("column `{column}` cannot be shown as text: {error}")))?;
        self.slices.extend((0..batch.num_rows()).map(|row| text.value(row).to_string()));
        Ok(())
    }
}

/// The file being read.
struct Part<'a> {
    path: Arc<Path>,
    root: &'a Path,
    positive: &'static str,
    negative: &'static str,
    rows: usize,
}

impl Part<'_> {
    fn read(&mut self, batch: &RecordBatch, into: &mut Reader, nulls: &mut [NullRows; 3]) -> Result<()> {
        let prompts = strings(&self.path, batch, "prompt")?;
        let positives = ImageColumn::new(&self.path, batch, self.positive, self.positive == "pos_image")?;
        let negatives = ImageColumn::new(&self.path, batch, self.negative, self.negative == "neg_image")?;
        for (index, prompt) in prompts.iter().enumerate() {
            let row = self.rows + index;
            let prompt = prompt.map(|prompt| into.prompts.index(prompt));
            let positive = self.image(positives.get(index), row, self.positive, &mut into.images)?;
            let negative = self.image(negatives.get(index), row, self.negative, &mut into.images)?;
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
        images: &mut DistinctImages,
    ) -> Result<Option<u32>> {
        Ok(match cell {
            None => None,
            Some(ImageCell::Path(path)) => Some(images.file(self.root, path)),
            Some(ImageCell::Bytes(bytes)) => Some(images.embedded(bytes, &Cell { table: &self.path, row, column })?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tables");
    const PATHS: [&str; 12] = [
        "pandas",
        "pandas_category",
        "large_string",
        "string_view",
        "dictionary",
        "row_groups",
        "no_arrow_schema",
        "codec_snappy",
        "codec_zstd",
        "codec_gzip",
        "codec_brotli",
        "codec_lz4",
    ];

    fn read(name: &str, options: &ReadOptions) -> Result<Triplets> {
        Triplets::read(&[format!("{TABLES}/{name}.parquet")], options)
    }

    fn plain(name: &str) -> Triplets {
        read(name, &ReadOptions::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The message without the folder of the fixtures, and the hint.
    fn refused(files: &[&str], options: &ReadOptions) -> (String, String) {
        let files: Vec<String> = files.iter().map(|file| format!("{TABLES}/{file}")).collect();
        let error = Triplets::read(&files, options).unwrap_err();
        (error.to_string().replace(&format!("{TABLES}/"), ""), error.hint_text().unwrap_or_default().to_owned())
    }

    fn assert_the_four_rows(triplets: &Triplets) {
        assert_eq!(triplets.prompts, ["a red fox", "Füchse, 狐"]);
        // Images: 0 = a.png, 1 = sub/b.png, 2 = c.png.
        let rows = [(0, 0, 1), (0, 1, 2), (1, 0, 2), (0, 0, 1)];
        assert_eq!(triplets.rows, rows.map(|(prompt, positive, negative)| Triplet { prompt, positive, negative }));
    }

    #[test]
    fn every_string_type_codec_and_page_version() {
        for name in PATHS.into_iter().chain(["codec_none", "struct_path"]) {
            let triplets = plain(name);
            assert_the_four_rows(&triplets);
            let labels: Vec<String> = triplets.images.iter().map(ImageSource::label).collect();
            assert_eq!(labels, ["a.png", "sub/b.png", "c.png"].map(|path| format!("{TABLES}/{path}")), "{name}");
            assert_eq!(triplets.origin(3), (Path::new(&format!("{TABLES}/{name}.parquet")), 3));
        }
    }

    #[test]
    fn embedded_images_of_every_type_are_the_files() {
        for name in ["binary", "large_binary", "binary_view", "struct_bytes"] {
            let triplets = plain(name);
            assert_the_four_rows(&triplets);
            for (image, file) in triplets.images.iter().zip(["a.png", "sub/b.png", "c.png"]) {
                assert_eq!(image.read().unwrap(), fs_err::read(format!("{TABLES}/{file}")).unwrap(), "{name} {file}");
            }
            assert_eq!(triplets.images[2].label(), format!("{TABLES}/{name}.parquet row 1 column neg_image"));
        }
    }

    #[test]
    fn files_and_globs_are_read_in_order_as_one() {
        let files = ["pandas.parquet", "codec_[sz]*.parquet", "struct_bytes.parquet"];
        let triplets = Triplets::read(&files.map(|file| format!("{TABLES}/{file}")), &ReadOptions::default()).unwrap();
        assert_eq!((triplets.rows.len(), triplets.prompts.len(), triplets.images.len()), (16, 2, 6));
        let origins: Vec<String> = [0, 4, 11, 15]
            .map(|row| triplets.origin(row))
            .map(|(file, row)| format!("{} {row}", file.file_stem().unwrap().display()))
            .into();
        assert_eq!(origins, ["pandas 0", "codec_snappy 0", "codec_zstd 3", "struct_bytes 3"]);
    }

    #[test]
    fn image_root_replaces_the_folder_of_the_table() {
        let options = ReadOptions { image_root: Some("/photos".into()), ..ReadOptions::default() };
        assert_eq!(read("pandas", &options).unwrap().images[1].label(), "/photos/sub/b.png");
    }

    #[test]
    fn a_slice_column_of_any_type_is_kept_as_text() {
        for (column, values) in
            [("age", ["7", "8", "7", "9"]), ("style", ["oil", "null", "ink", "oil"]), ("pos_path", ["a.png"; 4])]
        {
            let options = ReadOptions { slice_by: Some(column.into()), ..ReadOptions::default() };
            let slices = read("pandas", &options).unwrap().slices.unwrap();
            assert_eq!(slices.column, column);
            assert_eq!(slices.values[0], values[0]);
            assert!(column == "pos_path" || slices.values == values, "{:?}", slices.values);
        }
        let options = ReadOptions { slice_by: Some("stile".into()), ..ReadOptions::default() };
        let (message, hint) = refused(&["pandas.parquet"], &options);
        assert!(message.starts_with("pandas.parquet has no column `stile` (it has: prompt, pos_path, "), "{message}");
        assert_eq!(hint, "did you mean `style`?");
    }

    #[test]
    fn without_images_drops_rows_and_what_only_they_used() {
        let options = ReadOptions { slice_by: Some("age".into()), ..ReadOptions::default() };
        let triplets = read("pandas", &options).unwrap().without(&HashSet::from([1]));
        assert_eq!(triplets.rows, [Triplet { prompt: 0, positive: 0, negative: 1 }]);
        assert_eq!(triplets.prompts, ["Füchse, 狐"]);
        assert_eq!(triplets.images[1].label(), format!("{TABLES}/c.png"));
        assert_eq!(triplets.slices.as_ref().unwrap().values, ["7"]);
        assert_eq!(triplets.origin(0).1, 2);
    }

    #[test]
    fn bad_tables_are_refused_by_name() {
        for (file, wanted, hinted) in [
            (
                "missing_column.parquet",
                "missing_column.parquet has no column `pos_image` or `pos_path` (it has: prompt, positive, neg_paths)",
                "",
            ),
            ("wrong_type.parquet", "wrong_type.parquet: column `prompt` has type Int64, wanted strings", ""),
            (
                "wrong_image_type.parquet",
                "wrong_image_type.parquet: column `pos_image` has type Utf8, wanted image bytes or a struct of bytes and path",
                "paths of image files belong in `pos_path` and `neg_path`",
            ),
            (
                "null_prompt.parquet",
                "null_prompt.parquet: column `prompt` is null in 2 rows: 1, 3 (rows count from 0)",
                "",
            ),
            (
                "null_path.parquet",
                "null_path.parquet: column `neg_path` is null or empty in 2 rows: 2, 3 (rows count from 0)",
                "",
            ),
            (
                "null_image.parquet",
                "null_image.parquet: column `neg_image` is null or empty in 4 rows: 0, 1, 2, 3 (rows count from 0)",
                "",
            ),
            ("all_null.parquet", "all_null.parquet: column `prompt` has type Null, wanted strings", ""),
            ("zero_rows.parquet", "no rows in zero_rows.parquet", ""),
            ("zero_rows_pandas.parquet", "no rows in zero_rows_pandas.parquet", ""),
            ("none.parquet", "none.parquet does not exist", ""),
            ("none-*.parquet", "no file matches `none-*.parquet`", ""),
            ("sub", "sub is a folder, wanted a parquet file", "/sub/*.parquet` names the parquet files in it"),
        ] {
            let (message, hint) = refused(&[file], &ReadOptions::default());
            assert_eq!(message, wanted);
            assert!(hint.ends_with(hinted), "{hint}");
        }
        for file in ["truncated.parquet", "text.parquet", "zero.jpg"] {
            let (message, hint) = refused(&[file], &ReadOptions::default());
            assert!(
                message.contains(&format!("{file} is not a parquet file, or is cut short or damaged: ")),
                "{message}"
            );
            assert!(!hint.is_empty());
        }
    }

    #[test]
    fn a_parquet_cut_or_damaged_anywhere_is_an_error_or_reads() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("damaged.parquet");
        let files = [file.display().to_string()];
        for name in ["pandas", "struct_bytes"] {
            let whole = fs_err::read(format!("{TABLES}/{name}.parquet")).unwrap();
            for cut in (0..whole.len()).step_by(13) {
                fs_err::write(&file, &whole[..cut]).unwrap();
                assert!(Triplets::read(&files, &ReadOptions::default()).is_err(), "{name} cut at {cut}");
            }
            for place in (0..whole.len()).step_by(7) {
                let mut damaged = whole.clone();
                damaged[place] ^= 0xff;
                fs_err::write(&file, &damaged).unwrap();
                let _ = Triplets::read(&files, &ReadOptions::default());
            }
        }
    }
}
