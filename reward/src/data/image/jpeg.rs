//! JPEG through libjpeg-turbo, or without it through the `image` crate.

use std::io::{Cursor, ErrorKind, Read, Seek, SeekFrom};

#[cfg(feature = "turbojpeg")]
use turbojpeg::{Colorspace, Decompressor, Error, Image, PixelFormat, ScalingFactor};

#[cfg(feature = "turbojpeg")]
use super::scratch;
use super::{Mode, Picture};

/// Width and height from the first frame header, wherever the metadata before it ends.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), String> {
    let (size, bits, components) = frame(&mut Cursor::new(bytes)).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => "it ends within its header".to_owned(),
        _ => error.to_string(),
    })?;
    match (bits, components) {
        (8, 1 | 3 | 4) => Ok(size),
        (8, _) => Err(format!("it has {components} colour components, wanted 1, 3 or 4")),
        _ => Err(format!("its samples have {bits} bits, wanted 8")),
    }
}

/// Width and height, bits of a sample, number of colour components.
fn frame(reader: &mut Cursor<&[u8]>) -> std::io::Result<((u32, u32), u8, u8)> {
    let mut byte = [0];
    let mut segment = [0; 2];
    reader.seek(SeekFrom::Start(2))?;
    loop {
        // Any number of fill bytes may stand between segments, and a decoder skips stray bytes too.
        while byte[0] != 0xFF {
            reader.read_exact(&mut byte)?;
        }
        while byte[0] == 0xFF {
            reader.read_exact(&mut byte)?;
        }
        match byte[0] {
            // Stuffed zeros, markers without a body.
            0x00 | 0x01 | 0xD0..=0xD8 => continue,
            0xD9 | 0xDA => return Err(std::io::Error::other("it holds no frame header")),
            _ => reader.read_exact(&mut segment)?,
        }
        if matches!(byte[0], 0xC0..=0xCF) && !matches!(byte[0], 0xC4 | 0xC8 | 0xCC) {
            let mut frame = [0; 6];
            reader.read_exact(&mut frame)?;
            let [_, height, height_low, width, width_low, _] = frame.map(u32::from);
            return Ok(((width << 8 | width_low, height << 8 | height_low), frame[0], frame[5]));
        }
        reader.seek_relative(i64::from(u16::from_be_bytes(segment)).saturating_sub(2).max(0))?;
        byte[0] = 0;
    }
}

/// The picture and whether its file was cut off. `fast_for`: see [`super::DecodeOptions::fast_for`].
#[cfg(feature = "turbojpeg")]
pub(super) fn decode(bytes: &[u8], fast_for: Option<u32>) -> Result<(Picture, bool), String> {
    // Made for each picture: one that is used again keeps the tables of the picture before, for a file that lacks its own.
    let mut decompressor = Decompressor::new().map_err(|error| error.to_string())?;
    decode_with(&mut decompressor, bytes, fast_for)
}

#[cfg(feature = "turbojpeg")]
fn decode_with(
    decompressor: &mut Decompressor,
    bytes: &[u8],
    fast_for: Option<u32>,
) -> Result<(Picture, bool), String> {
    let header = match decompressor.read_header(bytes) {
        Ok(header) => header,
        // An oddity in the header that libjpeg, and so Pillow, only warns about is an error of this call.
        Err(error) => match with_plain_header(bytes) {
            Ok(plain) if plain != bytes => return decode_with(decompressor, &plain, fast_for),
            _ => return Err(error.to_string()),
        },
    };
    let (mode, format) = match header.colorspace {
        Colorspace::Gray => (Mode::Grey, PixelFormat::GRAY),
        Colorspace::CMYK | Colorspace::YCCK => (Mode::Cmyk, PixelFormat::CMYK),
        _ => (Mode::Rgbx, PixelFormat::RGBX),
    };
    let short = header.width.min(header.height);
    let shrink = match fast_for {
        Some(size) if !header.is_lossless => {
            [8, 4, 2].into_iter().find(|factor| short >= size as usize * factor).unwrap_or(1)
        }
        _ => 1,
    };
    let scaling = ScalingFactor::new(1, shrink);
    decompressor.set_scaling_factor(scaling).map_err(|error| error.to_string())?;
    let (width, height) = (scaling.scale(header.width), scaling.scale(header.height));
    let pitch = width * format.size();
    let mut pixels = scratch(height * pitch);
    let mut decompress =
        |pixels: &mut [u8]| decompressor.decompress(bytes, Image { pixels, width, pitch, height, format });
    let truncated = match decompress(&mut pixels) {
        Ok(()) => false,
        // Warnings come as errors too, but with the picture complete; libjpeg keeps the first one.
        Err(Error::TurboJpegError(warning)) if WARNINGS.iter().any(|known| warning.starts_with(known)) => {
            // An error may have followed it; then what was in this memory before must not be taken for pixels.
            pixels.fill(0);
            let _ = decompress(&mut pixels);
            warning.starts_with("Premature end")
        }
        Err(error) => return Err(error.to_string()),
    };
    if mode == Mode::Cmyk {
        // As in Adobe's files 255 is no ink; Pillow takes every CMYK JPEG for one of those.
        pixels.iter_mut().for_each(|ink| *ink = !*ink);
    }
    let full = [header.width as u32, header.height as u32];
    let picture = Picture::shrunk(mode, full, [width as u32, height as u32], shrink as u32, pixels)?;
    Ok((picture, truncated))
}

/// The file with a header that libjpeg does not warn about, and the meaning that libjpeg gives it after the warning.
#[cfg(feature = "turbojpeg")]
fn with_plain_header(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let (_, _, components) = frame(&mut Cursor::new(bytes))?;
    let mut plain = vec![0xFF, 0xD8];
    let mut place = 2;
    let end = || std::io::Error::other("it ends within its header");
    loop {
        let marker = bytes[place..].windows(2).position(|pair| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xFF));
        place += marker.ok_or_else(end)?;
        let name = bytes[place + 1];
        if name == 0xDA {
            plain.extend_from_slice(&bytes[place..]);
            return Ok(plain);
        }
        if matches!(name, 0x01 | 0xD0..=0xD9) {
            place += 2;
            continue;
        }
        let length =
            bytes.get(place + 2..place + 4).map(|length| u16::from_be_bytes([length[0], length[1]])).ok_or_else(end)?;
        let mut segment = bytes.get(place..place + 2 + usize::from(length)).ok_or_else(end)?.to_vec();
        place += segment.len().max(4);
        match (name, segment.get(4..)) {
            // Of any revision.
            (0xE0, Some([b'J', b'F', b'I', b'F', 0, _, _, ..])) => segment[9] = 1,
            // Where the transformation is not known, the usual one.
            (0xEE, Some([b'A', b'd', b'o', b'b', b'e', _, _, _, _, _, _, transformation, ..])) => {
                segment[15] = match (components, transformation) {
                    (_, 0) => 0,
                    (4, _) => 2,
                    _ => 1,
                };
            }
            (0xE0..=0xEF | 0xFE, _) => continue,
            _ => {}
        }
        plain.extend_from_slice(&segment);
    }
}

/// How the warnings of libjpeg (`JWRN_*` in `jerror.h`) begin: the picture is there nevertheless.
#[cfg(feature = "turbojpeg")]
const WARNINGS: [&str; 5] = [
    "Corrupt JPEG data",
    "Premature end of JPEG file",
    "Warning",
    "Invalid SOS parameters",
    "Inconsistent progression",
];

/// The picture and whether its file was cut off; always at full scale.
#[cfg(not(feature = "turbojpeg"))]
pub(super) fn decode(bytes: &[u8], _fast_for: Option<u32>) -> Result<(Picture, bool), String> {
    decode_portable(bytes)
}

#[cfg(not(feature = "turbojpeg"))]
fn decode_portable(bytes: &[u8]) -> Result<(Picture, bool), String> {
    let image =
        image::load_from_memory_with_format(bytes, image::ImageFormat::Jpeg).map_err(|error| error.to_string())?;
    let (width, height) = (image.width(), image.height());
    let picture = match image {
        image::DynamicImage::ImageLuma8(grey) => Picture::new(Mode::Grey, width, height, grey.into_raw()),
        image => Picture::new(Mode::Rgb, width, height, image.into_rgb8().into_raw()),
    }?;
    // The end marker follows the last start of a scan, or the file was cut off.
    let position = |marker| bytes.windows(2).rposition(|pair| pair == [0xFF, marker]);
    Ok((picture, position(0xD9) < position(0xDA)))
}
