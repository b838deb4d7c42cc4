//! Texts in the header of a safetensors file, read without its tensors.

use std::{io::Read, path::Path};

use serde_json::{Map, Value};

use crate::Result;

/// Bytes of a header at most: the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// Reads `__metadata__` of a safetensors file; empty for another file.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn metadata(path: &Path) -> Result<Map<String, Value>> {
    let mut file = fs_err::File::open(path)?;
    let mut size = [0; 8];
    let length = file.metadata()?.len();
    let whole = file.read_exact(&mut size).is_ok();
    let size = u64::from_le_bytes(size);
    if !whole || size > length.min(MAX_HEADER) {
        return Ok(Map::new());
    }
    let mut header = Vec::new();
    file.take(size).read_to_end(&mut header)?;
    let header: Value = serde_json::from_slice(&header).unwrap_or_default();
    Ok(header["__metadata__"].as_object().cloned().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_a_header_are_read_and_other_files_have_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let read = |content: &[u8]| {
            fs_err::write(&path, content).unwrap();
            metadata(&path).unwrap()
        };
        let header = br#"{"__metadata__":{"ss_v2":"True"}}"#;
        let texts = read(&[&(header.len() as u64).to_le_bytes(), header.as_slice()].concat());
        assert_eq!((texts.len(), &texts["ss_v2"]), (1, &Value::from("True")));
        for other in [b"".as_slice(), b"PK\x03\x04", b"no safetensors file", &u64::MAX.to_le_bytes()] {
            assert!(read(other).is_empty());
        }
    }
}
