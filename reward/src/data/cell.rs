//! Columns that are wanted of a table, and their cells, whatever the table is written in.

use std::fmt::Display;

use serde_json::Value;

use super::{columns::missing_column, parts::Part};
use crate::{Error, Result, seed};

/// What the cells of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text; none may be missing.
    Text,
    /// Text that is not empty; none may be missing.
    Path,
    /// A seed, or nothing. A table need not have the column.
    Seed,
    /// Anything, as text.
    Label,
    /// The same, or nothing. A table need not have the column.
    Optional,
}

/// A column to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column<'a> {
    /// The name and, in order of preference, other names that serve.
    pub(crate) names: &'a [&'a str],
    pub(crate) kind: Kind,
    /// Whether upper and lower case are the same in names.
    pub(crate) any_case: bool,
}

impl<'a> Column<'a> {
    pub(crate) fn new(names: &'a [&'a str], kind: Kind) -> Self {
        Self { names, kind, any_case: false }
    }

    /// Where `header` has it, and nothing where it need not be; `place` is whose header it is.
    pub(super) fn find(&self, header: &[&str], place: impl Display) -> Result<Option<usize>> {
        let at = |name: &str, same: fn(&str, &str) -> bool| -> Vec<usize> {
            (0..header.len()).filter(|column| same(header[*column], name)).collect()
        };
        let exact: fn(&str, &str) -> bool = |left, right| left == right;
        let tries = if self.any_case { vec![exact, str::eq_ignore_ascii_case] } else { vec![exact] };
        for name in self.names {
            for same in &tries {
                match at(name, *same)[..] {
                    [] => {}
                    [column] => return Ok(Some(column)),
                    [first, second, ..] => {
                        let (first, second) = (header[first], header[second]);
                        return Err(Error::data(format!("{place} has two columns for `{name}`: {first}, {second}")));
                    }
                }
            }
        }
        match self.kind {
            Kind::Seed | Kind::Optional => Ok(None),
            _ => Err(missing_column(place, &self.names[..1], header.iter().copied())),
        }
    }
}

/// A cell of a wanted column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cell<'a> {
    /// There is none.
    Nothing,
    Text(&'a str),
    Owned(String),
    Seed(u64),
}

impl Cell<'_> {
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Owned(text) => Some(text),
            Self::Nothing | Self::Seed(_) => None,
        }
    }

    pub(crate) fn seed(&self) -> Option<u64> {
        if let Self::Seed(seed) = self { Some(*seed) } else { None }
    }
}

/// The columns of the part's folders (Hive's) are added to those of its header.
pub(super) fn with_partitions<'a>(header: impl Iterator<Item = &'a str>, part: &'a Part) -> Vec<&'a str> {
    let mut names: Vec<&str> = header.collect();
    let own = names.len();
    for (column, _) in &part.partitions {
        if !names[..own].contains(&column.as_str()) {
            names.push(column);
        }
    }
    names
}

/// A cell before it is known what it is for.
#[derive(Clone, Copy)]
pub(super) enum Raw<'a> {
    /// A cell of a text table.
    Text(&'a str),
    Json(&'a Value),
}

impl Display for Raw<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Text(text) => write!(formatter, "{text:?}"),
            Self::Json(value) => value.fmt(formatter),
        }
    }
}

/// The cell of column `name`, or what is wrong with it.
pub(super) fn cell<'a>(raw: Raw<'a>, kind: Kind, name: &str) -> Result<Cell<'a>, String> {
    match (kind, raw) {
        (Kind::Text | Kind::Path, Raw::Text(text)) => not_empty(text, kind, name),
        (Kind::Text | Kind::Path, Raw::Json(Value::String(text))) => not_empty(text, kind, name),
        (Kind::Text | Kind::Path, _) => Err(format!("`{name}` is {raw}, wanted a string")),
        (Kind::Optional, Raw::Text("")) | (Kind::Optional, Raw::Json(Value::Null)) => Ok(Cell::Nothing),
        (Kind::Label | Kind::Optional, Raw::Text(text)) => Ok(Cell::Text(text)),
        (Kind::Label | Kind::Optional, Raw::Json(Value::String(text))) => Ok(Cell::Text(text)),
        (Kind::Label | Kind::Optional, Raw::Json(value)) => Ok(Cell::Owned(value.to_string())),
        (Kind::Seed, _) => {
            let seed = match raw {
                Raw::Text(text) => seed::of_text(text),
                Raw::Json(Value::Null) => Ok(None),
                Raw::Json(Value::String(text)) => seed::of_text(text),
                Raw::Json(Value::Number(number)) if number.is_f64() => {
                    number.as_f64().ok_or("a whole number").and_then(seed::of_float)
                }
                Raw::Json(Value::Number(number)) => seed::of_text(&number.to_string()),
                Raw::Json(_) => Err("a whole number"),
            };
            let seed = seed.map_err(|wanted| format!("`{name}` is {raw}, wanted {wanted}"))?;
            Ok(seed.map_or(Cell::Nothing, Cell::Seed))
        }
    }
}

fn not_empty<'a>(text: &'a str, kind: Kind, name: &str) -> Result<Cell<'a>, String> {
    if kind == Kind::Path && text.is_empty() { Err(format!("`{name}` is empty")) } else { Ok(Cell::Text(text)) }
}
