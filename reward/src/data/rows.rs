//! Rows of a table, whatever it is written in: parquet, CSV, TSV, a JSON array or JSON lines. Every failure names the file, the
//! row or line, and the column.

use std::path::Path;

use super::{
    cell::{Cell, Column, Kind},
    columns::{NullRows, Table, labels, strings, whole_numbers},
    delimited,
    format::Format,
    json,
    parts::Part,
};
use crate::{Error, Result};

/// Rows of a parquet file held at a time.
const BATCH_ROWS: usize = 4096;

/// Gives the cells of `columns` to `each`, row by row. Answers the names under which the columns were found, for those that are
/// there. In JSON, where every row has its own, they are those of the first row.
///
/// # Errors
/// An ending that is no table's, or a file that cannot be read or is something else. A missing column, or a cell that is null or
/// of another type. Rows of parquet and JSON arrays count from 0, lines of text from 1.
pub(crate) fn read(part: &Part, columns: &[Column], each: &mut dyn FnMut(&[Cell])) -> Result<Vec<Option<String>>> {
    let file = &part.path;
    match Format::of(file) {
        Some(Format::Parquet) => parquet(part, columns, each),
        Some(format @ (Format::Csv | Format::Tsv)) => delimited::read(part, format, columns, each),
        Some(format @ (Format::Json | Format::JsonLines)) => json::read(part, format, columns, each),
        None if !file.exists() => Err(Error::data(format!("{} does not exist", file.display()))),
        None => Err(no_table(file)),
    }
}

/// The error for a file whose name is no table's.
pub(super) fn no_table(file: &Path) -> Error {
    let error = Error::usage(format!(
        "manifest {}: wanted a file that ends in .parquet, .csv, .tsv, .json or .jsonl",
        file.display()
    ));
    match file.file_stem().map(Path::new).and_then(Format::of) {
        Some(_) => error.hint("unpack it first (`gunzip`, `unzstd`, `unzip`)"),
        None => error.hint("rename it after what is in it"),
    }
}

fn parquet(part: &Part, columns: &[Column], each: &mut dyn FnMut(&[Cell])) -> Result<Vec<Option<String>>> {
    let file = &part.path;
    let table = Table::open_part(part)?;
    let header: Vec<String> = table.names();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let places = columns.iter().map(|column| column.find(&header, file.display())).collect::<Result<Vec<_>>>()?;
    let names: Vec<Option<&str>> = places.iter().map(|place| place.map(|place| header[place])).collect();
    let read: Vec<&str> = names.iter().flatten().copied().collect();
    let mut nulls: Vec<NullRows> = columns.iter().map(|_| NullRows::default()).collect();
    let mut first = 0;
    for batch in table.batches(&read, BATCH_ROWS)? {
        let batch = batch?;
        let rows = batch.num_rows();
        let mut cells: Vec<Vec<Cell>> = vec![Vec::with_capacity(columns.len()); rows];
        for ((column, name), nulls) in columns.iter().zip(&names).zip(&mut nulls) {
            let Some(name) = name else {
                cells.iter_mut().for_each(|row| row.push(Cell::Nothing));
                continue;
            };
            match column.kind {
                Kind::Text | Kind::Path => {
                    let texts = strings(file, &batch, name)?;
                    for (row, text) in texts.iter().enumerate() {
                        let text = text.filter(|text| column.kind == Kind::Text || !text.is_empty());
                        cells[row].push(text.map_or(Cell::Nothing, Cell::Text));
                        if text.is_none() {
                            nulls.add(first + row);
                        }
                    }
                }
                Kind::Seed => {
                    let seeds = whole_numbers(file, &batch, name, first)?;
                    let cell = |row| seeds.get(row).map_or(Cell::Nothing, Cell::Seed);
                    cells.iter_mut().enumerate().for_each(|(row, cells)| cells.push(cell(row)));
                }
                Kind::Label | Kind::Optional => {
                    let labels = labels(file, &batch, name)?;
                    cells.iter_mut().zip(labels).for_each(|(row, label)| row.push(Cell::Owned(label)));
                }
            }
        }
        cells.iter().for_each(|row| each(row));
        first += rows;
    }
    columns.iter().zip(&nulls).try_for_each(|(column, nulls)| {
        let what = if column.kind == Kind::Text { "null" } else { "null or empty" };
        nulls.check(file, column.names[0], what)
    })?;
    Ok(names.into_iter().map(|name| name.map(str::to_owned)).collect())
}
