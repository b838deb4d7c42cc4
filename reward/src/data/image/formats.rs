//! Tiny files of every format, mode and option against what Pillow made of them (`tests/golden/formats.py`).

use serde::Deserialize;

use super::*;
use crate::{clip::preprocess::rgb, weights::sha256};

/// A file, and what Pillow makes of it.
#[derive(Deserialize)]
struct Case {
    name: String,
    /// In hex.
    file: String,
    /// Absent where Pillow refuses the file.
    mode: Option<String>,
    size: Option<[u32; 2]>,
    /// RGB bytes in hex of lossy formats, SHA-256 of the others.
    rgb: Option<String>,
    /// Pillow reads it only with `LOAD_TRUNCATED_IMAGES`.
    #[serde(default)]
    cut: bool,
}

/// How our reading compares with Pillow's.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Same,
    /// Neither reads it.
    Neither,
    /// Pillow reads it, we do not.
    Refused(String),
    /// What must not be.
    Wrong(String),
}

fn outcome(case: &Case) -> Outcome {
    let bytes = bytes(&case.file);
    let wrong = |what: String| Outcome::Wrong(format!("{}: {what}", case.name));
    let decoded = match (decode(&bytes, &case.name, &DecodeOptions::default()), &case.mode) {
        (Err(_), None) => return Outcome::Neither,
        (Err(error), Some(_)) => return Outcome::Refused(error.to_string()),
        (Ok(decoded), None) => return wrong(format!("read as {:?}, Pillow refuses it", decoded.picture.mode())),
        (Ok(decoded), Some(_)) => decoded,
    };
    let (picture, mode) = (decoded.picture, case.mode.as_deref().unwrap());
    // Modes that are resized alike.
    let same_mode = match picture.mode() {
        Mode::Bilevel => mode == "1",
        Mode::Grey | Mode::Rgb | Mode::Rgbx => ["L", "RGB"].contains(&mode),
        Mode::GreyAlpha | Mode::Rgba => ["LA", "RGBA"].contains(&mode),
        Mode::Grey16 => mode.starts_with("I;16"),
        Mode::Palette => mode == "P",
        Mode::Cmyk => mode == "CMYK",
    };
    if !same_mode || case.size != Some([picture.width(), picture.height()]) {
        let (width, height) = (picture.width(), picture.height());
        return wrong(format!("{:?} {width} x {height}, Pillow {mode} {:?}", picture.mode(), case.size));
    }
    // A damaged text does not concern the pixels.
    if case.cut && !decoded.truncated && !case.name.starts_with("png text") {
        return wrong("cut off, and not said".to_owned());
    }
    let (ours, theirs) = (rgb(&picture), case.rgb.as_deref().unwrap());
    if theirs.len() == 64 {
        return if sha256::of_bytes(&ours) == theirs { Outcome::Same } else { wrong("other pixels".to_owned()) };
    }
    let theirs = self::bytes(theirs);
    let difference = ours.iter().zip(&theirs).map(|(ours, theirs)| ours.abs_diff(*theirs)).max().unwrap_or(0);
    // libjpeg-turbo is Pillow's own, but for rare subsamplings of another release; WebP is decoded by another library.
    let tolerance = if case.name.starts_with("jpeg") && !case.name.starts_with("jpeg 4") { 0 } else { 2 };
    if ours.len() == theirs.len() && difference <= tolerance {
        Outcome::Same
    } else {
        wrong(format!("pixels differ by up to {difference}"))
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .as_chunks::<2>()
        .0
        .iter()
        .map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap())
        .collect()
}

/// `SOCIAL_REWARD_FORMATS` names a file of more cases, as the script writes them with `--all`.
#[test]
fn every_kind_of_file_has_pillows_pixels_or_is_refused() {
    let all = std::env::var("SOCIAL_REWARD_FORMATS").ok();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/formats.json");
    let text = fs_err::read(all.as_deref().unwrap_or(golden)).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&text).unwrap();
    let (mut refused, mut wrong, mut same) = (Vec::new(), Vec::new(), 0);
    for case in &cases {
        let outcome = std::panic::catch_unwind(|| outcome(case));
        match outcome.unwrap_or_else(|_| Outcome::Wrong(format!("{}: a panic", case.name))) {
            Outcome::Same => same += 1,
            Outcome::Neither => {}
            Outcome::Refused(error) => refused.push(error),
            Outcome::Wrong(what) => wrong.push(what),
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(same > 250, "{same} cases are read as by Pillow; refused:\n{}", refused.join("\n"));
}
