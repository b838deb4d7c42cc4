//! Tables in JSON: one array of objects, or an object a line; where one text a row is all that is wanted, strings serve too.

use std::fmt::Display;

use serde_json::{Map, Value};

use super::cell::{Cell, Column, Kind, Raw, cell, with_partitions};
use super::format::Format;
use super::parts::Part;
use crate::{Error, Result, foreign::Foreign, text};

/// As [`super::rows::read`], of JSON and JSON lines, whichever of them the file holds.
pub(super) fn read(
    part: &Part,
    format: Format,
    columns: &[Column],
    each: &mut dyn FnMut(&[Cell]),
) -> Result<Vec<Option<String>>> {
    let file = part.path.display();
    let text = text::read(&part.path, format.noun())?;
    if text.is_empty() {
        return Err(Foreign::Empty.error(file, format.noun()));
    }
    let mut names = None;
    let mut row = |value: &Value, place: &dyn Display| -> Result<()> {
        let found = cells(value, part, columns, place, each)?;
        names.get_or_insert(found);
        Ok(())
    };
    let whole: Result<Value, _> = serde_json::from_str(&text);
    match (format, whole) {
        (_, Ok(Value::Array(rows))) => {
            for (number, value) in rows.iter().enumerate() {
                row(value, &format_args!("{file} row {number}"))?;
            }
        }
        (Format::Json, Ok(value @ Value::Object(_))) if is_row(&value, columns) => row(&value, &file)?,
        (Format::Json, Ok(Value::Object(object))) => {
            let keys: Vec<&str> = object.keys().take(5).map(String::as_str).collect();
            return Err(Error::data(format!(
                "{file} is one JSON object (its keys: {}), wanted an array of {}",
                keys.join(", "),
                wanted(columns)
            ))
            .hint("pandas writes one with `to_json(orient=\"records\")`"));
        }
        // More than one value: a line each.
        (Format::Json, Err(error)) if !is_lines(&text) => return Err(Error::data(format!("{file}: {error}"))),
        _ => {
            for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
                let place = format!("{file} line {number}");
                let value = serde_json::from_str(line).map_err(|error| Error::data(format!("{place}: {error}")))?;
                row(&value, &place)?;
            }
        }
    }
    Ok(names.unwrap_or_else(|| columns.iter().map(|_| None).collect()))
}

/// Gives the row to `each`, and answers the names of its columns.
fn cells(
    value: &Value,
    part: &Part,
    columns: &[Column],
    place: &dyn Display,
    each: &mut dyn FnMut(&[Cell]),
) -> Result<Vec<Option<String>>> {
    let object = match (value, columns) {
        (Value::Object(object), _) => object,
        (Value::String(text), [column]) if column.kind == Kind::Text => {
            each(&[Cell::Text(text)]);
            return Ok(vec![None]);
        }
        (other, _) => {
            let found = match other {
                Value::Array(_) => "an array".to_owned(),
                other => other.to_string(),
            };
            return Err(Error::data(format!("{place}: {found}, wanted {}", one(columns))));
        }
    };
    let header = with_partitions(object.keys().map(String::as_str), part);
    let (mut cells, mut names) = (Vec::with_capacity(columns.len()), Vec::with_capacity(columns.len()));
    for column in columns {
        let name = column.find(&header, place)?.map(|at| header[at]);
        let raw = name.map(|name| object.get(name).map_or_else(|| Raw::Text(part.value(name)), Raw::Json));
        let cell = raw.map_or(Ok(Cell::Nothing), |raw| cell(raw, column.kind, column.names[0]));
        cells.push(cell.map_err(|what| Error::data(format!("{place}: {what}")))?);
        names.push(name.map(str::to_owned));
    }
    each(&cells);
    Ok(names)
}

/// Whether the one object of a file is a row, as JSON lines of one line have it.
fn is_row(value: &Value, columns: &[Column]) -> bool {
    let header: Vec<&str> = value.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
    let holds = |column: &Column| match column.find(&header, "") {
        Ok(Some(at)) => !matches!(column.kind, Kind::Text | Kind::Path) || value[header[at]].is_string(),
        Ok(None) => true,
        Err(_) => false,
    };
    columns.iter().all(holds)
}

/// Whether the first line that is not empty is a value of its own.
fn is_lines(text: &str) -> bool {
    let first = text.lines().find(|line| !line.trim().is_empty());
    first.is_some_and(|line| serde_json::from_str::<Value>(line).is_ok_and(|value| value.is_object()))
}

fn is_one_text(columns: &[Column]) -> bool {
    columns.len() == 1 && columns[0].kind == Kind::Text
}

fn wanted(columns: &[Column]) -> &'static str {
    if is_one_text(columns) { "strings or objects" } else { "objects" }
}

fn one(columns: &[Column]) -> &'static str {
    if is_one_text(columns) { "a string or an object" } else { "an object" }
}
