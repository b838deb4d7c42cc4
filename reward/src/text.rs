//! Text files as people have them: UTF-8 with or without a byte order mark; anything else is refused by place.

use std::path::Path;

use crate::{Error, Result, data::source::not_opened, foreign::Foreign};

/// The text of a file, without its byte order mark. `wanted` names what should be there: "a JSON file", "prompts".
///
/// # Errors
/// The file cannot be read, is a [`Foreign`] one, holds NUL bytes, or is not UTF-8 (with the line).
pub fn read(path: &Path, wanted: &str) -> Result<String> {
    let bytes = fs_err::read(path).map_err(|error| not_opened(path, error))?;
    // Who reads a text may take an empty one, and says so itself if not.
    if !bytes.is_empty() {
        Foreign::refuse(path, &bytes[..bytes.len().min(crate::foreign::HEAD)], wanted)?;
    }
    decode(bytes, path, wanted)
}

/// As [`read`], of bytes that came from `path`.
///
/// # Errors
/// NUL bytes, or not UTF-8.
pub fn decode(bytes: Vec<u8>, path: &Path, wanted: &str) -> Result<String> {
    let place =
        |bytes: &[u8]| format!("{} line {}", path.display(), bytes.iter().filter(|byte| **byte == b'\n').count() + 1);
    if let Some(nul) = bytes.iter().position(|byte| *byte == 0) {
        return Err(Error::data(format!("{}: a NUL byte, so this is no text, wanted {wanted}", place(&bytes[..nul]))));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let place = place(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        Error::data(format!("{place}: not UTF-8 text, wanted {wanted}"))
            .hint("save it as UTF-8 (`iconv -f latin1 -t utf-8` where it is Latin-1)")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_dropped_and_no_text_is_refused_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let read = |content: &[u8]| {
            let path = folder.path().join("x.txt");
            fs_err::write(&path, content).unwrap();
            read(&path, "prompts").map_err(|error| error.to_string().replace(&path.display().to_string(), "x.txt"))
        };
        assert_eq!(read(b"\xef\xbb\xbfa fox\r\n").unwrap(), "a fox\r\n");
        assert_eq!(read(b"a fox").unwrap(), "a fox");
        assert_eq!(read(b"").unwrap(), "");
        assert_eq!(read(b"a\nF\xfcchse").unwrap_err(), "x.txt line 2: not UTF-8 text, wanted prompts");
        assert_eq!(read(b"a\nb\0").unwrap_err(), "x.txt line 2: a NUL byte, so this is no text, wanted prompts");
        assert_eq!(read(b"\xff\xfea\0").unwrap_err(), "x.txt is UTF-16 text, wanted prompts");
    }
}
