//! Images of every format that is read.

use reward::{
    Error,
    clip::preprocess::rgb,
    data::{
        image::{DecodeOptions, Mode, decode},
        source::ImageSource,
    },
};

use crate::mutate::check;

/// A file of `tests/golden/formats.json`.
fn golden(name: &str) -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/formats.json");
    let cases: serde_json::Value = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
    let case = cases.as_array().unwrap().iter().find(|case| case["name"] == name).unwrap_or_else(|| panic!("{name}"));
    let hex = case["file"].as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Checks a file; `seen`: what damage cannot change unseen.
fn checked<T: PartialEq + std::fmt::Debug>(name: &str, ending: &str, seen: impl Fn(Mode, [u32; 2], Vec<u8>) -> T) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("picture.{ending}"));
    let source = ImageSource::File(path.clone());
    check(&path, &golden(name), || {
        let decoded = decode(&source.read()?, &source.label(), &DecodeOptions::default())?;
        if decoded.truncated {
            return Err(Error::data(format!("{} is truncated", source.label())));
        }
        let picture = decoded.picture;
        Ok(seen(picture.mode(), [picture.width(), picture.height()], rgb(&picture)))
    });
}

#[test]
fn png() {
    // Everything that makes its pixels has a checksum.
    for name in ["png 8 bit colour 2", "png 4 bit colour 3", "png 16 bit colour 6 interlaced"] {
        checked(name, "png", |mode, size, pixels| (mode, size, pixels));
    }
}

#[test]
fn formats_without_checksums() {
    let names = [
        ("jpeg grey, progressive True", "jpg"),
        ("jpeg cmyk, progressive False, adobe 2", "jpg"),
        ("gif 4 bit", "gif"),
        ("gif beyond with offset, transparent 3, background 5", "gif"),
        ("bmp 8 bit, header 40", "bmp"),
        ("bmp run length 4, plain, height 9", "bmp"),
        ("tiff 2 of 3 x 8, extra (), format 1, <, compression 5, strips", "tif"),
        ("tiff predictor, 2 of 3 x 8, <, compression 5, {'tile': 16}", "tif"),
        ("webp lossless rgba {'lossless': True, 'exact': True}", "webp"),
        ("webp lossy rgba 60 100 4", "webp"),
        ("webp lossless of clear and rgb, False, background (0, 0, 0, 0)", "webp"),
    ];
    for (name, ending) in names {
        checked(name, ending, |_, _, _| ());
    }
}
