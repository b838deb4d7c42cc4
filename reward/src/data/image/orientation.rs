//! EXIF orientation: how a camera was held.

use std::io::Cursor;

use exif::{In, Reader, Tag};
use fast_image_resize::images::Image;

use super::Picture;

/// The picture turned and mirrored as its file's EXIF tag says; as it is where there is no such tag.
pub(super) fn upright(picture: Picture, bytes: &[u8]) -> Picture {
    let orientation = Reader::new()
        .read_from_container(&mut Cursor::new(bytes))
        .ok()
        .and_then(|exif| exif.get_field(Tag::Orientation, In::PRIMARY)?.value.get_uint(0));
    match orientation {
        Some(orientation @ 2..=8) => oriented(picture, orientation),
        _ => picture,
    }
}

/// Orientation 2 to 8 of the EXIF standard (2.32, table 6): where the first row and the first column belong.
pub(super) fn oriented(picture: Picture, orientation: u32) -> Picture {
    let source = &picture.pixels;
    let (source_width, source_height) = (source.width() as usize, source.height() as usize);
    let transposed = orientation >= 5;
    let (width, height) = if transposed { (source_height, source_width) } else { (source_width, source_height) };
    let mut pixels = Image::new(width as u32, height as u32, source.pixel_type());
    let size = source.pixel_type().size();
    for (index, target) in pixels.buffer_mut().chunks_exact_mut(size).enumerate() {
        let (x, y) = (index % width, index.div_euclid(width));
        let (along, down) = if transposed { (y, x) } else { (x, y) };
        let column = if matches!(orientation, 2 | 3 | 7 | 8) { source_width - 1 - along } else { along };
        let row = if matches!(orientation, 3 | 4 | 6 | 7) { source_height - 1 - down } else { down };
        let start = (row * source_width + column) * size;
        target.copy_from_slice(&source.buffer()[start..start + size]);
    }
    let (width, height) = if transposed { (picture.height, picture.width) } else { (picture.width, picture.height) };
    Picture { pixels, width, height, ..picture }
}
