use super::*;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/pixels");

/// Made by `tests/golden/pixels.py`.
#[derive(serde::Deserialize)]
struct Case {
    file: String,
    size: u32,
    exif_rotate: bool,
    truncated: bool,
    clipped: bool,
    expected: String,
}

#[test]
fn pixels_are_those_of_openai_clip_on_pillow() {
    let cases: Vec<Case> = serde_json::from_slice(&fs_err::read(format!("{GOLDEN}/cases.json")).unwrap()).unwrap();
    let mut failures = Vec::new();
    for Case { file, size, exif_rotate, truncated, clipped, expected } in &cases {
        // `image` decodes JPEG with other roundings and another chroma upsampling, and CMYK only as RGB.
        if cfg!(not(feature = "turbojpeg")) && file.ends_with(".jpg") {
            continue;
        }
        let options = DecodeOptions { exif_rotate: *exif_rotate, ..DecodeOptions::default() };
        let bytes = fs_err::read(format!("{GOLDEN}/{file}")).unwrap();
        let loaded = load(&bytes, file, *size, &Preprocessing::default(), &options).unwrap();
        assert_eq!((loaded.truncated, loaded.clipped_16_bit), (*truncated, *clipped), "{file}");

        let theirs = image::open(format!("{GOLDEN}/{expected}")).unwrap().into_rgb8().into_raw();
        assert_eq!(loaded.pixels.len(), theirs.len());
        let differences = loaded.pixels.iter().zip(&theirs).map(|(ours, theirs)| ours.abs_diff(*theirs));
        let largest = differences.clone().max().unwrap();
        let mean = differences.map(f64::from).sum::<f64>() / theirs.len() as f64;
        if largest > 2 || mean > 0.05 {
            failures.push(format!("{expected}: max {largest}, mean {mean:.4}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn black_ink_and_colour_multiply() {
    assert_eq!(cmyk_to_rgb(&[0, 0, 0, 0]), [255; 3]);
    assert_eq!(cmyk_to_rgb(&[0, 0, 0, 255]), [0; 3]);
    // Light 155: 155 − 255·155/255 = 0, 155 − 51·155/255 = 124, 155 − 0 = 155
    assert_eq!(cmyk_to_rgb(&[255, 51, 0, 100]), [0, 124, 155]);
}
