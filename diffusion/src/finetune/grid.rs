//! A picture of held-out images: the base model's above, the tuned ones below.

use std::io::Cursor;

use image::{ImageFormat, RgbImage, imageops};
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// Images in a row, at most.
const COLUMNS: i64 = 8;
/// White around every image, in pixels.
const GAP: u32 = 2;

/// A PNG of the first images of both `[N, 3, H, W]`, 0..=1, and its height and width.
///
/// # Errors
/// The picture cannot be encoded.
pub(super) fn png(base: &Tensor, tuned: &Tensor) -> Result<(Vec<u8>, [u32; 2])> {
    let shown = base.size()[0].min(COLUMNS);
    let (height, width) = (base.size()[2] as u32, base.size()[3] as u32);
    let side = |count: u32, side: u32| count * (side + GAP) + GAP;
    let mut sheet = RgbImage::from_pixel(side(shown as u32, width), side(2, height), image::Rgb([255; 3]));
    for (row, images) in [base, tuned].into_iter().enumerate() {
        for column in 0..shown {
            let image = picture(&images.get(column))?;
            let (left, top) = (side(column as u32, width), side(row as u32, height));
            imageops::replace(&mut sheet, &image, left.into(), top.into());
        }
    }
    Ok((encoded(&sheet)?, [sheet.height(), sheet.width()]))
}

/// An image `[3, H, W]`, 0..=1, in 8 bits.
pub(super) fn picture(pixels: &Tensor) -> Result<RgbImage> {
    let levels = (pixels.permute([1, 2, 0]) * 255.0).round().to_kind(Kind::Uint8);
    let bytes =
        Vec::try_from(levels.contiguous().flatten(0, -1)).map_err(|error| Error::data("pixels").caused_by(error))?;
    let (height, width) = (pixels.size()[1] as u32, pixels.size()[2] as u32);
    RgbImage::from_raw(width, height, bytes).ok_or_else(|| Error::data("pixels do not fit"))
}

/// As a PNG file.
pub(super) fn encoded(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, ImageFormat::Png)
        .map_err(|error| Error::data("held-out images cannot be encoded").caused_by(error))?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn base_is_above_tuned() {
        let base = Tensor::zeros([9, 3, 4, 6], (Kind::Float, Device::Cpu));
        let (png, [height, width]) = png(&base, &(&base + 0.5)).unwrap();
        assert_eq!([height, width], [2 * 6 + 2, 8 * 8 + 2]);
        let picture = image::load_from_memory(&png).unwrap().into_rgb8();
        assert_eq!(picture.dimensions(), (width, height));
        assert_eq!((picture.get_pixel(2, 2).0, picture.get_pixel(2, 8).0), ([0; 3], [128; 3]));
    }
}
