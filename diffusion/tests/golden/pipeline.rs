//! The whole pipeline against diffusers' `StableDiffusionPipeline` (`tests/golden/pipeline.py`): prompts and given latents to
//! final latents and pictures.

use std::sync::atomic::AtomicBool;

use diffusion::{
    lora::Lora,
    pipeline::Pipeline,
    sample::Request,
    schedule::{Sampler, SchedulerConfig},
    source::{Source, SourceOptions},
    vae::DecodeOptions,
};
use serde_json::Value;
use tch::{Device, Kind};

use crate::{
    fixture::{Fixture, assert_close, golden, values},
    samplers::assert_close_for_its_size,
};

fn source() -> Source {
    Source::open(golden("pipeline/model").to_str().unwrap(), SourceOptions::default()).unwrap()
}

#[test]
fn latents_and_pictures_are_diffusers() {
    let fixture = Fixture::open("pipeline/pipeline.safetensors");
    let text = fs_err::read_to_string(golden("pipeline/pipeline.json")).unwrap();
    let description: Value = serde_json::from_str(&text).unwrap();
    let prompts: Vec<&str> =
        description["prompts"].as_array().unwrap().iter().map(|prompt| prompt.as_str().unwrap()).collect();
    let source = source();
    let pipeline =
        Pipeline::load(&source, Lora::default(), DecodeOptions::default(), Device::Cpu, Kind::Float).unwrap();

    let positive = pipeline.embed(&prompts).unwrap();
    let negative = pipeline.embed(&[description["negative"].as_str().unwrap()]).unwrap();
    let hidden = fixture.torch("hidden");
    assert_close("prompts", &values(&positive.hidden), &values(&hidden.narrow(0, 0, 2)), 1e-5);
    assert_close("negative prompt", &values(&negative.hidden), &values(&hidden.narrow(0, 2, 1)), 1e-5);

    let start = fixture.torch("start");
    let steps = description["steps"].as_u64().unwrap() as usize;
    for case in description["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        // The folder's own scheduler config is the case `ddim`'s with diffusers' defaults written out.
        let config = match name {
            "ddim" => source.scheduler().unwrap(),
            _ => SchedulerConfig::from_json(&case["scheduler"]).unwrap(),
        };
        let sampler = Sampler::new(case["sampler"].as_str().unwrap().parse().unwrap(), &config, steps, 0.0).unwrap();
        let request = Request {
            sampler: &sampler,
            prompts: &positive,
            negative_prompts: Some(&negative),
            base: None,
            latents: &start,
            seeds: &[0, 1],
            guidance_scale: case["guidance_scale"].as_f64().unwrap(),
            precision: Kind::Float,
        };
        let latents = pipeline.denoise(&request, &AtomicBool::new(false), |_| ()).unwrap();
        let want = fixture.torch(&format!("{name}.latents"));
        assert_close_for_its_size(name, &values(&latents), &values(&want), 1e-4);
        let pictures = fixture.bytes(&format!("{name}.images"));
        for (image, want) in pictures.chunks_exact(16 * 16 * 3).enumerate() {
            let got = pipeline.decode(&latents.get(image as i64)).unwrap();
            assert_eq!(got.len(), want.len());
            let worst = got.iter().zip(want).map(|(got, want)| got.abs_diff(*want)).max();
            assert!(worst <= Some(1), "{name}, image {image}: off by {worst:?} levels");
        }
    }
}
