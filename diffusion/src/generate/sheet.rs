//! A contact sheet: every image small, a row for every prompt; with one image a prompt, a square of them.

use std::{io::Cursor, path::Path};

use image::{ImageFormat, RgbImage, imageops};
use reward::files::replace_file;

use super::plan::PlannedImage;
use crate::{Error, Result};

/// Longer side of an image on the sheet, in pixels, where there are few.
const LARGE: u32 = 256;
/// What the sheet may have in all: larger runs get smaller images.
const PIXELS: u64 = 64 << 20;
/// White around every image, in pixels.
const GAP: u32 = 4;

/// How a sheet is laid out.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    columns: u32,
    rows: u32,
    width: u32,
    height: u32,
}

fn layout(images: usize, images_per_prompt: usize, (width, height): (u32, u32)) -> Layout {
    let columns = if images_per_prompt > 1 { images_per_prompt } else { (images as f64).sqrt().ceil() as usize };
    let rows = images.div_ceil(columns);
    let shrunk = |longest: f64| {
        let scale = (longest / f64::from(width.max(height))).min(1.0);
        let side = |side: u32| ((f64::from(side) * scale) as u32).max(1);
        (side(width), side(height))
    };
    let longest = (PIXELS as f64 / (columns * rows) as f64).sqrt().min(f64::from(LARGE));
    let (width, height) = shrunk(longest);
    Layout { columns: columns as u32, rows: rows as u32, width, height }
}

/// Writes the sheet of a run's images, which are all in `folder`. `size` is width and height in pixels.
///
/// # Errors
/// An image cannot be read, or the disk is full or not writable.
pub(super) fn write(folder: &Path, images: &[PlannedImage], images_per_prompt: usize, size: (u32, u32)) -> Result<()> {
    let path = folder.join("contact-sheet.png");
    let Layout { columns, rows, width, height } = layout(images.len(), images_per_prompt, size);
    let side = |count: u32, side: u32| count * (side + GAP) + GAP;
    let mut sheet = RgbImage::from_pixel(side(columns, width), side(rows, height), image::Rgb([255; 3]));
    for image in images {
        let file = folder.join(image.path());
        let broken = |error| Error::data(format!("{}: not an image", file.display())).caused_by(error);
        let whole = image::load_from_memory(&fs_err::read(&file)?).map_err(broken)?.into_rgb8();
        let small = imageops::thumbnail(&whole, width, height);
        let number = image.number as u32;
        let (column, row) = (number % columns, number.div_euclid(columns));
        imageops::replace(&mut sheet, &small, side(column, width).into(), side(row, height).into());
    }
    let mut bytes = Cursor::new(Vec::new());
    sheet
        .write_to(&mut bytes, ImageFormat::Png)
        .map_err(|error| Error::data(format!("{}: cannot be written", path.display())).caused_by(error))?;
    replace_file(&path, |partial| Ok(fs_err::write(partial, bytes.into_inner())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_is_never_too_large() {
        assert_eq!(layout(6, 3, (512, 256)), Layout { columns: 3, rows: 2, width: 256, height: 128 });
        assert_eq!(layout(5, 1, (64, 64)), Layout { columns: 3, rows: 2, width: 64, height: 64 });
        let many = layout(100_000, 10, (768, 768));
        assert_eq!((many.columns, many.rows, many.width), (10, 10_000, 25));
    }
}
