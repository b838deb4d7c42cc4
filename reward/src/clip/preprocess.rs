//! CLIP's preprocessing, pixel for pixel as OpenAI's transform does it on Pillow: resize the short side (bicubic, in the
//! mode of the file), crop the centre, and only then convert to RGB.
//!
//! Reference: `_transform` in `clip/clip.py` (openai-clip 1.0.1), `Resize` and `CenterCrop` of torchvision 0.26,
//! `Resample.c`, `Geometry.c` and `Convert.c` of Pillow 13.0. Deviation: nothing outside the crop is computed, so a
//! picture of 5000 × 20 never becomes one of 56000 × 224; the pixels are the same.

use fast_image_resize::images::Image;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use crate::Result;
use crate::data::image::{DecodeOptions, Decoded, Mode, Picture, decode};

/// Mean of the red, green and blue values (0..=1) of CLIP's training pictures.
pub const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Their standard deviations.
#[allow(clippy::excessive_precision, reason = "the digits OpenAI wrote")]
pub const STD: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// A file's pixels, ready for the model but for normalisation.
#[derive(Debug)]
pub struct Loaded {
    /// RGB bytes, row by row: size × size × 3.
    pub pixels: Vec<u8>,
    /// The file ends too early; see [`crate::data::image::Decoded::truncated`].
    pub truncated: bool,
    /// 16-bit values above 255 turned white, as in Pillow.
    pub clipped_16_bit: bool,
}

/// Decodes an image file held in memory and preprocesses it. `label` names it in errors.
///
/// # Errors
/// Those of [`decode`].
pub fn load(bytes: &[u8], label: &str, size: u32, options: &DecodeOptions) -> Result<Loaded> {
    let Decoded { picture, truncated, clipped_16_bit } = decode(bytes, label, options)?;
    let pixels = preprocess(&picture, size);
    #[cfg(feature = "turbojpeg")]
    picture.recycle();
    Ok(Loaded { pixels, truncated, clipped_16_bit })
}

/// RGB bytes, row by row, size × size × 3: the short side resized to `size` pixels, the centre of the long one.
pub fn preprocess(picture: &Picture, size: u32) -> Vec<u8> {
    let short = picture.width().min(picture.height());
    let [columns, rows] = [picture.width(), picture.height()].map(|side| Side::new(side, short, size));
    cropped(picture, columns, rows)
}

/// RGB bytes, row by row, height × width × 3: the picture as it is. Not for pictures decoded at a fraction of their size.
pub fn rgb(picture: &Picture) -> Vec<u8> {
    let whole = |full| Side { full, resized: u64::from(full), offset: 0, size: full };
    cropped(picture, whole(picture.width()), whole(picture.height()))
}

fn cropped(picture: &Picture, columns: Side, rows: Side) -> Vec<u8> {
    match picture.mode {
        Mode::Bilevel => grey_to_rgb(nearest(&picture.pixels, columns, rows)),
        Mode::Palette => nearest(&picture.pixels, columns, rows),
        Mode::Grey => grey_to_rgb(bicubic(picture, columns, rows)),
        Mode::Grey16 => grey_to_rgb(bicubic(picture, columns, rows).as_chunks().0.iter().copied().map(clip_to_byte)),
        Mode::GreyAlpha => grey_to_rgb(bicubic(picture, columns, rows).into_iter().step_by(2)),
        Mode::Rgb => bicubic(picture, columns, rows),
        Mode::Rgbx | Mode::Rgba => {
            bicubic(picture, columns, rows).as_chunks::<4>().0.iter().flat_map(|[r, g, b, _]| [*r, *g, *b]).collect()
        }
        Mode::Cmyk => bicubic(picture, columns, rows).as_chunks().0.iter().flat_map(cmyk_to_rgb).collect(),
    }
}

/// A side of the picture, and the stretch of it that the crop keeps.
#[derive(Debug, Clone, Copy)]
struct Side {
    /// Pixels in the file.
    full: u32,
    /// Pixels the whole side has after resizing.
    resized: u64,
    /// The first of them that is kept.
    offset: u64,
    /// How many are kept.
    size: u32,
}

impl Side {
    /// `short` is the shorter side of the picture, the one that becomes `size` pixels.
    fn new(full: u32, short: u32, size: u32) -> Self {
        let resized = (u64::from(size) * u64::from(full)).div_euclid(u64::from(short));
        let surplus = resized - u64::from(size);
        let half = surplus >> 1;
        // Half of the surplus, and halves round to even.
        Self { full, resized, offset: half + (surplus & half & 1), size }
    }

    fn is_resized(&self) -> bool {
        self.resized != u64::from(self.full)
    }

    /// Start and length of the stretch, in the file's pixels.
    fn kept(&self) -> [f64; 2] {
        [self.offset as f64, f64::from(self.size)].map(|place| place * f64::from(self.full) / self.resized as f64)
    }
}

/// Crop of the bicubically resized picture, in its mode.
fn bicubic(picture: &Picture, columns: Side, rows: Side) -> Vec<u8> {
    let resized = columns.is_resized() || rows.is_resized();
    match picture.mode {
        Mode::GreyAlpha if resized => bicubic_with_alpha::<2>(&picture.pixels, columns, rows),
        Mode::Rgba if resized => bicubic_with_alpha::<4>(&picture.pixels, columns, rows),
        _ => convolve(&picture.pixels, columns, rows, picture.shrink, u16::MAX),
    }
}

/// Alpha weighs the other channels before the resize, and is divided out of them after it.
///
/// The division blows up differences of a single level where alpha is small. So this one resizes in 16 bit, whose
/// passes round as exactly as Pillow's do; those in 8 bit work with coarser weights.
fn bicubic_with_alpha<const CHANNELS: usize>(source: &Image<'_>, columns: Side, rows: Side) -> Vec<u8> {
    let pixel_type = if CHANNELS == 2 { PixelType::U16x2 } else { PixelType::U16x4 };
    let mut weighted = Image::new(source.width(), source.height(), pixel_type);
    let values = weighted.buffer_mut().as_chunks_mut::<2>().0.as_chunks_mut::<CHANNELS>().0;
    for (pixel, weighted) in source.buffer().as_chunks::<CHANNELS>().0.iter().zip(values) {
        let alpha = pixel[CHANNELS - 1];
        *weighted = pixel.map(|value| u16::from(scaled(value, alpha)).to_ne_bytes());
        weighted[CHANNELS - 1] = u16::from(alpha).to_ne_bytes();
    }
    let crop = convolve(&weighted, columns, rows, 1, u16::from(u8::MAX));
    let values = crop.as_chunks::<2>().0.as_chunks::<CHANNELS>().0;
    let pixels = values.iter().map(|pixel| pixel.map(u16::from_ne_bytes));
    pixels
        .flat_map(|pixel| match pixel[CHANNELS - 1] {
            0 => pixel,
            alpha => pixel.map(|value| (255 * u32::from(value)).div_euclid(u32::from(alpha)).min(255) as u16),
        })
        .map(|value| value as u8)
        .collect()
}

/// value · share / 255, rounded, as Pillow computes it.
fn scaled(value: u8, share: u8) -> u8 {
    let product = u32::from(value) * u32::from(share) + 128;
    ((product + (product >> 8)) >> 8) as u8
}

/// Horizontal, then vertical pass with a rounding between them, as Pillow makes them. Of the source only the rows are
/// read that the crop depends on. `shrink`: the file's pixels per source pixel. `ceiling`: what 16-bit values are cut
/// off at, after either pass.
fn convolve(source: &Image<'_>, columns: Side, rows: Side, shrink: u32, ceiling: u16) -> Vec<u8> {
    const BICUBIC_SUPPORT: f64 = 2.0;
    let [left, width] = columns.kept().map(|place| place / f64::from(shrink));
    let [top, height] = rows.kept().map(|place| place / f64::from(shrink));
    let support = BICUBIC_SUPPORT * (height / f64::from(rows.size)).max(1.0);
    let first = (top - support).floor().max(0.0);
    let last = (top + height + support).ceil().min(f64::from(source.height()));

    let narrow = pass(source, columns.size, (last - first) as u32, [left, first, width, last - first], ceiling);
    pass(&narrow, columns.size, rows.size, [0.0, top - first, f64::from(columns.size), height], ceiling).into_vec()
}

/// Resizes a region (left, top, width, height) of the source.
fn pass(source: &Image<'_>, width: u32, height: u32, region: [f64; 4], ceiling: u16) -> Image<'static> {
    let [left, top, region_width, region_height] = region;
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
        .crop(left, top, region_width, region_height)
        .use_alpha(false);
    let mut target = Image::new(width, height, source.pixel_type());
    Resizer::new().resize(source, &mut target, &options).expect("the region lies within the picture");
    if ceiling < u16::MAX {
        for value in target.buffer_mut().as_chunks_mut::<2>().0 {
            *value = u16::from_ne_bytes(*value).min(ceiling).to_ne_bytes();
        }
    }
    target
}

/// Crop of the picture resized to the nearest pixels.
fn nearest(source: &Image<'_>, columns: Side, rows: Side) -> Vec<u8> {
    let size = source.pixel_type().size();
    let [columns, rows] = [columns, rows].map(nearest_sources);
    let row_length = source.width() as usize * size;
    let pixels = rows.iter().flat_map(|row| columns.iter().map(move |column| row * row_length + column * size));
    pixels.flat_map(|start| &source.buffer()[start..start + size]).copied().collect()
}

/// The source pixel of every pixel kept. Pillow adds step to step, rounding errors included.
fn nearest_sources(side: Side) -> Vec<usize> {
    let step = f64::from(side.full) / side.resized as f64;
    let positions = std::iter::successors(Some(step * 0.5), |position| Some(position + step));
    let kept = positions.skip(side.offset as usize).take(side.size as usize);
    kept.map(|position| (position as usize).min(side.full as usize - 1)).collect()
}

/// Every value three times.
fn grey_to_rgb(values: impl IntoIterator<Item = u8>) -> Vec<u8> {
    values.into_iter().flat_map(|value| [value; 3]).collect()
}

/// A 16-bit value as Pillow converts it to RGB: cut off at 255, not scaled.
fn clip_to_byte(value: [u8; 2]) -> u8 {
    u16::from_ne_bytes(value).min(255) as u8
}

/// Pillow's CMYK to RGB: what ink and black leave of the light; 255 = full ink.
fn cmyk_to_rgb(&[cyan, magenta, yellow, black]: &[u8; 4]) -> [u8; 3] {
    let light = 255 - black;
    [cyan, magenta, yellow].map(|ink| light - scaled(ink, light))
}

#[cfg(test)]
mod tests;
