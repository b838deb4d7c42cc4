//! Columns of parquet files, read batch by batch; every failure names the file, the column and what was wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io::Read;
use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{ByteArrayType, Float64Type, Int64Type, UInt64Type, Utf8Type};
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType, BinaryArray, RecordBatch, StringArray};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use super::parts::Part;
use super::source::not_opened;
use crate::error::did_you_mean;
use crate::foreign::{Foreign, HEAD};
use crate::{Error, Result, seed};

/// Rows held at a time while columns are compared.
const CONSTANT_ROWS: usize = 4096;

/// "PLACE has no column `name` (it has: …)".
pub(crate) fn missing_column<'a>(
    place: impl Display,
    wanted: &[&str],
    present: impl Iterator<Item = &'a str>,
) -> Error {
    let present: Vec<&str> = present.collect();
    let names = wanted.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ");
    let error = Error::data(format!("{place} has no column {names} (it has: {})", present.join(", ")));
    match wanted.iter().find_map(|name| did_you_mean(name, present.iter().copied())) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// An open parquet file.
pub(crate) struct Table {
    pub(crate) path: PathBuf,
    builder: ParquetRecordBatchReaderBuilder<std::fs::File>,
    /// Columns that its folders spell, of one value each.
    partitions: Vec<(String, Option<String>)>,
}

impl Table {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::open_part(&Part { path: path.to_owned(), partitions: Vec::new() })
    }

    /// A file with the columns that its folders spell, where it has none of these names itself.
    pub(crate) fn open_part(Part { path, partitions }: &Part) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::data(format!("{} is a folder, wanted a parquet file", path.display())));
        }
        let file = fs_err::File::open(path).map_err(|error| not_opened(path, error))?.into_parts().0;
        no_other(path, &file)?;
        // Without the writer's Arrow schema, strings of every kind (large, view, dictionary) are one type, as are bytes.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let builder = guarded(path, || ParquetRecordBatchReaderBuilder::try_new_with_options(file, options))?;
        let is_own = |name: &String| builder.schema().column_with_name(name).is_some();
        let partitions = partitions.iter().filter(|(name, _)| !is_own(name)).cloned().collect();
        Ok(Self { path: path.to_owned(), builder, partitions })
    }

    /// The names of the file's columns.
    pub(crate) fn names(&self) -> Vec<String> {
        let own = self.builder.schema().fields().iter().map(|field| field.name());
        own.chain(self.partitions.iter().map(|(name, _)| name)).cloned().collect()
    }

    /// The first of `wanted` that the file has.
    pub(crate) fn require<'a>(&self, wanted: &[&'a str]) -> Result<&'a str> {
        let names = self.names();
        let found = wanted.iter().copied().find(|wanted| names.iter().any(|name| name == wanted));
        found.ok_or_else(|| missing_column(self.path.display(), wanted, names.iter().map(String::as_str)))
    }

    /// Batches of at most `rows` rows of these columns, which the file must have.
    pub(crate) fn batches(self, columns: &[&str], rows: usize) -> Result<impl Iterator<Item = Result<RecordBatch>>> {
        let Self { path, builder, mut partitions } = self;
        partitions.retain(|(name, _)| columns.contains(&name.as_str()));
        let roots = columns.iter().filter_map(|name| builder.schema().column_with_name(name)).map(|(index, _)| index);
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots.collect::<Vec<_>>());
        let mut reader = guarded(&path, || builder.with_projection(mask).with_batch_size(rows).build())?;
        let with_partitions = move |batch: RecordBatch| {
            if partitions.is_empty() {
                return Ok(batch);
            }
            let rows = batch.num_rows();
            let same =
                |value: &Option<String>| -> ArrayRef { Arc::new(StringArray::from(vec![value.as_deref(); rows])) };
            let schema = batch.schema();
            let own = schema.fields().iter().map(|field| field.name().clone()).zip(batch.columns().iter().cloned());
            RecordBatch::try_from_iter(own.chain(partitions.iter().map(|(name, value)| (name.clone(), same(value)))))
        };
        let mut next = move || guarded(&path, || reader.next().transpose()?.map(&with_partitions).transpose());
        Ok(iter::from_fn(move || next().transpose()))
    }
}

/// Refuses what only bears a parquet file's name.
fn no_other(path: &Path, file: &std::fs::File) -> Result<()> {
    let mut head = Vec::with_capacity(HEAD);
    let read = file.take(HEAD as u64).read_to_end(&mut head);
    read.map_err(|error| Error::data(format!("{}: {error}", path.display())))?;
    match Foreign::of(&head) {
        Some(Foreign::Parquet) => return Ok(()),
        None => Ok(()),
        Some(foreign) => Err(foreign.error(path.display(), "a parquet file")),
    }?;
    let text = str::from_utf8(&head).map_or_else(|error| error.valid_up_to() + 3 >= HEAD, |_| true);
    if text && !head.contains(&0) {
        return Err(Error::data(format!("{} is text, not a parquet file", path.display()))
            .hint("name a table after what it is written in: .csv, .tsv, .json, .jsonl"));
    }
    Ok(())
}

/// Runs a step of the parquet reader, which panics on some damaged pages.
pub(crate) fn guarded<T, E: Display>(path: &Path, step: impl FnOnce() -> Result<T, E>) -> Result<T> {
    let why = match catch_unwind(AssertUnwindSafe(step)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "its pages contradict themselves".to_owned(),
    };
    let what = format!("{} is not a parquet file, or is cut short or damaged: {why}", path.display());
    Err(Error::data(what).hint("check that it was written and copied to its end"))
}

/// The column `name` as strings.
pub(crate) fn strings<'a>(path: &Path, batch: &'a RecordBatch, name: &str) -> Result<&'a StringArray> {
    let column = &batch[name];
    column.as_string_opt().ok_or_else(|| wrong_type(path, name, column, "strings"))
}

/// A column of seeds.
pub(crate) struct WholeNumbers(Vec<Option<u64>>);

impl WholeNumbers {
    /// The number in a row, if there is one.
    pub(crate) fn get(&self, row: usize) -> Option<u64> {
        self.0[row]
    }
}

/// The column `name` as seeds: whole numbers of any type, also as floats or text.
/// `first` is the batch's first row.
pub(crate) fn whole_numbers(path: &Path, batch: &RecordBatch, name: &str, first: usize) -> Result<WholeNumbers> {
    let column = &batch[name];
    let wrong = || wrong_type(path, name, column, "whole numbers");
    let cast = |kind| arrow_cast::cast(column, &kind).map_err(|_| wrong());
    let kind = column.data_type();
    if *kind == UInt64Type::DATA_TYPE {
        return Ok(WholeNumbers(column.as_primitive::<UInt64Type>().iter().collect()));
    }
    if kind.is_integer() || kind.is_null() {
        let signed = cast(Int64Type::DATA_TYPE)?;
        return Ok(WholeNumbers(
            signed.as_primitive::<Int64Type>().iter().map(|seed| seed.map(|seed| seed as u64)).collect(),
        ));
    }
    let bad = |row: usize, cell: &dyn Display, wanted: &str| {
        let row = first + row;
        Error::data(format!("{} row {row}: `{name}` is {cell}, wanted {wanted}", path.display()))
    };
    if kind.is_floating() {
        let floats = cast(Float64Type::DATA_TYPE)?;
        let seed = |(row, value): (usize, Option<f64>)| {
            seed::of_float(value.unwrap_or(f64::NAN)).map_err(|wanted| bad(row, &value.unwrap_or_default(), wanted))
        };
        return Ok(WholeNumbers(
            floats.as_primitive::<Float64Type>().iter().enumerate().map(seed).collect::<Result<_>>()?,
        ));
    }
    // Spark keeps what needs 64 bits without a sign as decimals.
    let texts = if kind.is_numeric() { cast(Utf8Type::DATA_TYPE)? } else { column.clone() };
    let texts = texts.as_string_opt::<i32>().ok_or_else(wrong)?;
    let seed = |(row, text): (usize, Option<&str>)| {
        let text = text.unwrap_or_default();
        seed::of_text(text).map_err(|wanted| bad(row, &format_args!("{text:?}"), wanted))
    };
    Ok(WholeNumbers(texts.iter().enumerate().map(seed).collect::<Result<_>>()?))
}

/// The cells of column `name` as text, to group rows by; one that is empty is `null`.
pub(crate) fn labels(path: &Path, batch: &RecordBatch, name: &str) -> Result<Vec<String>> {
    let options = FormatOptions::new().with_null("null");
    let text = ArrayFormatter::try_new(&batch[name], &options).map_err(|error| {
        Error::data(format!("{}: column `{name}` cannot be shown as text: {error}", path.display()))
    })?;
    Ok((0..batch.num_rows()).map(|row| text.value(row).to_string()).collect())
}

/// The columns, but for `prompt` and `path`, whose cells are all the same, with that value.
pub(crate) fn constants(path: &Path) -> Result<BTreeMap<String, String>> {
    let table = Table::open(path)?;
    let names = table.names();
    let names: Vec<&str> = names.iter().map(String::as_str).filter(|name| !["prompt", "path"].contains(name)).collect();
    let mut found: BTreeMap<String, Option<String>> = BTreeMap::new();
    let mut varying = BTreeSet::new();
    for batch in table.batches(&names, CONSTANT_ROWS)? {
        let batch = batch?;
        for name in &names {
            let options = FormatOptions::default();
            let Ok(cells) = ArrayFormatter::try_new(&batch[*name], &options) else { continue };
            for row in 0..batch.num_rows() {
                let cell = cells.value(row).try_to_string().ok();
                if *found.entry((*name).to_owned()).or_insert_with(|| cell.clone()) != cell {
                    varying.insert(*name);
                    break;
                }
            }
        }
    }
    let constant = found.into_iter().filter(|(name, _)| !varying.contains(name.as_str()));
    Ok(constant.filter_map(|(name, value)| Some((name, value?))).filter(|(_, value)| !value.is_empty()).collect())
}

/// A column of images: paths, bytes, or Hugging Face's `{bytes, path}`.
pub(crate) struct ImageColumn<'a> {
    column: &'a dyn Array,
    bytes: Option<&'a BinaryArray>,
    paths: Option<&'a StringArray>,
}

/// A cell of an [`ImageColumn`].
pub(crate) enum ImageCell<'a> {
    Path(&'a str),
    Bytes(&'a [u8]),
}

impl<'a> ImageColumn<'a> {
    /// The column `name`: a column of paths or, if `embedded`, of image bytes.
    pub(crate) fn new(path: &Path, batch: &'a RecordBatch, name: &str, embedded: bool) -> Result<Self> {
        let column = &batch[name];
        let (bytes, paths) = if !embedded {
            (None, Some(strings(path, batch, name)?))
        } else if let Some(fields) = column.as_struct_opt() {
            let bytes = fields.column_by_name("bytes").and_then(|field| field.as_binary_opt());
            (bytes, fields.column_by_name("path").and_then(|field| field.as_string_opt()))
        } else {
            (column.as_binary_opt(), None)
        };
        if bytes.is_none() && paths.is_none() {
            return Err(wrong_type(path, name, column, "image bytes or a struct of bytes and path")
                .hint("paths of image files belong in `pos_path` and `neg_path`"));
        }
        Ok(Self { column, bytes, paths })
    }

    /// The image of a row; `None` where it is null (or the path is empty).
    pub(crate) fn get(&self, row: usize) -> Option<ImageCell<'a>> {
        if self.column.is_null(row) {
            return None;
        }
        if let Some(bytes) = self.bytes.filter(|bytes| bytes.is_valid(row)) {
            return Some(ImageCell::Bytes(bytes.value(row)));
        }
        let paths = self.paths.filter(|paths| paths.is_valid(row) && !paths.value(row).is_empty())?;
        Some(ImageCell::Path(paths.value(row)))
    }
}

fn wrong_type(path: &Path, name: &str, column: &dyn Array, wanted: &str) -> Error {
    let found = column.data_type();
    Error::data(format!("{}: column `{name}` has type {found}, wanted {wanted}", path.display()))
}

/// How many rows to name in a message before "…".
pub(crate) const ROWS_NAMED: usize = 5;

/// The rows in which a column is null.
#[derive(Default)]
pub(crate) struct NullRows {
    count: usize,
    first: Vec<String>,
}

impl NullRows {
    pub(crate) fn add(&mut self, row: usize) {
        self.count += 1;
        if self.first.len() < ROWS_NAMED {
            self.first.push(row.to_string());
        }
    }

    /// An error if there were any. `what` they are: "null", "null or empty".
    pub(crate) fn check(&self, path: &Path, column: &str, what: &str) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let more = if self.count > self.first.len() { ", …" } else { "" };
        let (rows, plural) = (self.first.join(", "), if self.count == 1 { "" } else { "s" });
        Err(Error::data(format!(
            "{}: column `{column}` is {what} in {} row{plural}: {rows}{more} (rows count from 0)",
            path.display(),
            self.count
        )))
    }
}
