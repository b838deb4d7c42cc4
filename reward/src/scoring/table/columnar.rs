//! Tables in parquet: copied batch by batch with the score added, shown as text, or made of text.

use std::{path::Path, sync::Arc};

use arrow_array::{
    Array, ArrayRef, BooleanArray, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray,
    cast::AsArray,
    types::{
        ArrowTimestampType, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
        TimestampSecondType,
    },
};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};
use serde_json::Value;

use super::{
    OWN, SCORE,
    text::{TextTable, text_of},
};
use crate::{Error, Result, data::columns::guarded};

/// Rows held at a time: cells may be images.
const BATCH_ROWS: usize = 256;
/// Bytes after which a row group is written.
const GROUP_BYTES: usize = 128 << 20;

/// The table `source` with these columns, of which `score` has the scores.
///
/// Types and the metadata of the file stay, but for Hugging Face's list of columns, which would be wrong.
pub(super) fn copy(source: &Path, target: &Path, columns: &[String], scores: &[Option<f32>]) -> Result<()> {
    let wrong = |error: &dyn std::fmt::Display| Error::data(format!("{} cannot be written: {error}", target.display()));
    let mut writer = None;
    let mut done = 0;
    for batch in batches(source, open(source)?)? {
        let batch = batch?;
        let end = done + batch.num_rows();
        let Some(own) = scores.get(done..end) else { return Err(other_rows(source, scores.len())) };
        done = end;
        let added = RecordBatch::try_from_iter_with_nullable([(SCORE, score_column(own), true)]);
        let added = added.map_err(|error| wrong(&error))?;
        let mut schema = (*batch.schema()).clone();
        let (mut fields, mut arrays) = (Vec::new(), Vec::new());
        for name in columns {
            let from = if name == SCORE { &added } else { &batch };
            let Ok(place) = from.schema().index_of(name) else { continue };
            fields.push(from.schema().fields()[place].clone());
            arrays.push(from.column(place).clone());
        }
        schema.fields = fields.into();
        schema.metadata.remove("huggingface");
        let batch = RecordBatch::try_new(Arc::new(schema), arrays).map_err(|error| wrong(&error))?;
        if writer.is_none() {
            let file = fs_err::File::create(target)?;
            writer = Some(ArrowWriter::try_new(file, batch.schema(), None).map_err(|error| wrong(&error))?);
        }
        let Some(writer) = &mut writer else { continue };
        writer.write(&batch).map_err(|error| wrong(&error))?;
        if writer.in_progress_size() > GROUP_BYTES {
            writer.flush().map_err(|error| wrong(&error))?;
        }
    }
    match writer {
        Some(writer) if done == scores.len() => writer.close().map(drop).map_err(|error| wrong(&error)),
        _ => Err(other_rows(source, scores.len())),
    }
}

/// The table as text, and the names of the columns that have no text form: bytes, lists and structs.
pub(super) fn as_text(source: &Path) -> Result<(TextTable, Vec<String>)> {
    let builder = open(source)?;
    let (shown, left_out): (Vec<_>, Vec<_>) = builder
        .schema()
        .fields()
        .iter()
        .map(|field| (field.name().clone(), field.data_type().clone()))
        .partition(|(_, kind)| !kind.is_nested() && !kind.is_binary());
    let names: Vec<String> = shown.into_iter().map(|(name, _)| name).collect();
    let mut rows = Vec::new();
    for batch in batches(source, builder)? {
        let batch = batch?;
        let cells = names.iter().map(|name| cells(source, &batch[name.as_str()])).collect::<Result<Vec<_>>>()?;
        rows.extend((0..batch.num_rows()).map(|row| cells.iter().map(|cells| Some(cells[row].clone())).collect()));
    }
    Ok((TextTable::new(names, rows), left_out.into_iter().map(|(name, _)| name).collect()))
}

/// A table of text in parquet. A column of numbers or truth values in JSON is one here; all else is text.
pub(super) fn write(target: &Path, table: &TextTable, columns: &[String], scores: &[Option<f32>]) -> Result<()> {
    let wrong = |error: &dyn std::fmt::Display| Error::data(format!("{} cannot be written: {error}", target.display()));
    let column = |name: &String| {
        let cells: Vec<Option<&Value>> = table.rows.iter().map(|row| table.cell(row, name)).collect();
        let array = if name == SCORE { score_column(scores) } else { column(&cells) };
        (name.clone(), array, !OWN[..2].contains(&name.as_str()))
    };
    let batch = RecordBatch::try_from_iter_with_nullable(columns.iter().map(column)).map_err(|error| wrong(&error))?;
    let file = fs_err::File::create(target)?;
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).map_err(|error| wrong(&error))?;
    writer.write(&batch).map_err(|error| wrong(&error))?;
    writer.close().map(drop).map_err(|error| wrong(&error))
}

fn score_column(scores: &[Option<f32>]) -> ArrayRef {
    Arc::new(Float32Array::from(scores.to_vec()))
}

/// The narrowest of whole numbers, numbers, truth values and text that holds all cells.
fn column(cells: &[Option<&Value>]) -> ArrayRef {
    let cells: Vec<Option<&Value>> = cells.iter().map(|cell| cell.filter(|cell| !cell.is_null())).collect();
    let all = |is: fn(&Value) -> bool| cells.iter().flatten().all(|cell| is(cell));
    let any = cells.iter().any(Option::is_some);
    if any && all(Value::is_i64) {
        Arc::new(cells.iter().map(|cell| cell.as_ref()?.as_i64()).collect::<Int64Array>())
    } else if any && all(Value::is_f64) {
        Arc::new(cells.iter().map(|cell| cell.as_ref()?.as_f64()).collect::<Float64Array>())
    } else if any && all(Value::is_boolean) {
        Arc::new(cells.iter().map(|cell| cell.as_ref()?.as_bool()).collect::<BooleanArray>())
    } else {
        Arc::new(cells.iter().map(|cell| cell.map(|cell| text_of(Some(cell)))).collect::<StringArray>())
    }
}

/// The cells of a column as JSON has them.
fn cells(source: &Path, column: &ArrayRef) -> Result<Vec<Value>> {
    let wrong = |error: &dyn std::fmt::Display| Error::data(format!("{}: {error}", source.display()));
    let options = FormatOptions::default();
    let column = &in_utc(column);
    let formatter = ArrayFormatter::try_new(column, &options).map_err(|error| wrong(&error))?;
    let cell = |row: usize| {
        if column.is_null(row) {
            return Ok(Value::Null);
        }
        let text = formatter.value(row).try_to_string().map_err(|error| wrong(&error))?;
        let plain = column.data_type().is_numeric() || column.as_boolean_opt().is_some();
        // NaN and infinity are no numbers in JSON.
        let parsed = if plain { serde_json::from_str(&text).ok() } else { None };
        Ok(parsed.unwrap_or(Value::String(text)))
    };
    (0..column.len()).map(cell).collect()
}

/// Times with the name of a zone, whose offsets are not known here, in UTC; any other column as it is.
fn in_utc(column: &ArrayRef) -> ArrayRef {
    fn zoned<T: ArrowTimestampType>(column: &ArrayRef) -> Option<ArrayRef> {
        let times = column.as_primitive_opt::<T>().filter(|times| times.timezone().is_some())?;
        Some(Arc::new(times.clone().with_timezone("+00:00")))
    }
    let units = [
        zoned::<TimestampSecondType>,
        zoned::<TimestampMillisecondType>,
        zoned::<TimestampMicrosecondType>,
        zoned::<TimestampNanosecondType>,
    ];
    units.iter().find_map(|zoned| zoned(column)).unwrap_or_else(|| column.clone())
}

fn open(source: &Path) -> Result<ParquetRecordBatchReaderBuilder<std::fs::File>> {
    let file = fs_err::File::open(source)?.into_parts().0;
    guarded(source, || ParquetRecordBatchReaderBuilder::try_new(file))
}

fn batches(
    source: &Path,
    builder: ParquetRecordBatchReaderBuilder<std::fs::File>,
) -> Result<impl Iterator<Item = Result<RecordBatch>>> {
    let mut reader = guarded(source, || builder.with_batch_size(BATCH_ROWS).build())?;
    Ok(std::iter::from_fn(move || guarded(source, || reader.next().transpose()).transpose()))
}

fn other_rows(source: &Path, rows: usize) -> Error {
    Error::data(format!("{} has not the {rows} rows that it had when it was read", source.display()))
}
