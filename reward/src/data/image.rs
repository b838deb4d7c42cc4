//! Image files decoded as Pillow opens them: in the mode of the file, which decides how resizing treats them.
//!
//! JPEG goes through libjpeg-turbo (Pillow's decoder, so the pixels are the same), or through the `image` crate without
//! the `turbojpeg` feature; PNG, GIF and TIFF through the crates of these names, whose samples come before any conversion;
//! WebP through `image`; BMP is read here. What is not decoded as Pillow does is refused by name.
//!
//! Reference: Pillow 13.0, `PIL/*ImagePlugin.py`.

#[cfg(feature = "turbojpeg")]
use std::cell::Cell;

use fast_image_resize::PixelType;
use fast_image_resize::images::Image;

use crate::{Error, Result};

mod bmp;
mod budget;
mod gif;
mod jpeg;
mod orientation;
mod png;
mod tiff;
mod unread;
mod webp;

pub use png::is_whole as png_is_whole;

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
    /// The part of the memory for decoding that it takes.
    share: Option<budget::Share<'static>>,
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
        Ok(Self { mode, pixels, shrink, width: full[0], height: full[1], share: None })
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

/// The formats that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JPEG, also the first picture of an MPO.
    Jpeg,
    /// PNG; of an animation the picture that all programs show.
    Png,
    /// GIF, the first frame.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF, the first page.
    Tiff,
    /// WebP, the first frame.
    WebP,
}

impl Format {
    /// The format, by the magic bytes.
    fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Some(Self::Jpeg),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(Self::Tiff),
            [b'B', b'M', ..] => Some(Self::Bmp),
            _ if bytes.starts_with(b"\x89PNG\r\n\x1a\n") => Some(Self::Png),
            _ => None,
        }
    }
}

/// What the first bytes of a file say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The format, by its magic bytes.
    pub format: Format,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl Header {
    /// Width times height.
    pub fn pixels(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// Refuses pictures of more than `max_pixels`.
    ///
    /// # Errors
    /// Names the file, its size and the limit.
    pub fn check_pixels(&self, label: &str, max_pixels: u64) -> Result<()> {
        let (Self { width, height, .. }, pixels) = (self, self.pixels());
        if pixels <= max_pixels {
            return Ok(());
        }
        Err(Error::data(format!("{label}: {width} x {height} is {pixels} pixels, more than the limit of {max_pixels}"))
            .hint("if the picture is meant to be that large, raise the limit with --max-pixels"))
    }
}

/// Decodes a file held in memory. `label` names it in errors.
///
/// All threads share one budget of memory, half of what is free when the first picture is decoded. A picture waits until it fits
/// in, and one that is larger than the budget is decoded alone.
///
/// # Errors
/// The bytes are no image, of a format or a kind that is not read, or larger than [`DecodeOptions::max_pixels`]. Or
/// they are damaged beyond the truncations that [`Decoded::truncated`] tells of.
pub fn decode(bytes: &[u8], label: &str, options: &DecodeOptions) -> Result<Decoded> {
    let header = probe(bytes, label)?;
    header.check_pixels(label, options.max_pixels)?;
    let share = budget::share_for(header.pixels());
    let (picture, truncated) = match header.format {
        Format::Jpeg => jpeg::decode(bytes, options.fast_for),
        Format::Png => png::decode(bytes),
        Format::Gif => gif::decode(bytes).map(whole),
        Format::Bmp => bmp::decode(bytes).map(whole),
        Format::Tiff => tiff::decode(bytes).map(whole),
        Format::WebP => webp::decode(bytes).map(whole),
    }
    .map_err(|reason| unreadable(label, header.format, &reason))?;
    // The orientation of a TIFF is applied always, as by Pillow.
    let turned = options.exif_rotate && header.format != Format::Tiff;
    let mut picture = if turned { orientation::upright(picture, bytes) } else { picture };
    picture.share = Some(share);
    Ok(Decoded { clipped_16_bit: picture.clips(), picture, truncated })
}

fn whole(picture: Picture) -> (Picture, bool) {
    (picture, false)
}

/// A picture of colours looked up in a palette of RGB triples; an index beyond it is black, as in Pillow.
fn indexed(width: u32, height: u32, indices: &[u8], palette: &[u8]) -> Result<Picture, String> {
    let (colours, _) = palette.as_chunks::<3>();
    if colours.len() > 256 {
        return Err(format!("its palette has {} colours, wanted 256 at most", colours.len()));
    }
    let colours: [[u8; 3]; 256] = std::array::from_fn(|index| colours.get(index).copied().unwrap_or_default());
    let mut samples = Vec::with_capacity(3 * indices.len());
    for index in indices {
        samples.extend_from_slice(&colours[usize::from(*index)]);
    }
    Picture::new(Mode::Palette, width, height, samples)
}

/// Reads format and size from the head of a file, without decoding it.
///
/// # Errors
/// The bytes are no image, of a format that is not read, or end within the header.
pub fn probe(bytes: &[u8], label: &str) -> Result<Header> {
    let format = Format::of(bytes).ok_or_else(|| unread::error(bytes, label))?;
    let (width, height) = match format {
        Format::Jpeg => jpeg::dimensions(bytes),
        Format::Png => png::dimensions(bytes),
        Format::Gif => gif::dimensions(bytes),
        Format::Bmp => bmp::dimensions(bytes),
        Format::Tiff => tiff::dimensions(bytes),
        Format::WebP => webp::dimensions(bytes),
    }
    .and_then(
        |size| if size.0 > 0 && size.1 > 0 { Ok(size) } else { Err(format!("its size is {} x {}", size.0, size.1)) },
    )
    .map_err(|reason| unreadable(label, format, &reason))?;
    Ok(Header { format, width, height })
}

fn unreadable(label: &str, format: Format, reason: &str) -> Error {
    // Some decoders speak in several lines.
    let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    Error::data(format!("{label}: cannot read it as {format:?}: {reason}"))
}

#[cfg(test)]
#[cfg(feature = "turbojpeg")]
mod formats;
#[cfg(test)]
mod tests;
