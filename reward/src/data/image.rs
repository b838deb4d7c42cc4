//! Image files decoded as Pillow opens them: in the mode of the file, which decides how resizing treats them.
//!
//! JPEG goes through libjpeg-turbo (Pillow's decoder, so the pixels are the same), or through the `image` crate without
//! the `turbojpeg` feature; PNG through `png`, whose rows come before any conversion; the rest through `image`.
//!
//! Reference: Pillow 13.0, `PIL/{Image,JpegImagePlugin,PngImagePlugin,WebPImagePlugin}.py`.

#[cfg(feature = "turbojpeg")]
use std::cell::Cell;
use std::io::{BufRead, Cursor, Seek};

use fast_image_resize::PixelType;
use fast_image_resize::images::Image;
use image::ImageFormat;

use crate::{Error, Result};

mod jpeg;
mod orientation;
mod other;
mod png;

/// How to decode.
#[derive(Debug, Clone)]
pub struct DecodeOptions {
    /// Pictures of more pixels than this are an error before anything is decoded.
    pub max_pixels: u64,
    /// Turn and mirror the picture as its EXIF orientation says. Pillow, and so CLIP's own preprocessing, does not.
    pub exif_rotate: bool,
    /// Decode JPEG at 1/2, 1/4 or 1/8 in the DCT domain while the short side keeps at least this many pixels.
    pub fast_for: Option<u32>,
}

impl Default for DecodeOptions {
    /// Pillow's limit on decompression bombs (2 × `MAX_IMAGE_PIXELS`), no rotation, full scale.
    fn default() -> Self {
        Self { max_pixels: 2 * 89_478_485, exif_rotate: false, fast_for: None }
    }
}

/// The kind of pixels a file holds; Pillow's modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Pillow's `1`: black and white, kept as one byte of 0 or 255. Resized by the nearest pixel.
    Bilevel,
    /// Pillow's `L`: 8-bit grey.
    Grey,
    /// Pillow's `LA`: 8-bit grey and alpha.
    GreyAlpha,
    /// Pillow's `I;16`: 16-bit grey, native byte order.
    Grey16,
    /// Pillow's `P`, the colours looked up already, which changes nothing: it is resized by the nearest pixel.
    Palette,
    /// Pillow's `RGB`.
    Rgb,
    /// `RGB` with a fourth byte that means nothing: what JPEG is decoded to, for resizing takes a fifth to a third less time.
    Rgbx,
    /// Pillow's `RGBA`.
    Rgba,
    /// Pillow's `CMYK`, 255 = full ink.
    Cmyk,
}

impl Mode {
    fn pixel_type(self) -> PixelType {
        match self {
            Self::Bilevel | Self::Grey => PixelType::U8,
            Self::GreyAlpha => PixelType::U8x2,
            Self::Grey16 => PixelType::U16,
            Self::Palette | Self::Rgb => PixelType::U8x3,
            Self::Rgbx | Self::Rgba | Self::Cmyk => PixelType::U8x4,
        }
    }
}

/// A decoded picture in the mode of its file.
#[derive(Debug)]
pub struct Picture {
    pub(crate) mode: Mode,
    /// The pixels, row by row; smaller than the picture where the JPEG was decoded at a fraction of its size.
    pub(crate) pixels: Image<'static>,
    /// The file's pixels per decoded pixel along a side: 1, or 2, 4 or 8 after fast decoding.
    pub(crate) shrink: u32,
    width: u32,
    height: u32,
}

impl Picture {
    /// Samples row by row, height × width × channels of the mode.
    fn new(mode: Mode, width: u32, height: u32, samples: Vec<u8>) -> Result<Self, String> {
        Self::shrunk(mode, [width, height], [width, height], 1, samples)
    }

    /// Samples of a `decoded` width and height, for a picture of `full` width and height.
    fn shrunk(mode: Mode, full: [u32; 2], decoded: [u32; 2], shrink: u32, samples: Vec<u8>) -> Result<Self, String> {
        let pixels = if mode == Mode::Grey16 {
            // Only its own buffer is sure to be aligned for two-byte pixels.
            let mut pixels = Image::new(decoded[0], decoded[1], PixelType::U16);
            pixels.buffer_mut().copy_from_slice(&samples);
            pixels
        } else {
            Image::from_vec_u8(decoded[0], decoded[1], samples, mode.pixel_type()).map_err(|error| error.to_string())?
        };
        Ok(Self { mode, pixels, shrink, width: full[0], height: full[1] })
    }

    /// The kind of its pixels.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Width of the picture in the file, in pixels (after rotation, if that was asked for).
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height of the picture in the file, in pixels (after rotation, if that was asked for).
    pub fn height(&self) -> u32 {
        self.height
    }

    /// 16-bit values above 255, which the conversion to RGB cuts off as Pillow's does.
    fn clips(&self) -> bool {
        self.mode == Mode::Grey16
            && self.pixels.buffer().chunks_exact(2).any(|value| u16::from_ne_bytes([value[0], value[1]]) > 255)
    }
}

#[cfg(feature = "turbojpeg")]
thread_local! {
    /// The memory of this thread's last picture: fresh memory costs a page fault for every 4 KiB.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// `length` bytes of any value.
#[cfg(feature = "turbojpeg")]
fn scratch(length: usize) -> Vec<u8> {
    let mut bytes = SCRATCH.take();
    bytes.resize(length, 0);
    bytes
}

#[cfg(feature = "turbojpeg")]
impl Picture {
    /// Leaves its memory to the next picture of this thread, unless it is so large that few pictures need it.
    pub(crate) fn recycle(self) {
        const KEPT_BYTES: usize = 64 << 20;
        let bytes = self.pixels.into_vec();
        if bytes.capacity() <= KEPT_BYTES {
            SCRATCH.set(bytes);
        }
    }
}

/// A picture, and what is wrong with its file.
#[derive(Debug)]
pub struct Decoded {
    /// The picture.
    pub picture: Picture,
    /// The file ends too early. It was decoded as far as it goes; the rest is grey 128 (JPEG) or 0 (PNG).
    pub truncated: bool,
    /// The picture has 16-bit values above 255, which turn white at the conversion to RGB, as in Pillow.
    pub clipped_16_bit: bool,
}

/// What the first bytes of a file say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The format, by its magic bytes.
    pub format: ImageFormat,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl Header {
    /// Refuses pictures of more than `max_pixels`.
    ///
    /// # Errors
    /// Names the file, its size and the limit.
    pub fn check_pixels(&self, label: &str, max_pixels: u64) -> Result<()> {
        let Self { width, height, .. } = *self;
        let pixels = u64::from(width) * u64::from(height);
        if pixels <= max_pixels {
            return Ok(());
        }
        Err(Error::data(format!("{label}: {width} x {height} is {pixels} pixels, more than the limit of {max_pixels}"))
            .hint("if the picture is meant to be that large, raise the limit with --max-pixels"))
    }
}

/// Decodes a file held in memory. `label` names it in errors.
///
/// # Errors
/// The bytes are no image, of a format that is not read, damaged beyond the truncations that [`Decoded::truncated`]
/// tells of, or larger than [`DecodeOptions::max_pixels`].
pub fn decode(bytes: &[u8], label: &str, options: &DecodeOptions) -> Result<Decoded> {
    let header = probe(Cursor::new(bytes), label)?;
    header.check_pixels(label, options.max_pixels)?;
    let (picture, truncated) = match header.format {
        ImageFormat::Jpeg => jpeg::decode(bytes, options.fast_for),
        ImageFormat::Png => png::decode(bytes),
        format => other::decode(bytes, format).map(|picture| (picture, false)),
    }
    .map_err(|reason| unreadable(label, header.format, &reason))?;
    let picture = if options.exif_rotate { orientation::upright(picture, bytes) } else { picture };
    Ok(Decoded { clipped_16_bit: picture.clips(), picture, truncated })
}

/// Reads format and size from the head of a file, without decoding it.
///
/// # Errors
/// The bytes are no image, of a format that is not read, or end within the header.
pub fn probe(mut reader: impl BufRead + Seek, label: &str) -> Result<Header> {
    let magic = reader.fill_buf().map_err(|error| Error::data(format!("{label}: {error}")))?;
    if magic.is_empty() {
        return Err(Error::data(format!("{label}: wanted an image, found an empty file")));
    }
    let format = image::guess_format(magic).ok().filter(ImageFormat::reading_enabled).ok_or_else(|| {
        let start = magic[..magic.len().min(12)].escape_ascii();
        Error::data(format!("{label}: wanted an image, found a file that starts with \"{start}\""))
            .hint("JPEG, PNG, WebP, GIF, BMP and TIFF are read; convert other formats first")
    })?;
    let (width, height) = match format {
        ImageFormat::Jpeg => jpeg::dimensions(reader),
        format => image::ImageReader::with_format(reader, format).into_dimensions().map_err(|error| error.to_string()),
    }
    .and_then(
        |size| if size.0 > 0 && size.1 > 0 { Ok(size) } else { Err(format!("its size is {} x {}", size.0, size.1)) },
    )
    .map_err(|reason| unreadable(label, format, &reason))?;
    Ok(Header { format, width, height })
}

fn unreadable(label: &str, format: ImageFormat, reason: &str) -> Error {
    Error::data(format!("{label}: cannot read it as {format:?}: {reason}"))
}

#[cfg(test)]
mod tests;
