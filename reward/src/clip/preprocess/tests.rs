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

/// Largest and mean difference, in levels.
fn difference(ours: &[u8], theirs: &[u8]) -> (u8, f64) {
    assert_eq!(ours.len(), theirs.len());
    let differences = || ours.iter().zip(theirs).map(|(ours, theirs)| ours.abs_diff(*theirs));
    let sum = differences().map(u64::from).sum::<u64>();
    (differences().max().unwrap(), sum as f64 / ours.len() as f64)
}

fn expected(case: &Case) -> Vec<u8> {
    image::open(format!("{GOLDEN}/{}", case.expected)).unwrap().into_rgb8().into_raw()
}

#[test]
fn pixels_are_those_of_openai_clip_on_pillow() {
    let cases: Vec<Case> = serde_json::from_slice(&fs_err::read(format!("{GOLDEN}/cases.json")).unwrap()).unwrap();
    let mut failures = Vec::new();
    for case in &cases {
        let bytes = fs_err::read(format!("{GOLDEN}/{}", case.file)).unwrap();
        let options = DecodeOptions { exif_rotate: case.exif_rotate, ..DecodeOptions::default() };
        let loaded = match load(&bytes, &case.file, case.size, &options) {
            Ok(loaded) => loaded,
            Err(error) => {
                failures.push(format!("{}: {error}", case.expected));
                continue;
            }
        };
        let (largest, mean) = difference(&loaded.pixels, &expected(case));
        let line = format!("{} max {largest} mean {mean:.4}", case.expected);
        if largest > 2 || mean > 0.05 || loaded.truncated != case.truncated || loaded.clipped_16_bit != case.clipped {
            failures.push(format!("{line} truncated {} clipped {}", loaded.truncated, loaded.clipped_16_bit));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
