//! Files that are not what their name says: what a failed download, a clone without Git LFS or a wrong export leaves behind.

use std::{fmt, path::Path};

use crate::{Error, Result};

/// Bytes of a file's head that [`Foreign::of`] looks at.
pub const HEAD: usize = 512;

/// What a file is in place of weights, a table, a text or an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// No bytes at all.
    Empty,
    /// The text that Git LFS leaves where a file was not fetched.
    LfsPointer,
    /// A web page: a login, a virus warning, an error.
    Html,
    /// An XML document: the error message of an object store, or an SVG.
    Xml,
    /// A gzip file, also `.tar.gz`.
    Gzip,
    /// A Zstandard file.
    Zstandard,
    /// A feather file (Arrow IPC).
    Feather,
    /// A parquet file.
    Parquet,
    /// A PDF document.
    Pdf,
    /// Keras or older weights (HDF5).
    Hdf5,
    /// Text in UTF-16, as some Windows programs save it.
    Utf16,
}

impl Foreign {
    /// The kind of file that begins with `head` (its first [`HEAD`] bytes, or all of them); `None` if none of these.
    pub fn of(head: &[u8]) -> Option<Self> {
        let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
        let says = |start: &[u8]| text.len() >= start.len() && text[..start.len()].eq_ignore_ascii_case(start);
        // A safetensors file begins with the length of its JSON header, which may spell another format's magic bytes.
        let safetensors = head.get(8) == Some(&b'{') && head[4..8] == [0; 4];
        match head {
            [] => Some(Self::Empty),
            _ if safetensors => None,
            _ if head.starts_with(b"version https://git-lfs.github.com/spec/") => Some(Self::LfsPointer),
            _ if says(b"<!doctype html") || says(b"<html") || says(b"<head") => Some(Self::Html),
            _ if says(b"<?xml") || says(b"<svg") || says(b"<error>") => Some(Self::Xml),
            [0x1f, 0x8b, 8, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstandard),
            _ if head.starts_with(b"ARROW1") || head.starts_with(b"FEA1") => Some(Self::Feather),
            _ if head.starts_with(b"PAR1") => Some(Self::Parquet),
            _ if head.starts_with(b"%PDF-") => Some(Self::Pdf),
            _ if head.starts_with(b"\x89HDF\r\n\x1a\n") => Some(Self::Hdf5),
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(Self::Utf16),
            _ => None,
        }
    }

    /// The error for `place` (a path, a row), where `wanted` was wanted: "weights", "an image", "a parquet file".
    pub fn error(self, place: impl fmt::Display, wanted: &str) -> Error {
        Error::data(format!("{place} is {self}, wanted {wanted}")).hint(match self {
            Self::Empty => "it was not written or copied to its end: get it again",
            Self::LfsPointer => "`git lfs pull` in its repository fetches the file itself",
            Self::Html => {
                "a browser's page was saved in its place (a login, a warning, an error): download the file itself"
            }
            Self::Xml => {
                "a server's message may have been saved in its place: look into it, and download the file again"
            }
            Self::Gzip => "unpack it with `gunzip` (a .tar.gz with `tar -xzf`)",
            Self::Zstandard => "unpack it with `unzstd`",
            Self::Feather => "save it with pandas' `to_parquet` or `to_csv`",
            Self::Parquet => "a table belongs where a table is asked for, under a name that ends in .parquet",
            Self::Pdf => "save its pages as PNG or JPEG",
            Self::Hdf5 => "convert it to safetensors with the library that wrote it",
            Self::Utf16 => "save it as UTF-8",
        })
    }

    /// Refuses a file whose first bytes are `head` if it is one of these.
    ///
    /// # Errors
    /// As [`Self::error`] says.
    pub fn refuse(path: &Path, head: &[u8], wanted: &str) -> Result<()> {
        Self::of(head).map_or(Ok(()), |foreign| Err(foreign.error(path.display(), wanted)))
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Self::Empty => "an empty file (0 bytes)",
            Self::LfsPointer => "a Git LFS pointer, not the file it stands for",
            Self::Html => "an HTML page",
            Self::Xml => "an XML document",
            Self::Gzip => "a gzip file",
            Self::Zstandard => "a Zstandard file",
            Self::Feather => "a feather file (Arrow)",
            Self::Parquet => "a parquet file",
            Self::Pdf => "a PDF document",
            Self::Hdf5 => "an HDF5 file",
            Self::Utf16 => "UTF-16 text",
        })
    }
}

/// The error for a path that is a URL (`https://…`, `s3://…`), in the words it was written in; `None` for any other.
/// `wanted` is what should lie there, for example "an image file".
pub fn url(written: &str, wanted: &str) -> Option<Error> {
    let (scheme, _) = written.split_once("://")?;
    let named = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter));
    let hint = match scheme.to_ascii_lowercase().as_str() {
        "file" => "write the path alone, without file://",
        "http" | "https" => "download first (img2dataset does it for lists of images), and give the local paths",
        _ => "copy it to a local disk or mount the store, and give the local paths",
    };
    named.then(|| Error::data(format!("`{written}` is a URL, wanted {wanted}: only local files are read")).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_told_by_its_first_bytes() {
        let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
        let cases: [(&[u8], Option<Foreign>); 12] = [
            (b"", Some(Foreign::Empty)),
            (lfs, Some(Foreign::LfsPointer)),
            (b"\xef\xbb\xbf \n<!DOCTYPE html><html>", Some(Foreign::Html)),
            (b"<?xml version=\"1.0\"?><Error>", Some(Foreign::Xml)),
            (b"\x1f\x8b\x08\0\0\0\0\0\0", Some(Foreign::Gzip)),
            // A safetensors header of 0x088b1f bytes.
            (b"\x1f\x8b\x08\0\0\0\0\0{\"a\"", None),
            (b"ARROW1\0\0", Some(Foreign::Feather)),
            (b"PAR1", Some(Foreign::Parquet)),
            (b"\xff\xfea\0", Some(Foreign::Utf16)),
            (b"\xff\xd8\xff\xe0", None),
            (b"prompt,path\n", None),
            (b"PK\x03\x04", None),
        ];
        for (head, wanted) in cases {
            assert_eq!(Foreign::of(head), wanted, "{}", head.escape_ascii());
        }
        let error = Foreign::of(lfs).unwrap().error("m.safetensors", "weights");
        assert_eq!(error.to_string(), "m.safetensors is a Git LFS pointer, not the file it stands for, wanted weights");
        assert!(error.hint_text().unwrap().contains("git lfs pull"));
    }

    #[test]
    fn a_url_is_shown_as_it_was_written() {
        let error = url("https://example.org/a.png?w=512", "an image file").unwrap();
        assert!(error.to_string().starts_with("`https://example.org/a.png?w=512` is a URL, wanted an image file"));
        for local in ["a.png", "/a/b.png", "C:\\a.png", "a b://c.png", "://x", "images/1://2.png"] {
            assert!(url(local, "an image file").is_none(), "{local}");
        }
        assert!(url("s3://bucket/a.png", "x").is_some() && url("file:///a.png", "x").is_some());
    }
}
