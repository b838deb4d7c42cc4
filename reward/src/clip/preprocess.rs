//! CLIP's preprocessing, pixel for pixel as OpenAI's transform does it on Pillow: resize the short side (bicubic, in the
//! mode of the file), crop the centre, and only then convert to RGB.
//!
//! Reference: `_transform` in `clip/clip.py` (openai-clip 1.0.1), `Resize` and `CenterCrop` of torchvision 0.26,
//! `Resample.c`, `Geometry.c` and `Convert.c` of Pillow 13.0. Deviation: nothing outside the crop is computed, so a
//! picture of 5000 × 20 never becomes one of 56000 × 224; the pixels are the same.

use fast_image_resize::images::Image;
use fast_image_resize::{FilterType, MulDiv, ResizeAlg, ResizeOptions, Resizer};

use crate::Result;
use crate::data::image::{DecodeOptions, Decoded, Mode, Picture, decode};

/// Mean of the red, green and blue values (0..=1) of CLIP's training pictures.
pub const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Their standard deviations.
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
    Ok(Loaded { pixels: preprocess(&picture, size), truncated, clipped_16_bit })
}

/// RGB bytes, row by row, size × size × 3: the short side resized to `size` pixels, the centre of the long one.
pub fn preprocess(picture: &Picture, size: u32) -> Vec<u8> {
    let short = picture.width().min(picture.height());
    let [columns, rows] = [picture.width(), picture.height()].map(|side| Side::new(side, short, size));
    match picture.mode {
        Mode::Bilevel => grey_to_rgb(nearest(&picture.pixels, columns, rows)),
        Mode::Palette => nearest(&picture.pixels, columns, rows),
        Mode::Grey => grey_to_rgb(bicubic(picture, columns, rows)),
        Mode::Grey16 => grey_to_rgb(bicubic(picture, columns, rows).chunks_exact(2).map(clip_to_byte)),
        Mode::GreyAlpha => grey_to_rgb(bicubic(picture, columns, rows).into_iter().step_by(2)),
        Mode::Rgb => bicubic(picture, columns, rows),
        Mode::Rgba => {
            bicubic(picture, columns, rows).chunks_exact(4).flat_map(|rgba| [rgba[0], rgba[1], rgba[2]]).collect()
        }
        Mode::Cmyk => bicubic(picture, columns, rows).chunks_exact(4).flat_map(cmyk_to_rgb).collect(),
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

/// Crop of the bicubically resized picture, in its mode. Alpha weighs the colours of a resize and is undone after it.
fn bicubic(picture: &Picture, columns: Side, rows: Side) -> Vec<u8> {
    let has_alpha = matches!(picture.mode, Mode::GreyAlpha | Mode::Rgba);
    if !has_alpha || !(columns.is_resized() || rows.is_resized()) {
        return convolve(&picture.pixels, columns, rows, picture.shrink);
    }
    let mut weighted = Image::new(picture.width(), picture.height(), picture.pixels.pixel_type());
    MulDiv::new().multiply_alpha(&picture.pixels, &mut weighted).expect("both have this size and an alpha channel");
    let mut crop = convolve(&weighted, columns, rows, picture.shrink);
    for pixel in crop.chunks_exact_mut(picture.pixels.pixel_type().size()) {
        if let [colours @ .., alpha] = pixel
            && *alpha > 0
        {
            colours.iter_mut().for_each(|value| {
                *value = (255 * u32::from(*value)).div_euclid(u32::from(*alpha)).min(255) as u8;
            });
        }
    }
    crop
}

/// Horizontal, then vertical pass with a rounding between them, as Pillow makes them. Of the source only the rows are
/// read that the crop depends on. `shrink`: the file's pixels per source pixel.
fn convolve(source: &Image<'_>, columns: Side, rows: Side, shrink: u32) -> Vec<u8> {
    const BICUBIC_SUPPORT: f64 = 2.0;
    let [left, width] = columns.kept().map(|place| place / f64::from(shrink));
    let [top, height] = rows.kept().map(|place| place / f64::from(shrink));
    let support = BICUBIC_SUPPORT * (height / f64::from(rows.size)).max(1.0);
    let first = (top - support).floor().max(0.0);
    let last = (top + height + support).ceil().min(f64::from(source.height()));

    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom)).use_alpha(false);
    let mut resizer = Resizer::new();
    let mut narrow = Image::new(columns.size, (last - first) as u32, source.pixel_type());
    resizer
        .resize(source, &mut narrow, &options.crop(left, first, width, last - first))
        .expect("the columns kept lie within the picture");
    let mut crop = Image::new(columns.size, rows.size, source.pixel_type());
    resizer
        .resize(&narrow, &mut crop, &options.crop(0.0, top - first, f64::from(columns.size), height))
        .expect("the rows kept lie within the picture");
    crop.into_vec()
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
fn clip_to_byte(value: &[u8]) -> u8 {
    u16::from_ne_bytes([value[0], value[1]]).min(255) as u8
}

/// Pillow's CMYK to RGB: what ink and black leave of the light, each 255 = full ink.
fn cmyk_to_rgb(cmyk: &[u8]) -> [u8; 3] {
    let light = 255 - u32::from(cmyk[3]);
    [cmyk[0], cmyk[1], cmyk[2]].map(|ink| {
        let product = u32::from(ink) * light + 128;
        // product / 255, rounded
        (light - ((product + (product >> 8)) >> 8)) as u8
    })
}

#[cfg(test)]
mod tests;
