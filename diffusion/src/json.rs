//! JSON files of a model folder.

use std::path::Path;

use reward::{
    foreign::{Foreign, HEAD},
    text,
};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// What the file is to be, in errors.
const WANTED: &str = "a JSON file";

/// The value in a JSON file, which may begin with a byte order mark.
///
/// # Errors
/// No such file, no text (what it is instead is said), not JSON (where is said).
pub(crate) fn read(path: &Path) -> Result<Value> {
    parse(bytes(path)?, path)
}

/// As [`read`], of bytes that came from `path`.
pub(crate) fn parse(bytes: Vec<u8>, path: &Path) -> Result<Value> {
    let text = decode(bytes, path)?;
    serde_json::from_str(&text).map_err(|error| Error::data(format!("{}: not JSON: {error}", path.display())))
}

/// As [`parse`], of a file that holds an object.
pub(crate) fn object(bytes: Vec<u8>, path: &Path) -> Result<Map<String, Value>> {
    match parse(bytes, path)? {
        Value::Object(map) => Ok(map),
        _ => Err(Error::data(format!("{}: not a JSON object", path.display()))),
    }
}

/// The text of a JSON file that a parser of its own reads.
pub(crate) fn text(path: &Path) -> Result<String> {
    decode(bytes(path)?, path)
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    if !path.is_file() {
        return Err(Error::data(format!("{}: no such file", path.display())));
    }
    Ok(fs_err::read(path)?)
}

fn decode(bytes: Vec<u8>, path: &Path) -> Result<String> {
    Foreign::refuse(path, &bytes[..bytes.len().min(HEAD)], WANTED)?;
    text::decode(bytes, path, WANTED)
}
