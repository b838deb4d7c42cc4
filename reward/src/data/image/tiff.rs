//! TIFF of the kinds that are common, in Pillow's modes; the others are refused by name.
//!
//! Reference: `OPEN_INFO` in `PIL/TiffImagePlugin.py` of Pillow 13.0, and its `_setup`. The first page is read. Its
//! orientation is applied, as Pillow does for this format alone.

use std::{
    io::{Cursor, ErrorKind},
    panic::{AssertUnwindSafe, catch_unwind},
};

use ::tiff::{
    TiffError,
    decoder::{Decoder, Limits},
    tags::Tag,
};

use super::{Mode, Picture, orientation};

/// Width and height, turned as the orientation says.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), String> {
    let (_, page) = open(bytes)?;
    page.layout()?;
    Ok(if page.orientation >= 5 { (page.height, page.width) } else { (page.width, page.height) })
}

/// The first page.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, String> {
    let (mut decoder, page) = open(bytes)?;
    let (mode, layout) = page.layout()?;
    let buffer = decoder.image_buffer_layout().map_err(reason)?;
    let mut raw = vec![0; buffer.complete_len];
    // `tiff` asserts what a damaged file may break.
    catch_unwind(AssertUnwindSafe(|| decoder.read_image_bytes(&mut raw)))
        .map_err(|_| "its tags contradict one another")?
        .map_err(reason)?;
    drop(decoder);

    let pixels = page.width as usize * page.height as usize;
    let bytes_per_sample = usize::from(page.bits >> 3).max(1);
    if page.planar == 2 && page.samples > 1 {
        raw = interleaved(&raw, pixels * bytes_per_sample, bytes_per_sample);
    }
    let raw = match layout {
        Layout::Packed => unpacked(&raw, page.width as usize, page.bits),
        Layout::Samples if page.bits == 16 && mode != Mode::Grey16 => high_bytes(&raw),
        Layout::Samples => raw,
        Layout::First { of } => raw.into_iter().step_by(of).collect(),
        Layout::WeighedByAlpha => {
            let mut samples = if page.bits == 16 { high_bytes(&raw) } else { raw };
            samples.as_chunks_mut::<4>().0.iter_mut().for_each(divide_by_alpha);
            samples
        }
    };
    let picture = Picture::new(mode, page.width, page.height, raw)?;
    Ok(if page.orientation > 1 { orientation::oriented(picture, page.orientation) } else { picture })
}

/// How the samples of the file make those of the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Several to a byte.
    Packed,
    /// As they are; of 16 bits the high byte but for grey.
    Samples,
    /// The first of so many.
    First { of: usize },
    /// Colours multiplied by alpha.
    WeighedByAlpha,
}

/// What the tags of the first page say.
struct Page {
    width: u32,
    height: u32,
    /// 1 to 8, as in EXIF.
    orientation: u32,
    photometric: u16,
    /// Bits of every sample.
    bits: u16,
    samples: u16,
    extra: Vec<u16>,
    /// 1 whole, 2 signed, 3 real.
    format: u16,
    /// 1 pixel by pixel, 2 plane by plane.
    planar: u16,
    compression: u16,
    predictor: u16,
    is_tiled: bool,
    /// 2: the first pixel is in the lowest bit.
    fill_order: u16,
}

/// A decoder of a file in memory, and what its first page is.
type Opened<'a> = (Decoder<Cursor<&'a [u8]>>, Page);

fn open(bytes: &[u8]) -> Result<Opened<'_>, String> {
    let mut limits = Limits::default();
    limits.intermediate_buffer_size = bytes.len();
    let decoder = Decoder::new(Cursor::new(bytes)).map_err(reason)?;
    let mut decoder = decoder.with_limits(limits);
    let (width, height) = decoder.dimensions().map_err(reason)?;
    let mut all = |tag: Tag| decoder.find_tag_unsigned_vec::<u16>(tag).map_err(reason);
    let bits = all(Tag::BitsPerSample)?.unwrap_or_default();
    let format = all(Tag::SampleFormat)?.unwrap_or_default();
    let extra = all(Tag::ExtraSamples)?.unwrap_or_default();
    let mut one =
        |tag: Tag, default: u16| Ok::<_, String>(all(tag)?.and_then(|all| all.first().copied()).unwrap_or(default));
    let orientation = u32::from(one(Tag::Orientation, 1)?);
    let page = Page {
        width,
        height,
        orientation: if (1..=8).contains(&orientation) { orientation } else { 1 },
        photometric: one(Tag::PhotometricInterpretation, 0)?,
        bits: bits.first().copied().unwrap_or(1),
        samples: one(Tag::SamplesPerPixel, 1)?,
        extra,
        format: format.first().copied().unwrap_or(1),
        planar: one(Tag::PlanarConfiguration, 1)?,
        compression: one(Tag::Compression, 1)?,
        predictor: one(Tag::Predictor, 1)?,
        is_tiled: one(Tag::TileWidth, 0)? > 0,
        fill_order: one(Tag::FillOrder, 1)?,
    };
    Ok((decoder, page))
}

fn reason(error: TiffError) -> String {
    match error {
        // No part of it may be longer than the file.
        TiffError::LimitsExceeded => "it is cut off".to_owned(),
        TiffError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => "it is cut off".to_owned(),
        other => other.to_string(),
    }
}

impl Page {
    /// The mode Pillow gives it.
    fn layout(&self) -> Result<(Mode, Layout), String> {
        match self.compression {
            1 | 5 | 8 | 32773 | 32946 => {}
            4 if self.bits == 1 => {}
            7 => return Err("its pixels are JPEGs, which are not read inside TIFF".to_owned()),
            other => return Err(format!("its compression {other} is not read")),
        }
        if self.fill_order != 1 {
            return Err("its bits are in reversed order (fill order 2), which is not read".to_owned());
        }
        let extra = &self.extra[..];
        let is_common = self.bits == 8 && matches!((self.samples, extra), (3, []) | (4, [2])) || self.photometric == 5;
        if self.planar == 2 && self.samples > 1 && (self.is_tiled || !is_common || self.bits != 8) {
            return Err("its colours lie in separate planes in a way that is not read".to_owned());
        }
        let found = match (self.photometric, self.format, self.bits, self.samples, extra) {
            (0 | 1, 1, 1, 1, []) => Some((Mode::Bilevel, Layout::Packed)),
            (0 | 1, 1, 2 | 4, 1, []) => Some((Mode::Grey, Layout::Packed)),
            (0 | 1, 1, 8, 1, []) => Some((Mode::Grey, Layout::Samples)),
            (1, 1, 16, 1, []) => Some((Mode::Grey16, Layout::Samples)),
            (1, 1, 8, 2, [0]) => Some((Mode::Grey, Layout::First { of: 2 })),
            (1, 1, 8, 2, [2]) => Some((Mode::GreyAlpha, Layout::Samples)),
            (2, 1, 8 | 16, 3, []) => Some((Mode::Rgb, Layout::Samples)),
            (2, 1, 8 | 16, 4, [0]) if self.predictor == 1 => Some((Mode::Rgb, Layout::Samples)),
            (2, 1, 8 | 16, 4, [] | [2]) => Some((Mode::Rgba, Layout::Samples)),
            (2, 1, 8 | 16, 4, [1]) => Some((Mode::Rgba, Layout::WeighedByAlpha)),
            (5, 1, 8 | 16, 4, []) => Some((Mode::Cmyk, Layout::Samples)),
            _ => None,
        };
        found.ok_or_else(|| {
            let Self { photometric, bits, samples, format, .. } = self;
            let format = match format {
                2 => " signed",
                3 => " floating-point",
                _ => "",
            };
            let kind = match photometric {
                0 | 1 => "grey",
                2 => "RGB",
                3 => "palette",
                5 => "CMYK",
                6 => "YCbCr",
                8..=10 => "Lab",
                _ => "other",
            };
            let extra = if extra.is_empty() { String::new() } else { format!(", extra samples of kind {extra:?}") };
            format!("{kind} pixels of {samples} x {bits}{format} bits{extra} are not read")
        })
    }
}

/// Plane after plane to pixel after pixel.
fn interleaved(planes: &[u8], plane: usize, bytes_per_sample: usize) -> Vec<u8> {
    let planes: Vec<&[u8]> = planes.chunks_exact(plane).collect();
    let pixels = (0..plane).step_by(bytes_per_sample);
    pixels.flat_map(|at| planes.iter().flat_map(move |plane| &plane[at..at + bytes_per_sample])).copied().collect()
}

fn high_bytes(samples: &[u8]) -> Vec<u8> {
    samples.as_chunks::<2>().0.iter().map(|sample| (u16::from_ne_bytes(*sample) >> 8) as u8).collect()
}

/// A byte of 0 to 255 for every sample of 1, 2 or 4 bits; rows are padded to whole bytes.
fn unpacked(rows: &[u8], width: usize, bits: u16) -> Vec<u8> {
    let bits = usize::from(bits);
    let most = (1_u16 << bits) - 1;
    let sample = move |row: &[u8], x: usize| {
        let value = u16::from(row[(x * bits) >> 3]) >> (8 - bits - (x * bits) % 8) & most;
        (value * 255_u16.div_euclid(most)) as u8
    };
    let rows = rows.chunks_exact((width * bits).div_ceil(8));
    rows.flat_map(|row| (0..width).map(move |x| sample(row, x))).collect()
}

/// As Pillow takes alpha out of its colours.
fn divide_by_alpha(pixel: &mut [u8; 4]) {
    let alpha = u32::from(pixel[3]);
    for value in &mut pixel[..3] {
        *value = (u32::from(*value) * 255).checked_div(alpha).unwrap_or(0).min(255) as u8;
    }
}
