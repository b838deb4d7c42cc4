//! Tables of text: CSV and JSON lines.

use std::{
    io::{BufWriter, Write},
    path::Path,
};

use serde_json::{Map, Value};

use super::{SCORE, shortest};
use crate::{Error, Result, data::manifest::Manifest, text};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Rows of cells; a cell that is not there at all is `None`.
pub(super) struct TextTable {
    pub(super) names: Vec<String>,
    pub(super) rows: Vec<Vec<Option<Value>>>,
    /// Whether the file began with a byte order mark, by which Excel tells UTF-8.
    marked: bool,
}

impl TextTable {
    pub(super) fn new(names: Vec<String>, rows: Vec<Vec<Option<Value>>>) -> Self {
        Self { names, rows, marked: false }
    }

    /// Paths and prompts.
    pub(super) fn of_rows(manifest: &Manifest) -> Self {
        let row = |row: &crate::data::manifest::ManifestRow| {
            [&row.path, &manifest.prompts[row.prompt as usize]].map(|text| Some(text.as_str().into())).to_vec()
        };
        let names = ["path", "prompt"].map(str::to_owned).to_vec();
        Self::new(names, manifest.rows.iter().map(row).collect())
    }

    pub(super) fn from_csv(path: &Path) -> Result<Self> {
        let mut reader = csv_reader(path)?;
        let names = reader.headers().map_err(|error| wrong_csv(path, &error))?.iter().map(str::to_owned).collect();
        let mut rows = Vec::new();
        for record in reader.records() {
            let record = record.map_err(|error| wrong_csv(path, &error))?;
            rows.push(record.iter().map(|cell| Some(cell.into())).collect());
        }
        let marked = fs_err::read(path)?.starts_with(BYTE_ORDER_MARK);
        Ok(Self { names, rows, marked })
    }

    pub(super) fn from_json_lines(path: &Path) -> Result<Self> {
        let text = text::read(path, "JSON lines")?;
        let (mut names, mut rows): (Vec<String>, Vec<Vec<Option<Value>>>) = (Vec::new(), Vec::new());
        for (line, number) in text.lines().zip(1..) {
            let Some(mut object) = object(path, line, number)? else { continue };
            names.extend(object.keys().filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>());
            rows.push(names.iter().map(|name| object.get_mut(name).map(Value::take)).collect());
        }
        Ok(Self::new(names, rows))
    }

    /// The cell of a row in the column of this name.
    pub(super) fn cell<'a>(&self, row: &'a [Option<Value>], name: &str) -> Option<&'a Value> {
        let place = self.names.iter().position(|known| known == name)?;
        row.get(place)?.as_ref()
    }

    pub(super) fn write_csv(&self, path: &Path, columns: &[String], scores: &[Option<f32>]) -> Result<()> {
        let mut file = BufWriter::new(fs_err::File::create(path)?);
        if self.marked {
            file.write_all(BYTE_ORDER_MARK)?;
        }
        let wrong = |error: csv::Error| Error::data(format!("{} cannot be written: {error}", path.display()));
        let mut writer = csv::Writer::from_writer(file);
        let places = self.places(columns);
        writer.write_record(columns).map_err(wrong)?;
        for (row, score) in self.rows.iter().zip(scores) {
            let cells = places.iter().map(|place| match place {
                None => score.map(shortest).unwrap_or_default(),
                Some(place) => text_of(row.get(*place).and_then(Option::as_ref)),
            });
            writer.write_record(cells).map_err(wrong)?;
        }
        Ok(writer.flush()?)
    }

    pub(super) fn write_json_lines(&self, path: &Path, columns: &[String], scores: &[Option<f32>]) -> Result<()> {
        let mut file = BufWriter::new(fs_err::File::create(path)?);
        let places = self.places(columns);
        for (row, score) in self.rows.iter().zip(scores) {
            let mut object = Map::new();
            for (name, place) in columns.iter().zip(&places) {
                let cell = match place {
                    // By its shortest text, or fp64 would print digits that fp32 does not have.
                    None => {
                        Some(score.and_then(|score| serde_json::from_str(&shortest(score)).ok()).unwrap_or_default())
                    }
                    Some(place) => row.get(*place).cloned().flatten(),
                };
                object.extend(cell.map(|cell| (name.clone(), cell)));
            }
            writeln!(file, "{}", Value::Object(object))?;
        }
        Ok(file.flush()?)
    }

    /// Where each column is; the score is in no row yet.
    fn places(&self, columns: &[String]) -> Vec<Option<usize>> {
        let place = |name: &String| self.names.iter().position(|known| known == name).filter(|_| name != SCORE);
        columns.iter().map(place).collect()
    }
}

/// A cell as CSV has it.
pub(super) fn text_of(cell: Option<&Value>) -> String {
    match cell {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

pub(super) fn csv_reader(path: &Path) -> Result<csv::Reader<fs_err::File>> {
    Ok(csv::Reader::from_reader(fs_err::File::open(path)?))
}

pub(super) fn wrong_csv(path: &Path, error: &csv::Error) -> Error {
    Error::data(format!("{}: {error}", path.display()))
}

/// The object on a line; nothing on an empty one.
pub(super) fn object(path: &Path, line: &str, number: usize) -> Result<Option<Map<String, Value>>> {
    let line = line.trim_start_matches('\u{feff}').trim();
    if line.is_empty() {
        return Ok(None);
    }
    let wrong = |error| Error::data(format!("{} line {number}: {error}", path.display()));
    serde_json::from_str(line).map(Some).map_err(wrong)
}
