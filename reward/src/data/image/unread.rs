//! Formats of images that are not read, by their first bytes, so that messages can name them.

use crate::{Error, foreign::Foreign};

/// What a file is whose first bytes belong to none of the formats that are read.
pub(super) fn error(head: &[u8], label: &str) -> Error {
    const READ: &str = "JPEG, PNG, WebP, GIF, BMP and TIFF are read; convert other formats first";
    if let Some((name, hint)) = named(head) {
        return Error::data(format!("{label} is {name}, wanted an image in a format that is read")).hint(hint);
    }
    match Foreign::of(&head[..head.len().min(crate::foreign::HEAD)]) {
        Some(foreign) => foreign.error(label, "an image"),
        None => {
            let start = head[..head.len().min(12)].escape_ascii();
            Error::data(format!("{label}: wanted an image, found a file that starts with \"{start}\"")).hint(READ)
        }
    }
}

/// Name and way out.
fn named(head: &[u8]) -> Option<(&'static str, &'static str)> {
    const MAGICK: &str = "convert it first, for example with ImageMagick: `magick FILE FILE.png`";
    const HEIF: &str = "convert it first: `heif-convert FILE FILE.png` (libheif), or Pillow with pillow-heif";
    const RAW: &str = "develop it first, for example with darktable or dcraw, and save it as PNG or JPEG";
    const VIDEO: &str = "take pictures out of it first, for example with ffmpeg: `ffmpeg -i FILE %05d.png`";
    const SVG: &str = "draw it first, for example with `rsvg-convert FILE -o FILE.png`";
    let after = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    let starts = |magics: &[&[u8]]| magics.iter().any(|magic| head.starts_with(magic));
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let says_svg = text.first() == Some(&b'<') && text.windows(4).take(1000).any(|four| four == b"<svg");
    Some(match head {
        _ if after(4, b"ftyp") => match head.get(8..12).unwrap_or_default() {
            b"avif" | b"avis" => {
                ("an AVIF picture", "convert it first: `avifdec FILE FILE.png`, or Pillow 11.3 or later")
            }
            b"heic" | b"heix" | b"hevc" | b"heim" | b"heis" | b"mif1" | b"msf1" => ("an HEIC picture", HEIF),
            b"crx " => ("a camera's raw file", RAW),
            _ => ("a video", VIDEO),
        },
        _ if starts(&[b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"]) => {
            ("a JPEG XL picture", "convert it first: `djxl FILE FILE.png`")
        }
        _ if starts(&[b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"]) => ("a JPEG 2000 picture", MAGICK),
        _ if starts(&[b"8BPS"]) => ("a Photoshop document", MAGICK),
        // No colour map: its five bytes are zero.
        _ if starts(&[b"\0\0\x02\0\0\0\0\0", b"\0\0\x0a\0\0\0\0\0"]) => ("a Targa picture (TGA)", MAGICK),
        _ if starts(&[b"\0\0\x01\0"]) => ("an icon (ICO)", MAGICK),
        _ if starts(&[b"\x76\x2f\x31\x01"]) => ("an OpenEXR picture", MAGICK),
        _ if starts(&[b"#?RADIANCE", b"#?RGBE"]) => ("a Radiance HDR picture", MAGICK),
        _ if starts(&[b"qoif"]) => ("a QOI picture", MAGICK),
        _ if starts(&[b"DDS "]) => ("a DDS texture", MAGICK),
        [b'P', b'1'..=b'7', b' ' | b'\t' | b'\r' | b'\n', ..] => ("a portable pixmap (PPM, PGM, PBM)", MAGICK),
        _ if starts(&[b"%!PS", b"\xc5\xd0\xd3\xc6"]) => ("a PostScript document", MAGICK),
        _ if starts(&[b"gimp xcf"]) => ("a GIMP document", "export it from GIMP as PNG"),
        _ if says_svg => ("an SVG drawing", SVG),
        _ if starts(&[b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"FOVb"]) => {
            ("a camera's raw file", RAW)
        }
        _ if starts(&[b"\x1a\x45\xdf\xa3", b"\0\0\x01\xba"]) || (starts(&[b"RIFF"]) && after(8, b"AVI ")) => {
            ("a video", VIDEO)
        }
        _ if starts(&[b"PK\x03\x04"]) => ("a ZIP archive", "unpack it with `unzip`"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_named_with_the_way_out() {
        let cases: [(&[u8], &str, &str); 23] = [
            (b"\0\0\0\x20ftypavif\0\0\0\0", "an AVIF picture", "avifdec"),
            (b"\0\0\0\x20ftypheic\0\0\0\0", "an HEIC picture", "heif-convert"),
            (b"\0\0\0\x20ftypmp42\0\0\0\0", "a video", "ffmpeg"),
            (b"\0\0\0\x18ftypcrx ", "a camera's raw file", "darktable"),
            (b"\xff\x0a\0\0", "a JPEG XL picture", "djxl"),
            (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture", "magick"),
            (b"8BPS\0\x01", "a Photoshop document", "magick"),
            (b"\0\0\x01\0\x01\0", "an icon (ICO)", "magick"),
            (b"\0\0\x02\0\0\0\0\0\0\0", "a Targa picture (TGA)", "magick"),
            (b"P6\n2 2\n255\n", "a portable pixmap", "magick"),
            (b"\x76\x2f\x31\x01", "an OpenEXR picture", "magick"),
            (b"%!PS-Adobe", "a PostScript document", "magick"),
            (b"<svg xmlns='x'/>", "an SVG drawing", "rsvg-convert"),
            (b"<?xml version='1.0'?>\n<!-- -->\n<svg/>", "an SVG drawing", "rsvg-convert"),
            (b"<?xml version='1.0'?><Error/>", "an XML document", "look into it"),
            (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "git lfs pull"),
            (b"<!DOCTYPE html><html>", "an HTML page", "download the file itself"),
            (b"%PDF-1.7", "a PDF document", "PNG or JPEG"),
            (b"PAR1", "a parquet file", "table"),
            (b"\x1f\x8b\x08\0", "a gzip file", "gunzip"),
            (b"PK\x03\x04", "a ZIP archive", "unzip"),
            (b"RIFF\0\0\0\0AVI LIST", "a video", "ffmpeg"),
            (b"not an image", "starts with \"not an image\"", "JPEG, PNG"),
        ];
        for (head, wanted, hint) in cases {
            let error = error(head, "a/b.jpg");
            assert!(error.to_string().contains(wanted) && error.to_string().starts_with("a/b.jpg"), "{error}");
            assert!(error.hint_text().unwrap().contains(hint), "{error}: {:?}", error.hint_text());
        }
    }
}
