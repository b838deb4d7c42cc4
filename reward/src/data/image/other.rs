//! WebP, GIF, BMP and TIFF through the `image` crate.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, ImageReader};

use super::{Mode, Picture};

/// The picture (of an animation: the first frame).
pub(super) fn decode(bytes: &[u8], format: ImageFormat) -> Result<Picture, String> {
    let decoder =
        ImageReader::with_format(Cursor::new(bytes), format).into_decoder().map_err(|error| error.to_string())?;
    let image = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    let (width, height) = (image.width(), image.height());
    let (mode, samples) = match image {
        _ if has_palette(bytes, format) => {
            let rgb = image.into_rgb8().into_raw();
            // Pillow reads a BMP whose palette is the ramp of greys as grey.
            let grey = format == ImageFormat::Bmp && rgb.as_chunks::<3>().0.iter().all(|[r, g, b]| r == g && g == b);
            (if grey { Mode::Rgb } else { Mode::Palette }, rgb)
        }
        DynamicImage::ImageLuma8(grey) => (Mode::Grey, grey.into_raw()),
        DynamicImage::ImageLumaA8(grey) => (Mode::GreyAlpha, grey.into_raw()),
        DynamicImage::ImageLuma16(grey) => {
            (Mode::Grey16, grey.into_raw().into_iter().flat_map(u16::to_ne_bytes).collect())
        }
        DynamicImage::ImageRgb8(rgb) => (Mode::Rgb, rgb.into_raw()),
        image if image.color().has_alpha() => (Mode::Rgba, image.into_rgba8().into_raw()),
        image => (Mode::Rgb, image.into_rgb8().into_raw()),
    };
    Picture::new(mode, width, height, samples)
}

/// `image` looks palettes up without telling; Pillow resizes their pictures by the nearest pixel.
fn has_palette(bytes: &[u8], format: ImageFormat) -> bool {
    const BMP_BITS_PER_PIXEL: usize = 28;
    match format {
        ImageFormat::Gif => true,
        ImageFormat::Bmp => bytes.get(BMP_BITS_PER_PIXEL).is_some_and(|bits| *bits <= 8),
        _ => false,
    }
}
