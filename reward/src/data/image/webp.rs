//! WebP through the `image` crate: the first frame on the clear canvas that libwebp, and so Pillow, gives it.

use std::{borrow::Cow, io::Cursor};

use image::{DynamicImage, ImageDecoder, Rgba, codecs::webp::WebPDecoder};

use super::{Mode, Picture};

/// Width and height of the canvas.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32), String> {
    Ok(open(bytes)?.dimensions())
}

/// The picture (of an animation: the first frame).
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, String> {
    let bytes = as_libwebp_takes_it(bytes);
    let mut decoder = open(&bytes)?;
    if decoder.has_animation() {
        decoder.set_background_color(Rgba([0; 4])).map_err(|error| error.to_string())?;
    }
    let image = DynamicImage::from_decoder(decoder).map_err(|error| error.to_string())?;
    let (width, height) = (image.width(), image.height());
    match image {
        DynamicImage::ImageRgb8(rgb) => Picture::new(Mode::Rgb, width, height, rgb.into_raw()),
        image => Picture::new(Mode::Rgba, width, height, image.into_rgba8().into_raw()),
    }
}

fn open(bytes: &[u8]) -> Result<WebPDecoder<Cursor<&[u8]>>, String> {
    WebPDecoder::new(Cursor::new(bytes)).map_err(|error| error.to_string())
}

/// The file with what libwebp does not believe put right. Whether a still picture has alpha is known from its pixels, and a first
/// frame has nothing to be blended with.
fn as_libwebp_takes_it(bytes: &[u8]) -> Cow<'_, [u8]> {
    const FIRST_CHUNK: usize = 12;
    const FLAGS: usize = 20;
    const ANIMATED: u8 = 2;
    const ALPHA: u8 = 16;
    const NOT_BLENDED: u8 = 2;
    if bytes.get(FIRST_CHUNK..FIRST_CHUNK + 4) != Some(b"VP8X") || bytes.len() <= FLAGS {
        return Cow::Borrowed(bytes);
    }
    let (mut place, mut put_right) = (FIRST_CHUNK, None);
    while let Some((name, rest)) = bytes.get(place..).and_then(|rest| rest.split_first_chunk::<4>()) {
        let Some((length, body)) = rest.split_first_chunk::<4>() else { break };
        let flagged = |alpha: bool| (FLAGS, if alpha { bytes[FLAGS] | ALPHA } else { bytes[FLAGS] & !ALPHA });
        put_right = match name {
            // Of its header 15 bytes come before the flags.
            b"ANMF" => body.get(15).map(|flags| (place + 8 + 15, flags | NOT_BLENDED)),
            _ if bytes[FLAGS] & ANIMATED != 0 => None,
            b"ALPH" => Some(flagged(true)),
            b"VP8 " => Some(flagged(false)),
            // After the signature 14 bits each of width and height.
            b"VP8L" => body.get(4).map(|bits| flagged(bits >> 4 & 1 == 1)),
            _ => None,
        };
        if put_right.is_some() {
            break;
        }
        let length = u32::from_le_bytes(*length) as usize;
        place += 8 + length + length % 2;
    }
    match put_right {
        Some((place, value)) if bytes[place] != value => {
            let mut bytes = bytes.to_vec();
            bytes[place] = value;
            Cow::Owned(bytes)
        }
        _ => Cow::Borrowed(bytes),
    }
}
