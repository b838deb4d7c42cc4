//! Every metric with weights against the field's own code on the same tiny checkpoints: tests/golden/metrics.py.

use std::path::Path;

use reward::{
    Error,
    clip::{
        preprocess_tensor::preprocess,
        preprocessing::{Preprocessing, Resize},
    },
    rewards::{Reward, image_reward::WordPiece, spec::RewardSpec},
};
use tch::{Device, Kind, Tensor};

use crate::fixture::{Fixture, assert_close, golden, golden_text, relative_norm, values};

const CASES: [&str; 5] = ["square", "wide", "tall", "small", "narrow"];
const PROMPTS: [&str; 2] = ["a red fox in snow, highly detailed", "Sunset over the SEA"];

/// The file of expected scores of a metric.
fn expected(name: &str) -> Fixture {
    let folder = if name == "image-reward" { "image_reward" } else { "metrics" };
    Fixture::open(&format!("{folder}/expected.safetensors"))
}

/// Name, checkpoint, and the key of the expected scores.
const METRICS: [(&str, &str, &str); 7] = [
    ("social-reward", "clip.pt", "clip-score"),
    ("clip-score", "clip.pt", "clip-score"),
    ("aesthetic", "aesthetic.pth", "aesthetic"),
    ("pick-score", "pick_score", "pick-score"),
    ("hps-v2", "hps.pt", "hps-v2"),
    ("hps-v2.1", "hps.pt", "hps-v2"),
    ("image-reward", "../image_reward", "image-reward"),
];

fn path(name: &str) -> String {
    golden_text(&format!("metrics/{name}"))
}

fn spec(name: &str, file: &str) -> RewardSpec {
    format!("{name}={}", path(file)).parse().unwrap()
}

fn load(name: &str, file: &str, kind: Kind) -> reward::Result<Box<dyn Reward>> {
    spec(name, file).load(Some(&path("clip.pt")), Device::Cpu, kind)
}

#[track_caller]
fn refusal(result: reward::Result<Box<dyn Reward>>) -> Error {
    match result {
        Ok(reward) => panic!("loaded: {}", reward.name()),
        Err(error) => error,
    }
}

#[test]
fn scores_are_those_of_the_authors_code() {
    let fixture = Fixture::open("metrics/expected.safetensors");
    for (name, file, key) in METRICS {
        let reward = load(name, file, Kind::Float).unwrap();
        assert_eq!((reward.name(), reward.differentiable()), (name, true));
        for case in CASES {
            let pixels = fixture.torch(&format!("{case}.pixels"));
            let scores = reward.score(&pixels, &PROMPTS).unwrap();
            let want = expected(name).floats(&format!("{case}.{key}"));
            assert_close(&format!("{name}, {case}"), &values(&scores), &want, 1e-4);
        }
    }
}

/// The files are gone before the first of twenty calls.
#[test]
fn a_checkpoint_is_read_once() {
    let pixels = Fixture::open("metrics/expected.safetensors").torch("small.pixels");
    for (name, file, key) in METRICS {
        let folder = tempfile::tempdir().unwrap();
        copy_files(&golden("metrics"), &folder.path().join("metrics"));
        copy_files(&golden("image_reward"), &folder.path().join("image_reward"));
        let at = |file: &str| folder.path().join("metrics").join(file).display().to_string();
        let spec: RewardSpec = format!("{name}={}", at(file)).parse().unwrap();
        let reward = spec.load(Some(&at("clip.pt")), Device::Cpu, Kind::Float).unwrap();
        folder.close().unwrap();
        let want = expected(name).floats(&format!("small.{key}"));
        for _ in 0..20 {
            assert_close(name, &values(&reward.score(&pixels, &PROMPTS).unwrap()), &want, 1e-4);
        }
    }
}

/// A folder with its files and folders.
fn copy_files(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_files(&entry.path(), &target);
        } else {
            fs_err::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn the_letterbox_and_its_gradient_are_torchvisions() {
    let fixture = Fixture::open("metrics/expected.safetensors");
    for case in CASES {
        let want = fixture.floats(&format!("{case}.letterbox"));
        let pixels = fixture.torch(&format!("{case}.pixels")).narrow(0, 0, 1);
        let letterbox = Preprocessing { resize: Resize::Letterbox, ..Preprocessing::default() };
        assert_close(case, &values(&preprocess(&pixels, 28, &letterbox)), &want, 1e-5);
    }
    let pixels = fixture.torch("wide.pixels").set_requires_grad(true);
    let reward = load("hps-v2", "hps.pt", Kind::Float).unwrap();
    reward.score(&pixels, &PROMPTS).unwrap().sum(Kind::Float).backward();
    let error = relative_norm(&values(&pixels.grad()), &fixture.floats("wide.hps-v2.gradient"));
    assert!(error <= 1e-4, "gradient off by {error:e}");
}

#[test]
fn gradients_reach_every_picture_through_every_metric() {
    for (name, file, _) in METRICS {
        let mut reward = load(name, file, Kind::Float).unwrap();
        let mut gradient = |checkpointing| {
            reward.set_checkpointing(checkpointing);
            let pixels = Fixture::open("metrics/expected.safetensors").torch("narrow.pixels").set_requires_grad(true);
            reward.score(&pixels, &PROMPTS).unwrap().sum(Kind::Float).backward();
            pixels.grad()
        };
        let plain = gradient(false);
        for picture in 0..2 {
            let largest = plain.get(picture).abs().max().double_value(&[]);
            assert!(largest > 1e-6 && largest.is_finite(), "{name}, picture {picture}: {largest}");
        }
        assert!(gradient(true).allclose(&plain, 1e-5, 1e-9, false), "{name}");
    }
}

/// The factor of PickScore is read as fp32: exp of a rounded logit_scale would be off by a percent at 4.6.
#[test]
fn bf16_is_near_fp32() {
    let fixture = Fixture::open("metrics/expected.safetensors");
    for (name, file, key) in METRICS {
        let reward = load(name, file, Kind::BFloat16).unwrap();
        let scores = reward.score(&fixture.torch("tall.pixels"), &PROMPTS).unwrap();
        assert_eq!(scores.kind(), Kind::Float);
        let tolerance = match name {
            "pick-score" => 0.03 * 3.2_f32.exp(),
            "image-reward" => 0.5,
            _ => 0.1,
        };
        assert_close(name, &values(&scores), &expected(name).floats(&format!("tall.{key}")), tolerance);
    }
}

#[test]
fn every_weights_file_is_named() {
    let files = |name, file| spec(name, file).files(Some(&path("clip.pt"))).unwrap();
    assert_eq!(files("clip-score", "clip.pt"), [golden("metrics/clip.pt")]);
    assert_eq!(files("aesthetic", "aesthetic.pth"), [golden("metrics/aesthetic.pth"), golden("metrics/clip.pt")]);
    assert_eq!(files("pick-score", "pick_score"), [golden("metrics/pick_score/pytorch_model.bin")]);
}

#[test]
fn a_checkpoint_of_another_kind_is_refused_with_a_way_out() {
    for (name, file, says, hint) in [
        ("aesthetic", "clip.pt", "`layers.0.weight` is missing", "sac+logos+ava1-l14-linearMSE.pth"),
        ("clip-score", "aesthetic.pth", "no tensor `visual.conv1.weight`", "Hugging Face CLIP folders"),
        ("hps-v2", "aesthetic.pth", "no tensor `visual.conv1.weight`", "Hugging Face CLIP folders"),
        ("pick-score", "../clip/hf_quick_gelu", "pick-score is a ViT-H/14 with exact GELU", "PickScore_v1"),
        ("hps-v2.1", "../clip/hf_quick_gelu", "hps-v2.1 is a ViT-H/14 with exact GELU", "HPS_v2.1_compressed.pt"),
        ("hps-v2", "HPS_v2.1_compressed.pt", "the weights of hps-v2.1, not of hps-v2", "say hps-v2.1="),
        ("hps-v2.1", "HPS_v2_compressed.pt", "the weights of hps-v2, not of hps-v2.1", "say hps-v2="),
        ("pick-score", "../clip/hf_gelu", "200 tokens", "another tokenizer"),
        ("image-reward", "pick_score", "pick_score/ImageReward.pt: no such file", "vocab.txt of bert-base-uncased"),
        ("hps-v2", "absent.pt", "absent.pt: no such file", "state dict"),
    ] {
        let error = refusal(load(name, file, Kind::Float));
        assert!(error.to_string().contains(says), "{name} of {file}: {error}");
        assert!(error.hint_text().is_some_and(|text| text.contains(hint)), "{error}: {:?}", error.hint_text());
    }
    let spec = spec("aesthetic", "aesthetic.pth");
    let error = refusal(spec.load(None, Device::Cpu, Kind::Float));
    assert!(error.hint_text().unwrap().contains("--clip PATH"), "{error}");
    let error = refusal(spec.load(Some("random:tiny"), Device::Cpu, Kind::Float));
    assert!(error.to_string().contains("`layers.0.weight` has shape [16, 24], want [16, 64]"), "{error}");
}

#[test]
fn an_image_reward_of_other_files_is_refused_by_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| fs_err::copy(golden(from), folder.path().join(to)).unwrap();
    for file in ["ImageReward.pt", "med_config.json", "vocab.txt"] {
        copy(&format!("image_reward/{file}"), file);
    }
    let spec: RewardSpec = format!("image-reward={}", folder.path().display()).parse().unwrap();
    let refused = || refusal(spec.load(None, Device::Cpu, Kind::Float)).to_string();
    spec.load(None, Device::Cpu, Kind::Float).unwrap();
    copy("metrics/hps.pt", "ImageReward.pt");
    assert!(refused().contains("no tensor `blip.visual_encoder.patch_embed.proj.weight`"), "{}", refused());
    copy("image_reward/ImageReward.pt", "ImageReward.pt");
    let config = fs_err::read_to_string(golden("image_reward/med_config.json")).unwrap();
    let wider = config.replace("\"intermediate_size\": 64", "\"intermediate_size\": 65");
    fs_err::write(folder.path().join("med_config.json"), wider).unwrap();
    assert!(
        refused().contains(
            "`blip.text_encoder.encoder.layer.0.intermediate.dense.weight` has shape [64, 32], want [65, 32]"
        ),
        "{}",
        refused()
    );
    fs_err::write(folder.path().join("med_config.json"), config.replace("hidden_size", "hidden")).unwrap();
    assert!(refused().contains("med_config.json: `hidden_size` is missing"), "{}", refused());
    copy("image_reward/med_config.json", "med_config.json");
    fs_err::write(folder.path().join("vocab.txt"), "a\nb\n").unwrap();
    assert!(refused().contains("vocab.txt: no piece `[UNK]`"), "{}", refused());
}

#[test]
fn berts_tokens_are_those_of_transformers() {
    let fixture = Fixture::open("image_reward/expected.safetensors");
    let words = WordPiece::read(&golden("image_reward/vocab.txt")).unwrap();
    let texts: Vec<String> = serde_json::from_slice(&fs_err::read(golden("image_reward/texts.json")).unwrap()).unwrap();
    let (rows, lengths) = (fixture.integers("input_ids"), fixture.integers("lengths"));
    for ((text, row), length) in texts.iter().zip(rows.chunks(35)).zip(lengths) {
        assert_eq!(words.encode(text, 35), row[..length as usize], "{text:?}");
    }
}

/// Prompts are counted even where they are not read.
#[test]
fn shapes_are_checked_at_every_door() {
    for (name, file, _) in METRICS {
        let reward = load(name, file, Kind::Float).unwrap();
        let error = reward.score(&Tensor::zeros([2, 3, 8, 8], (Kind::Float, Device::Cpu)), &["one"]).unwrap_err();
        assert_eq!(error.to_string(), "pixels to score for 1 prompt(s): want [1, 3, H, W], got [2, 3, 8, 8]", "{name}");
    }
}
