//! JPEG through libjpeg-turbo, or without it through the `image` crate.

use std::io::{BufRead, ErrorKind, Seek, SeekFrom};

#[cfg(feature = "turbojpeg")]
use std::cell::RefCell;

#[cfg(feature = "turbojpeg")]
use turbojpeg::{Colorspace, Decompressor, Error, Image, PixelFormat, ScalingFactor};

#[cfg(feature = "turbojpeg")]
use super::{Mode, scratch};
use super::{Picture, other};

/// Width and height from the first frame header, wherever the metadata before it ends.
pub(super) fn dimensions(mut reader: impl BufRead + Seek) -> Result<(u32, u32), String> {
    frame_size(&mut reader).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => "it ends within its header".to_owned(),
        _ => error.to_string(),
    })
}

fn frame_size(reader: &mut (impl BufRead + Seek)) -> std::io::Result<(u32, u32)> {
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
            let mut frame = [0; 5];
            reader.read_exact(&mut frame)?;
            let [_, height, height_low, width, width_low] = frame.map(u32::from);
            return Ok((width << 8 | width_low, height << 8 | height_low));
        }
        reader.seek_relative(i64::from(u16::from_be_bytes(segment)).saturating_sub(2).max(0))?;
        byte[0] = 0;
    }
}

/// The picture and whether its file was cut off. `fast_for`: see [`super::DecodeOptions::fast_for`].
#[cfg(feature = "turbojpeg")]
pub(super) fn decode(bytes: &[u8], fast_for: Option<u32>) -> Result<(Picture, bool), String> {
    thread_local! {
        /// Made once a thread.
        static DECOMPRESSOR: RefCell<Option<Decompressor>> = const { RefCell::new(None) };
    }
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(Decompressor::new().map_err(|error| error.to_string())?),
        };
        decode_with(decompressor, bytes, fast_for)
    })
}

#[cfg(feature = "turbojpeg")]
fn decode_with(
    decompressor: &mut Decompressor,
    bytes: &[u8],
    fast_for: Option<u32>,
) -> Result<(Picture, bool), String> {
    let Ok(header) = decompressor.read_header(bytes) else {
        // An oddity in the header that Pillow only warns about (an unknown JFIF revision) is an error of this call.
        return decode_portable(bytes);
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
    let truncated =
        match decompressor.decompress(bytes, Image { pixels: &mut pixels[..], width, pitch, height, format }) {
            Ok(()) => false,
            // Warnings come as errors too, but with the picture complete; libjpeg keeps the first one.
            Err(Error::TurboJpegError(warning)) if WARNINGS.iter().any(|known| warning.starts_with(known)) => {
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

fn decode_portable(bytes: &[u8]) -> Result<(Picture, bool), String> {
    let picture = other::decode(bytes, image::ImageFormat::Jpeg)?;
    // The end marker follows the last start of a scan, or the file was cut off.
    let position = |marker| bytes.windows(2).rposition(|pair| pair == [0xFF, marker]);
    Ok((picture, position(0xD9) < position(0xDA)))
}
