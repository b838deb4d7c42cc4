//! Preprocessing other than OpenAI's, against torchvision, transformers and open_clip: tests/golden/preprocessing.py.

use std::{path::Path, sync::atomic::AtomicBool};

use reward::{
    clip::{
        filter::Filter,
        preprocess::load,
        preprocessing::{Preprocessing, Resize},
        tokenizer::Tokenizer,
    },
    data::{image::DecodeOptions, preflight::OnBadImage, source::ImageSource},
    engine::{EmbedOptions, Engine, candle::Candle, embed},
    event::Silent,
    weights::{Checkpoint, OpenOptions},
};
use serde::Deserialize;
use serde_json::Value;

use crate::fixture::{Fixture, golden};

const PROMPT: &str = "a red fox in snow";
const SIZE: u32 = 28;

#[derive(Deserialize)]
struct PixelCase {
    key: String,
    picture: String,
    filter: String,
    resize: String,
    fill: u8,
}

impl PixelCase {
    fn preprocessing(&self) -> Preprocessing {
        let filter = Filter::ALL.into_iter().find(|filter| filter.as_str() == self.filter).unwrap();
        let resize = match self.resize.as_str() {
            "shortest" => Resize::Shortest,
            "squash" => Resize::Squash,
            _ => Resize::Longest { fill: self.fill },
        };
        Preprocessing { resize, filter, ..Preprocessing::default() }
    }
}

#[derive(Deserialize)]
struct ScoreCase {
    library: String,
    name: String,
    settings: Value,
    picture: String,
    score: f32,
}

fn cases<T: for<'de> Deserialize<'de>>(name: &str) -> Vec<T> {
    serde_json::from_slice(&fs_err::read(golden(&format!("preprocessing/{name}"))).unwrap()).unwrap()
}

fn picture(name: &str) -> Vec<u8> {
    fs_err::read(golden(&format!("pixels/{name}"))).unwrap()
}

/// Every filter in every way of becoming square, for pictures of several modes.
#[test]
fn pixels_are_those_of_torchvision_on_pillow() {
    let fixture = Fixture::open("preprocessing/pixels.safetensors");
    let mut failures = Vec::new();
    for case in cases::<PixelCase>("pixels.json") {
        let loaded = load(&picture(&case.picture), "", SIZE, &case.preprocessing(), &DecodeOptions::default()).unwrap();
        let theirs = fixture.bytes(&case.key);
        let differences = loaded.pixels.iter().zip(&theirs).map(|(ours, theirs)| ours.abs_diff(*theirs));
        let largest = differences.clone().max().unwrap();
        let mean = differences.map(f64::from).sum::<f64>() / theirs.len() as f64;
        // A pixel just between two of the means of `box` goes to either, as rounding has it.
        let (most, most_mean) = if case.filter == "box" { (64, 0.3) } else { (2, 0.05) };
        if loaded.pixels.len() != theirs.len() || largest > most || mean > most_mean {
            failures.push(format!("{}: max {largest}, mean {mean:.4}", case.key));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A folder as the library saves it, with these settings.
fn folder(case: &ScoreCase) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| fs_err::copy(golden(from), folder.path().join(to)).unwrap();
    let settings = match case.library.as_str() {
        "transformers" => {
            copy("metrics/pick_score/config.json", "config.json");
            copy("metrics/pick_score/pytorch_model.bin", "pytorch_model.bin");
            "preprocessor_config.json"
        }
        _ => {
            copy("metrics/hps.pt", "open_clip_pytorch_model.bin");
            "open_clip_config.json"
        }
    };
    fs_err::write(folder.path().join(settings), case.settings.to_string()).unwrap();
    folder
}

fn score(engine: &dyn Engine, picture: &Path) -> f32 {
    let options =
        EmbedOptions { batch_size: 1, workers: 1, decode: DecodeOptions::default(), on_bad_image: OnBadImage::Stop };
    let source = [ImageSource::File(picture.to_owned())];
    let prompt = [Tokenizer::openai().encode(PROMPT, engine.config().context_length)];
    let table = embed(engine, &source, &prompt, &options, &Silent, &AtomicBool::new(false)).unwrap();
    table.score(0, 0).unwrap()
}

#[test]
fn scores_of_folders_are_those_of_their_library() {
    let mut failures = Vec::new();
    for cases in cases::<ScoreCase>("scores.json").chunk_by(|one, next| one.name == next.name) {
        let folder = folder(&cases[0]);
        let open = |model: &Path| Checkpoint::open(model.to_str().unwrap(), OpenOptions::default()).unwrap();
        let checkpoint = open(folder.path());
        assert!(checkpoint.warnings.is_empty(), "{:?}", checkpoint.warnings);
        // The file alone, whose neighbours speak.
        let weights = checkpoint.files();
        assert_eq!(open(&weights[0]).config, checkpoint.config);
        let engine = reward::engine::engine(&checkpoint, reward::device::DeviceName::Cpu).unwrap();
        let portable = Candle::load(&checkpoint).unwrap();
        for ScoreCase { library, name, picture, score: theirs, .. } in cases {
            let path = golden(&format!("pixels/{picture}"));
            for (by, ours) in [("this build", score(&*engine, &path)), ("candle", score(&portable, &path))] {
                if (ours - theirs).abs() > 2e-3 {
                    failures.push(format!("{library}, {name}, {picture}: {theirs} there, {ours} by {by}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What a folder says outlives training and every export.
#[test]
fn what_was_said_is_written_with_the_model() {
    use reward::weights::{layout::Layout, save};
    for case in cases::<ScoreCase>("scores.json").iter().filter(|case| case.picture == "rgb.png").step_by(3) {
        let folder = folder(case);
        let open = |model: &Path| Checkpoint::open(model.to_str().unwrap(), OpenOptions::default()).unwrap();
        let original = open(folder.path());
        let written = tempfile::tempdir().unwrap();
        let read = |name: &str, shape: &[usize]| original.read(name, shape);
        save::hugging_face_folder(&written.path().join("hf"), &original.config, &read).unwrap();
        let again = open(&written.path().join("hf"));
        assert_eq!(again.config, original.config, "{}", case.name);
        again.check_vocabulary().unwrap();
        let file = written.path().join("alone.safetensors");
        save::state_dict(&file, &original.config, Layout::OpenAi, &read).unwrap();
        let alone = open(&file);
        assert_eq!((&alone.config, alone.warnings.len()), (&original.config, 0), "{}", case.name);
    }
}

/// The decoder's path and the differentiable one see the same, but for the rounding to bytes; a bicubic picture is cut off
/// at black and white once in memory, and after each of two passes in bytes.
#[cfg(feature = "torch")]
#[test]
fn pictures_in_memory_are_seen_as_their_files_are() {
    use reward::clip::{preprocess, preprocess_tensor::preprocess};
    use tch::{Kind, Tensor};

    let mut seen = 0;
    for case in cases::<PixelCase>("pixels.json") {
        let how = case.preprocessing();
        let decoded =
            reward::data::image::decode(&picture(&case.picture), "", &DecodeOptions::default()).unwrap().picture;
        if decoded.mode() != reward::data::image::Mode::Rgb {
            continue;
        }
        let (width, height) = (i64::from(decoded.width()), i64::from(decoded.height()));
        let bytes = Tensor::from_slice(&preprocess::rgb(&decoded)).view([1, height, width, 3]);
        let pixels = (bytes.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0).set_requires_grad(true);
        let output = preprocess(&pixels, i64::from(SIZE), &how);
        output.sum(Kind::Float).backward();
        let gradient = pixels.grad().abs().max().double_value(&[]);
        assert!(gradient > 1e-3 && gradient.is_finite(), "{}: {gradient}", case.key);
        let channel = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]);
        let levels = ((output * channel(how.std) + channel(how.mean)) * 255.0).permute([0, 2, 3, 1]).flatten(0, -1);
        let file = Tensor::from_slice(&preprocess::preprocess(&decoded, SIZE, &how)).to_kind(Kind::Float);
        let apart = (levels - file).abs();
        let (mean, most) = (apart.mean(Kind::Float).double_value(&[]), apart.max().double_value(&[]));
        let few = if how.filter == Filter::Bicubic { 20.0 } else { 2.5 };
        assert!(mean < 0.5 && most < few, "{}: {mean} of 255 levels, {most} at most", case.key);
        seen += 1;
    }
    assert_eq!(seen, 2 * 6 * 3);
}
