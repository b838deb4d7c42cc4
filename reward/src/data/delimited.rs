//! Tables of text: cells between commas, tabs or semicolons, the names of the columns in the first line.

use csv::{Position, ReaderBuilder, StringRecord};

use super::cell::{Cell, Column, Raw, cell, with_partitions};
use super::format::Format;
use super::parts::Part;
use crate::{Error, Result, foreign::Foreign, text};

/// What may lie between cells, by how common it is. Excel writes semicolons where the comma is part of numbers.
const DELIMITERS: [u8; 3] = [b',', b'\t', b';'];

/// As [`super::rows::read`], of CSV and TSV.
pub(super) fn read(
    part: &Part,
    format: Format,
    columns: &[Column],
    each: &mut dyn FnMut(&[Cell]),
) -> Result<Vec<Option<String>>> {
    let file = &part.path;
    let text = text::read(file, format.noun())?;
    if text.is_empty() {
        return Err(Foreign::Empty.error(file.display(), format.noun()));
    }
    let wrong = |error: csv::Error| Error::data(format!("{}: {error}", file.display()));
    let find = |delimiter: u8| -> Result<Vec<Source>> {
        let record = header(&text, delimiter).map_err(wrong)?;
        let names = with_partitions(record.iter(), part);
        let source = |column: &Column| {
            let Some(at) = column.find(&names, file.display())? else { return Ok(Source::Nothing) };
            let name = names[at].to_owned();
            Ok(if at < record.len() { Source::Cell(at, name) } else { Source::Folder(part.value(&name), name) })
        };
        columns.iter().map(source).collect()
    };
    // The delimiter under which the header has the columns; the error of the format's own if none has.
    let own = if format == Format::Tsv { b'\t' } else { b',' };
    let mut others = DELIMITERS.into_iter().filter(|delimiter| *delimiter != own);
    let (delimiter, sources) = match find(own) {
        Ok(found) => (own, found),
        Err(error) => others.find_map(|delimiter| Some((delimiter, find(delimiter).ok()?))).ok_or(error)?,
    };
    let mut table = ReaderBuilder::new().delimiter(delimiter).from_reader(text.as_bytes());
    let end = text.trim_end().len() as u64;
    let mut record = StringRecord::new();
    while table.read_record(&mut record).map_err(wrong)? {
        // Every record has the header's length, or the reader refuses it.
        let line = record.position().map_or(0, Position::line);
        let place = || format!("{} line {line}", file.display());
        if table.position().byte() >= end && is_unclosed(&text, &record) {
            return Err(Error::data(format!("{}: a quote that is opened and never closed", place()))
                .hint("a quote within a cell is doubled, and the cell is between quotes"));
        }
        let mut cells = Vec::with_capacity(columns.len());
        for (column, source) in columns.iter().zip(&sources) {
            let value = match source {
                Source::Nothing => None,
                Source::Cell(at, _) => record.get(*at),
                Source::Folder(value, _) => Some(*value),
            };
            let found = value.map_or(Ok(Cell::Nothing), |value| cell(Raw::Text(value), column.kind, column.names[0]));
            cells.push(found.map_err(|what| Error::data(format!("{}: {what}", place())))?);
        }
        each(&cells);
    }
    let name = |source| match source {
        Source::Nothing => None,
        Source::Cell(_, name) | Source::Folder(_, name) => Some(name),
    };
    Ok(sources.into_iter().map(name).collect())
}

/// Where the cells of a column are from, and the name it was found under.
enum Source<'a> {
    Nothing,
    /// A place in every record.
    Cell(usize, String),
    /// The name of a folder.
    Folder(&'a str, String),
}

/// The names of the columns.
pub(super) fn header(text: &str, delimiter: u8) -> Result<StringRecord, csv::Error> {
    ReaderBuilder::new().delimiter(delimiter).from_reader(text.as_bytes()).headers().cloned()
}

/// Whether the last cell of the last record swallowed the rest of the file for want of a closing quote.
fn is_unclosed(text: &str, last: &StringRecord) -> bool {
    last.iter().next_back().is_some_and(|cell| cell.contains('\n')) && !text.trim_end().ends_with('"')
}
