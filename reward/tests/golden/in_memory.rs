//! Pictures in memory: preprocessing with gradients against torchvision's formulas in PyTorch, scores against those of files.

use std::sync::atomic::AtomicBool;

use reward::{
    clip::{
        preprocess::load,
        preprocess_tensor::preprocess,
        preprocessing::{MEAN, Preprocessing, STD},
        tokenizer::Tokenizer,
    },
    data::{image::DecodeOptions, preflight::OnBadImage, source::ImageSource},
    device::DeviceName,
    engine::{EmbedOptions, embed, engine},
    event::Silent,
    rewards::spec::RewardSpec,
    weights::{Checkpoint, OpenOptions},
};
use tch::{Device, Kind, Tensor};

use crate::fixture::{Fixture, assert_close, relative_norm, values};

/// tests/golden/finetune.py
#[test]
fn preprocessing_and_its_gradient_are_pytorchs() {
    let fixture = Fixture::open("finetune/finetune.safetensors");
    for case in ["square", "oblong", "shrunk"] {
        let key = |part: &str| format!("preprocess.{case}.{part}");
        let input = fixture.torch(&key("input")).set_requires_grad(true);
        let output = preprocess(&input, fixture.shape(&key("output"))[2] as i64, &Preprocessing::default());
        assert_close(&key("output"), &values(&output), &fixture.floats(&key("output")), 1e-5);
        (output * fixture.torch(&key("weights"))).sum(Kind::Float).backward();
        // Relative, for values reach 15.
        let error = relative_norm(&values(&input.grad()), &fixture.floats(&key("gradient")));
        assert!(error <= 1e-5, "{case}: gradient off by {error:e}");
    }
}

/// An `[height, width, 3]` picture of bytes: soft shades, an edge, and noise that starts over with every `seed`.
fn photograph(height: usize, width: usize, seed: u32) -> Vec<u8> {
    let mut noise = seed.wrapping_mul(2_654_435_761) | 1;
    let mut pixels = Vec::with_capacity(height * width * 3);
    for (row, column) in (0..height).flat_map(|row| (0..width).map(move |column| (row, column))) {
        let (y, x) = (row as f32 / height as f32, column as f32 / width as f32);
        for channel in [0.0, 1.0, 2.0] {
            noise ^= noise << 13;
            noise ^= noise >> 17;
            noise ^= noise << 5;
            let shade = 0.5 + 0.35 * (5.0 * x + 3.0 * y * (1.0 + channel) + seed as f32).sin();
            let edge = if x + 0.5 * y > 0.8 { 0.25 } else { 0.0 };
            pixels.push(255.0 * (shade + edge + 0.15 * ((noise >> 8) as f32 / 16_777_216.0 - 0.5)));
        }
    }
    pixels.into_iter().map(|value: f32| value.round() as u8).collect()
}

/// What fine-tuning maximises is what `reward score` reports of the same picture, but for the rounding to bytes.
#[test]
fn a_picture_in_memory_scores_as_its_file() {
    const PROMPT: &str = "a red house by the sea";
    let channel = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]);
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open("random:tiny", OpenOptions::default()).unwrap();
    let prompt = Tokenizer::openai().encode(PROMPT, checkpoint.config.context_length);
    let files = engine(&checkpoint, DeviceName::Cpu).unwrap();
    let options =
        EmbedOptions { batch_size: 8, workers: 1, decode: DecodeOptions::default(), on_bad_image: OnBadImage::Stop };
    let spec: RewardSpec = "social-reward=random:tiny".parse().unwrap();
    let memory = spec.load(None, Device::Cpu, Kind::Float).unwrap();
    assert_eq!((memory.name(), memory.differentiable()), ("social-reward", true));

    let sizes = [(64, 64), (96, 128), (24, 24), (150, 97), (512, 512)];
    let cases = sizes.into_iter().flat_map(|size| (0..4).map(move |seed| (size, seed)));
    for ((height, width), seed) in cases {
        let pixels = photograph(height, width, seed);
        let path = folder.path().join(format!("{height}x{width}-{seed}.png"));
        image::save_buffer(&path, &pixels, width as u32, height as u32, image::ColorType::Rgb8).unwrap();
        let source = [ImageSource::File(path)];
        let (size, how) = (checkpoint.config.image_size as u32, &checkpoint.config.preprocessing);
        let file = load(&source[0].read().unwrap(), "", size, how, &options.decode).unwrap();
        let table =
            embed(&*files, &source, std::slice::from_ref(&prompt), &options, &Silent, &AtomicBool::new(false)).unwrap();

        let bytes = Tensor::from_slice(&pixels).view([1, height as i64, width as i64, 3]);
        let pixels = bytes.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0;
        let seen = preprocess(&pixels, i64::from(size), how);
        let levels = (seen * channel(STD) + channel(MEAN)) * 255.0;
        let levels = (levels.permute([0, 2, 3, 1]).flatten(0, -1) - Tensor::from_slice(&file.pixels)).abs();
        let level = levels.mean(Kind::Float).double_value(&[]);
        // The rounding alone makes a quarter.
        assert!(level < 0.4, "{height} x {width}, picture {seed}: {level} of 255 levels");
        let score = memory.score(&pixels, &[PROMPT]).unwrap().double_value(&[0]) as f32;
        let difference = (score - table.score(0, 0).unwrap()).abs();
        assert!(difference < 2e-3, "{height} x {width}, picture {seed}: {difference:e}");
    }
}
