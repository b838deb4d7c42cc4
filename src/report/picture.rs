//! Pictures and text inside HTML.

use anyhow::{Context, Result};
use image::{RgbImage, codecs::jpeg::JpegEncoder, imageops::thumbnail};
use reward::{
    clip::preprocess::rgb,
    data::{
        image::{DecodeOptions, decode},
        source::ImageSource,
    },
};

/// The longer side of an embedded picture, in pixels.
const SIDE: u32 = 224;
const QUALITY: u8 = 82;

/// A small JPEG as a data URI, with the width and height to show it in: those of the tiniest several times over.
///
/// # Errors
/// The image cannot be read.
pub(super) fn embedded(image: &ImageSource) -> Result<(String, [u32; 2])> {
    let options = DecodeOptions { fast_for: None, max_pixels: u64::MAX, ..DecodeOptions::default() };
    let picture = decode(&image.read()?, &image.label(), &options)?.picture;
    let full = RgbImage::from_raw(picture.width(), picture.height(), rgb(&picture)).context("a byte a channel")?;
    let scale = f64::from(SIDE) / f64::from(full.width().max(full.height()));
    let side = |full: u32| (f64::from(full) * scale.min(1.0)).round().max(1.0) as u32;
    let small = thumbnail(&full, side(full.width()), side(full.height()));
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode_image(&small)?;
    let times = SIDE.div_euclid(2 * small.width().max(small.height())).max(1);
    Ok((format!("data:image/jpeg;base64,{}", base64(&jpeg)), [small.width() * times, small.height() * times]))
}

/// RFC 4648 with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits =
            (0..3).fold(0_usize, |bits, place| (bits << 8) | usize::from(group.get(place).copied().unwrap_or(0)));
        for place in 0..4 {
            let digit = char::from(DIGITS[(bits >> (18 - 6 * place)) & 63]);
            text.push(if place <= group.len() { digit } else { '=' });
        }
    }
    text
}

/// Text as HTML, in an element or a quoted attribute.
pub(super) fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            other => html.push(other),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4648, section 10.
    #[test]
    fn base64_by_the_rfc() {
        let pairs =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")];
        for (bytes, text) in pairs {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn pictures_are_shown_large_enough_and_no_larger_than_a_card() {
        let folder = tempfile::tempdir().unwrap();
        for (size, shown) in [([32, 16], [96, 48]), ([100, 90], [100, 90]), ([300, 150], [224, 112])] {
            let path = folder.path().join(format!("{}.png", size[0]));
            RgbImage::new(size[0], size[1]).save(&path).unwrap();
            assert_eq!(embedded(&ImageSource::File(path)).unwrap().1, shown);
        }
    }

    #[test]
    fn markup_in_prompts_is_text() {
        assert_eq!(escaped("<b a='\"'>&"), "&lt;b a=&#39;&quot;&#39;&gt;&amp;");
    }
}
