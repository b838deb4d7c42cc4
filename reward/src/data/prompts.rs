//! Prompts from a file: one per line of text, or the column `prompt` of a table.

use std::path::Path;

use serde_json::{Map, Value};

use super::columns::{NullRows, Table, missing_column, strings};
use super::source::not_opened;
use crate::{Error, Result};

/// Rows of a parquet file held at a time.
const BATCH_ROWS: usize = 4096;
/// The column that holds them.
const COLUMN: &str = "prompt";

/// The prompts of a file in its order: the column `prompt` of `.parquet`, `.csv` or `.jsonl`; of any other file its lines,
/// less white space around them, without empty ones. A table may hold empty prompts.
///
/// # Errors
///
/// An unreadable file, text that is not UTF-8, a missing column, a cell that is null or not a string, or no prompt at all.
pub fn read(file: &Path) -> Result<Vec<String>> {
    if file.is_dir() {
        return Err(Error::data(format!("{} is a folder, wanted a file of prompts", file.display())));
    }
    let prompts =
        match file.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("parquet") => parquet(file)?,
            Some("csv") => csv(file)?,
            Some("jsonl" | "ndjson") => json_lines(file)?,
            _ => lines(&text(file)?),
        };
    if prompts.is_empty() {
        return Err(Error::data(format!("no prompts in {}", file.display()))
            .hint("one prompt per line, or a table (.parquet, .csv, .jsonl) with a column `prompt`"));
    }
    Ok(prompts)
}

fn text(file: &Path) -> Result<String> {
    let bytes = fs_err::read(file).map_err(|error| not_opened(file, error))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line =
            error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        Error::data(format!("{} line {line}: not UTF-8 text", file.display()))
            .hint("save it as UTF-8; a table's name ends in .parquet, .csv or .jsonl")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn parquet(file: &Path) -> Result<Vec<String>> {
    let table = Table::open(file)?;
    table.require(&[COLUMN])?;
    let (mut prompts, mut nulls, mut row) = (Vec::new(), NullRows::default(), 0);
    for batch in table.batches(&[COLUMN], BATCH_ROWS)? {
        for prompt in strings(file, &batch?, COLUMN)? {
            match prompt {
                Some(prompt) => prompts.push(prompt.to_owned()),
                None => nulls.add(row),
            }
            row += 1;
        }
    }
    nulls.check(file, COLUMN)?;
    Ok(prompts)
}

fn csv(file: &Path) -> Result<Vec<String>> {
    let wrong = |error: csv::Error| Error::data(format!("{}: {error}", file.display()));
    let mut table = csv::Reader::from_reader(fs_err::File::open(file).map_err(|error| not_opened(file, error))?);
    let header = table.headers().map_err(wrong)?.clone();
    let column = header
        .iter()
        .position(|name| name == COLUMN)
        .ok_or_else(|| missing_column(file.display(), &[COLUMN], header.iter()))?;
    // Every record has the header's length, or the reader refuses it.
    table.records().map(|record| Ok(record.map_err(wrong)?[column].to_owned())).collect()
}

fn json_lines(file: &Path) -> Result<Vec<String>> {
    let text = text(file)?;
    let numbered = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let prompt = |(line, number): (&str, u64)| {
        let wrong = |what: &dyn std::fmt::Display| Error::data(format!("{} line {number}: {what}", file.display()));
        let mut object: Map<String, Value> = serde_json::from_str(line).map_err(|error| wrong(&error))?;
        match object.remove(COLUMN) {
            Some(Value::String(prompt)) => Ok(prompt),
            Some(other) => Err(wrong(&format_args!("`{COLUMN}` is {other}, wanted a string"))),
            None => {
                let place = format!("{} line {number}", file.display());
                Err(missing_column(place, &[COLUMN], object.keys().map(String::as_str)))
            }
        }
    };
    numbered.map(prompt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tables");

    fn in_file(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        fs_err::write(&file, content).unwrap();
        read(&file)
    }

    fn refused(name: &str, content: impl AsRef<[u8]>) -> String {
        let message = in_file(name, content).unwrap_err().to_string();
        // Of a path, the name alone.
        message.split(' ').map(|word| word.rsplit('/').next().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_same_prompts_from_every_format() {
        let wanted = ["a red fox", "she said \"hi\", twice", "a red fox"];
        for name in ["manifest.parquet", "manifest.csv", "manifest.jsonl"] {
            assert_eq!(read(&Path::new(TABLES).join(name)).unwrap(), wanted, "{name}");
        }
        let text = "\u{feff}a red fox\r\n\n  she said \"hi\", twice \na red fox";
        assert_eq!(in_file("prompts.txt", text).unwrap(), wanted);
        assert_eq!(in_file("prompts", text).unwrap(), wanted);
        assert_eq!(in_file("empty.csv", "prompt,id\n,1\nx,2\n").unwrap(), ["", "x"]);
    }

    #[test]
    fn what_holds_no_prompts_is_refused_by_place() {
        assert_eq!(refused("p.txt", " \n\n"), "no prompts in p.txt");
        assert_eq!(refused("p.csv", "prompt\n"), "no prompts in p.csv");
        assert_eq!(refused("p.csv", "promt\nx\n"), "p.csv has no column `prompt` (it has: promt)");
        assert_eq!(refused("p.jsonl", "{\"prompt\": 7}"), "p.jsonl line 1: `prompt` is 7, wanted a string");
        assert_eq!(refused("p.txt", b"fox\nF\xfcchse\n"), "p.txt line 2: not UTF-8 text");
        assert_eq!(read(Path::new("none.txt")).unwrap_err().to_string(), "none.txt does not exist");
    }
}
