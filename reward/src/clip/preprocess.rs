//! Preprocessing of image files, pixel for pixel as OpenAI's transform does it on Pillow. A file is resized (as [`Preprocessing`]
//! says, in its own mode), cropped or filled up, and only then converted to RGB.
//!
//! Reference: `_transform` in `clip/clip.py` (openai-clip 1.0.1), `Resize` and `CenterCrop` of torchvision 0.26, `Resample.c`,
//! `Geometry.c` and `Convert.c` of Pillow 13.0. Deviations: nothing outside the crop is computed, so a picture of 5000 × 20 never
//! becomes one of 56000 × 224. The pixels are the same. A picture with a palette is filled up with the colour that was asked for,
//! not with the palette's entry of that number.

use fast_image_resize::images::Image;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::{
    filter::{Filter, nearest_sources},
    preprocessing::Preprocessing,
    side::Side,
};
use crate::Result;
use crate::data::image::{DecodeOptions, Decoded, Mode, Picture, decode};

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

/// Decodes an image file held in memory and preprocesses it for a model of `size` × `size` pixels. `label` names it in
/// errors.
///
/// # Errors
/// Those of [`decode`].
pub fn load(bytes: &[u8], label: &str, size: u32, how: &Preprocessing, options: &DecodeOptions) -> Result<Loaded> {
    let Decoded { picture, truncated, clipped_16_bit } = decode(bytes, label, options)?;
    let pixels = preprocess(&picture, size, how);
    #[cfg(feature = "turbojpeg")]
    picture.recycle();
    Ok(Loaded { pixels, truncated, clipped_16_bit })
}

/// RGB bytes, row by row, size × size × 3: resized and cropped or filled up, not yet normalised.
pub fn preprocess(picture: &Picture, size: u32, how: &Preprocessing) -> Vec<u8> {
    let [columns, rows] = how.sides(picture.width(), picture.height(), size);
    let kept = resampled(picture, columns, rows, how.filter);
    if columns.size == size && rows.size == size {
        return kept;
    }
    let fill = match picture.mode {
        // Ink, of which there is as much of each colour and of black.
        Mode::Cmyk => cmyk_to_rgb(&[how.fill(); 4])[0],
        _ => how.fill(),
    };
    let row_length = size as usize * 3;
    let mut square = vec![fill; size as usize * row_length];
    let (left, top) = (columns.margins(size)[0] as usize * 3, rows.margins(size)[0] as usize);
    for (row, pixels) in square.chunks_mut(row_length).skip(top).zip(kept.chunks(columns.size as usize * 3)) {
        row[left..left + pixels.len()].copy_from_slice(pixels);
    }
    square
}

/// RGB bytes, row by row, height × width × 3: the picture as it is. Not for pictures decoded at a fraction of their size.
pub fn rgb(picture: &Picture) -> Vec<u8> {
    resampled(picture, Side::whole(picture.width()), Side::whole(picture.height()), Filter::Bicubic)
}

/// RGB bytes of what is kept of either side.
fn resampled(picture: &Picture, columns: Side, rows: Side, filter: Filter) -> Vec<u8> {
    let convolution = match picture.mode {
        Mode::Bilevel | Mode::Palette => None,
        _ => filter.convolution(),
    };
    let pixels = match convolution {
        Some(convolution) => convolved(picture, columns, rows, convolution),
        None => nearest(picture, columns, rows),
    };
    match picture.mode {
        Mode::Bilevel | Mode::Grey => grey_to_rgb(pixels),
        Mode::Palette | Mode::Rgb => pixels,
        Mode::Grey16 => grey_to_rgb(pixels.as_chunks().0.iter().copied().map(clip_to_byte)),
        Mode::GreyAlpha => grey_to_rgb(pixels.into_iter().step_by(2)),
        Mode::Rgbx | Mode::Rgba => pixels.as_chunks::<4>().0.iter().flat_map(|[r, g, b, _]| [*r, *g, *b]).collect(),
        Mode::Cmyk => pixels.as_chunks().0.iter().flat_map(cmyk_to_rgb).collect(),
    }
}

/// A filter of the resizing crate, and how far it reaches.
type Convolution = (FilterType, f64);

/// What is kept of the resized picture, in its mode.
fn convolved(picture: &Picture, columns: Side, rows: Side, filter: Convolution) -> Vec<u8> {
    let resized = columns.is_resized() || rows.is_resized();
    match picture.mode {
        Mode::GreyAlpha if resized => convolved_with_alpha::<2>(&picture.pixels, columns, rows, filter),
        Mode::Rgba if resized => convolved_with_alpha::<4>(&picture.pixels, columns, rows, filter),
        _ => convolve(&picture.pixels, columns, rows, picture.shrink, filter, u16::MAX),
    }
}

/// Alpha weighs the other channels before the resize, and is divided out of them after it.
///
/// The division blows up differences of a single level where alpha is small. So this one resizes in 16 bit, whose
/// passes round as exactly as Pillow's do; those in 8 bit work with coarser weights.
fn convolved_with_alpha<const CHANNELS: usize>(
    source: &Image<'_>,
    columns: Side,
    rows: Side,
    filter: Convolution,
) -> Vec<u8> {
    let pixel_type = if CHANNELS == 2 { PixelType::U16x2 } else { PixelType::U16x4 };
    let mut weighted = Image::new(source.width(), source.height(), pixel_type);
    let values = weighted.buffer_mut().as_chunks_mut::<2>().0.as_chunks_mut::<CHANNELS>().0;
    for (pixel, weighted) in source.buffer().as_chunks::<CHANNELS>().0.iter().zip(values) {
        let alpha = pixel[CHANNELS - 1];
        *weighted = pixel.map(|value| u16::from(scaled(value, alpha)).to_ne_bytes());
        weighted[CHANNELS - 1] = u16::from(alpha).to_ne_bytes();
    }
    let crop = convolve(&weighted, columns, rows, 1, filter, u16::from(u8::MAX));
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
fn convolve(
    source: &Image<'_>,
    columns: Side,
    rows: Side,
    shrink: u32,
    (filter, reach): Convolution,
    ceiling: u16,
) -> Vec<u8> {
    let [left, width] = columns.kept().map(|place| place / f64::from(shrink));
    let [top, height] = rows.kept().map(|place| place / f64::from(shrink));
    let support = reach * (height / f64::from(rows.size)).max(1.0);
    let first = (top - support).floor().max(0.0);
    let last = (top + height + support).ceil().min(f64::from(source.height()));

    let region = [left, first, width, last - first];
    let narrow = pass(source, columns.size, (last - first) as u32, region, filter, ceiling);
    let region = [0.0, top - first, f64::from(columns.size), height];
    pass(&narrow, columns.size, rows.size, region, filter, ceiling).into_vec()
}

/// Resizes a region (left, top, width, height) of the source.
fn pass(
    source: &Image<'_>,
    width: u32,
    height: u32,
    region: [f64; 4],
    filter: FilterType,
    ceiling: u16,
) -> Image<'static> {
    let [left, top, region_width, region_height] = region;
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(filter))
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

/// What is kept of the picture resized to the nearest pixels, in its mode.
fn nearest(picture: &Picture, columns: Side, rows: Side) -> Vec<u8> {
    let source = &picture.pixels;
    let size = source.pixel_type().size();
    // Of a picture decoded at a fraction of its size, the pixel that the nearest one went into.
    let decoded = |side: Side, length: u32| -> Vec<usize> {
        let place = |full: usize| full.div_euclid(picture.shrink as usize).min(length as usize - 1);
        nearest_sources(side).into_iter().map(place).collect()
    };
    let (columns, rows) = (decoded(columns, source.width()), decoded(rows, source.height()));
    let row_length = source.width() as usize * size;
    let pixels = rows.iter().flat_map(|row| columns.iter().map(move |column| row * row_length + column * size));
    pixels.flat_map(|start| &source.buffer()[start..start + size]).copied().collect()
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
