use super::*;
use crate::clip::{preprocess::preprocess, preprocessing::Preprocessing};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/pixels");

fn golden(file: &str) -> Vec<u8> {
    fs_err::read(format!("{GOLDEN}/{file}")).unwrap()
}

fn mode(file: &str) -> Mode {
    decode(&golden(file), file, &DecodeOptions::default()).unwrap().picture.mode()
}

fn failure(bytes: &[u8]) -> Error {
    decode(bytes, "a/b.jpg", &DecodeOptions::default()).map(|decoded| decoded.picture.mode()).unwrap_err()
}

#[test]
fn modes_are_pillows() {
    let png = [
        ("grey1.png", Mode::Bilevel),
        ("grey4.png", Mode::Grey),
        ("grey16.png", Mode::Grey16),
        ("grey_alpha.png", Mode::GreyAlpha),
        ("palette4.png", Mode::Palette),
        ("palette_transparent.png", Mode::Palette),
        ("rgb_key.png", Mode::Rgb),
        ("rgb16.png", Mode::Rgb),
        ("rgba16.png", Mode::Rgba),
    ];
    let others = [
        ("grey.jpg", Mode::Grey),
        ("lossy_alpha.webp", Mode::Rgba),
        ("palette.gif", Mode::Palette),
        ("grey.tiff", Mode::Grey),
    ];
    for (file, expected) in png.into_iter().chain(others) {
        assert_eq!(mode(file), expected, "{file}");
    }
    #[cfg(feature = "turbojpeg")]
    assert_eq!([mode("420.jpg"), mode("cmyk.jpg")], [Mode::Rgbx, Mode::Cmyk]);
}

#[test]
fn header_is_read_from_the_first_bytes() {
    for (file, format, width, height, bytes_needed) in [
        ("photo.jpg", Format::Jpeg, 331, 257, 1000),
        ("420_progressive.jpg", Format::Jpeg, 97, 75, 1000),
        ("rgb.png", Format::Png, 97, 75, 100),
        ("palette.png", Format::Png, 97, 75, 1000),
        ("lossless.webp", Format::WebP, 97, 75, usize::MAX),
        ("palette.gif", Format::Gif, 97, 75, 1000),
        ("rgb.bmp", Format::Bmp, 97, 75, 1000),
        ("rgb.tiff", Format::Tiff, 97, 75, usize::MAX),
    ] {
        let bytes = golden(file);
        let head = &bytes[..bytes.len().min(bytes_needed)];
        assert_eq!(probe(head, file).unwrap(), Header { format, width, height }, "{file}");
    }
}

#[test]
fn fill_bytes_before_a_jpeg_segment_are_skipped() {
    let bytes = golden("420.jpg");
    let padded = [&bytes[..2], &[0xFF; 5], &bytes[2..]].concat();
    assert_eq!(probe(&padded, "420.jpg").unwrap().width, 97);
    let _ = decode(&padded, "420.jpg", &DecodeOptions::default()).unwrap();
}

#[test]
fn what_is_no_image_is_named() {
    assert_eq!(failure(b"").to_string(), "a/b.jpg is an empty file (0 bytes), wanted an image");
    let text = failure(b"not an image");
    assert_eq!(text.to_string(), "a/b.jpg: wanted an image, found a file that starts with \"not an image\"");
    assert!(text.hint_text().unwrap().starts_with("JPEG, PNG"));
}

#[test]
fn files_that_hold_only_a_beginning_are_errors() {
    let noise: Vec<u8> = (0..5000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [
        &golden("420.jpg")[..3],
        &golden("420.jpg")[..200],
        &golden("rgb.png")[..20],
        &golden("rgb.png")[..33],
        &golden("lossy.webp")[..1000],
        &[b"\xFF\xD8\xFF".as_slice(), &noise].concat(),
        &[&golden("rgb.png")[..41], &noise].concat(),
    ] {
        assert!(failure(bytes).to_string().starts_with("a/b.jpg: cannot read it as "));
    }
}

#[test]
fn a_decompression_bomb_is_refused_by_its_header() {
    let mut bomb = golden("rgb.png");
    bomb[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let mut checksum = flate2::Crc::new();
    checksum.update(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&checksum.sum().to_be_bytes());
    let error = failure(&bomb);
    assert_eq!(error.to_string(), "a/b.jpg: 65536 x 65536 is 4294967296 pixels, more than the limit of 178956970");
    assert!(error.hint_text().unwrap().contains("--max-pixels"));
}

#[test]
fn the_limit_itself_is_allowed() {
    let options = DecodeOptions { max_pixels: 97 * 75, ..DecodeOptions::default() };
    assert!(decode(&golden("rgb.png"), "rgb.png", &options).is_ok());
    let options = DecodeOptions { max_pixels: 97 * 75 - 1, ..options };
    assert!(decode(&golden("rgb.png"), "rgb.png", &options).is_err());
}

#[test]
fn the_lost_part_of_a_jpeg_is_grey_and_of_a_png_black() {
    let Decoded { picture, truncated, .. } =
        decode(&golden("truncated_420.jpg"), "", &DecodeOptions::default()).unwrap();
    assert!(truncated);
    assert_eq!(preprocess(&picture, 32, &Preprocessing::default()).last(), Some(&128));
    let Decoded { picture, truncated, .. } =
        decode(&golden("truncated_rgb.png"), "", &DecodeOptions::default()).unwrap();
    assert!(truncated);
    assert_eq!(preprocess(&picture, 32, &Preprocessing::default()).last(), Some(&0));
}

#[cfg(feature = "turbojpeg")]
#[test]
fn fast_decoding_keeps_the_pixels_asked_for_and_the_framing() {
    let bytes = golden("photo.jpg");
    let full = decode(&bytes, "", &DecodeOptions::default()).unwrap().picture;
    for (size, shrink) in [(257, 1), (129, 1), (128, 2), (64, 4), (32, 8), (1, 8)] {
        let options = DecodeOptions { fast_for: Some(size), ..DecodeOptions::default() };
        let picture = decode(&bytes, "", &options).unwrap().picture;
        assert_eq!((picture.width(), picture.height(), picture.shrink), (331, 257, shrink), "{size}");
        let (ours, exact) =
            (preprocess(&picture, size, &Preprocessing::default()), preprocess(&full, size, &Preprocessing::default()));
        let sum: u32 = ours.iter().zip(&exact).map(|(ours, exact)| u32::from(ours.abs_diff(*exact))).sum();
        let mean = f64::from(sum) / ours.len() as f64;
        assert!(mean < 2.0, "{size}: {mean}");
    }
}

#[cfg(feature = "turbojpeg")]
#[test]
fn arithmetic_coding_changes_no_pixel() {
    let pixels = |arithmetic: bool| {
        let mut compressor = turbojpeg::Compressor::new().unwrap();
        compressor.set_arithmetic(arithmetic).unwrap();
        let image = turbojpeg::Image::mandelbrot(40, 30, turbojpeg::PixelFormat::RGB);
        let bytes = compressor.compress_to_vec(image.as_deref()).unwrap();
        crate::clip::preprocess::rgb(&decode(&bytes, "", &DecodeOptions::default()).unwrap().picture)
    };
    assert_eq!(pixels(true), pixels(false));
}
