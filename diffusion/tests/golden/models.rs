//! The three models against diffusers and transformers.

use std::collections::BTreeMap;

use diffusion::{
    conditioning::Conditioning,
    config::{TextConfig, UnetConfig, VaeConfig},
    layer::Adapter,
    text::TextEncoder,
    unet::Unet,
    vae::{DecodeOptions, Vae},
    weights::{Stored, Weights},
};
use reward::weights::file::TensorFile;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::fixture::{Fixture, assert_close, golden, values};

const TOLERANCE: f32 = 1e-5;

pub(crate) fn config(folder: &str) -> Value {
    let path = golden(&format!("stable_diffusion/{folder}/config.json"));
    serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
}

pub(crate) fn weights(folder: &str) -> Weights {
    let folder = golden(&format!("stable_diffusion/{folder}"));
    let names =
        ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors", "model.safetensors"];
    let path = names.iter().map(|name| folder.join(name)).find(|path| path.is_file()).unwrap();
    let file = TensorFile::open(&path).unwrap();
    let place = file.shapes().keys().map(|name| (name.clone(), Stored { file: 0, name: name.clone(), rows: None }));
    let place = place.collect();
    Weights::from_files(path.display().to_string(), vec![file], place)
}

fn unet(folder: &str, weights: Weights) -> Unet {
    Unet::new(&UnetConfig::from_json(&config(folder)).unwrap(), weights).unwrap()
}

fn expected(model: &str) -> Fixture {
    Fixture::open(&format!("stable_diffusion/{model}.expected.safetensors"))
}

/// Latents, timesteps and prompts of a case.
fn inputs(fixture: &Fixture, case: &str) -> (Tensor, Tensor, Conditioning) {
    (
        fixture.torch(&format!("{case}.latents")),
        fixture.torch_integers(&format!("{case}.timesteps")),
        fixture.torch(&format!("{case}.context")).into(),
    )
}

#[test]
fn unets_predict_what_diffusers_predicts() {
    for name in ["unet_sd1", "unet_sd2", "unet_other"] {
        let (unet, expected) = (unet(name, weights(name)), expected(name));
        for case in ["square", "oblong"] {
            let (latents, timesteps, prompts) = inputs(&expected, case);
            let want = expected.floats(&format!("{case}.output"));
            let got = unet.forward(&latents, &timesteps, &prompts);
            assert_close(&format!("{name} {case}"), &values(&got), &want, TOLERANCE);
            let got = unet.forward_with(&latents, &timesteps.to_kind(Kind::Float), &unet.context(&prompts));
            assert_close(&format!("{name} {case}, prepared"), &values(&got), &want, TOLERANCE);
        }
    }
}

#[test]
fn a_unet_in_bf16_is_near_the_fp32_one_and_answers_in_fp32() {
    let (unet, expected) =
        (unet("unet_sd2", weights("unet_sd2").to(Device::Cpu, Kind::BFloat16)), expected("unet_sd2"));
    let (latents, timesteps, prompts) = inputs(&expected, "square");
    let got = unet.forward(&latents, &timesteps, &prompts);
    assert_eq!(got.kind(), Kind::Float);
    assert_close("bf16", &values(&got), &expected.floats("square.output"), 0.1);
}

#[test]
fn all_parameters_of_a_trained_unet_get_gradients() {
    let unet = unet("unet_sd1", weights("unet_sd1").trained(true));
    let expected = expected("unet_sd1");
    let (latents, timesteps, prompts) = inputs(&expected, "square");
    let output = unet.forward(&latents, &timesteps, &prompts);
    assert_close("output", &values(&output.detach()), &expected.floats("square.output"), TOLERANCE);
    output.square().mean(Kind::Float).backward();
    for (name, tensor) in &unet.parameters.tensors {
        let gradient = tensor.grad();
        assert!(gradient.defined() && gradient.abs().max().double_value(&[]) > 0.0, "{name}");
    }
}

#[test]
fn adapters_equal_their_merged_weights_and_can_be_switched_off() {
    let names = [
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", vec![8], 8),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k", vec![24], 16),
        ("up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj", vec![16], 128),
        ("up_blocks.1.attentions.0.proj_in", vec![16, 1, 1], 16),
        ("down_blocks.1.resnets.0.conv1", vec![8, 3, 3], 16),
        ("down_blocks.0.downsamplers.0.conv", vec![8, 3, 3], 8),
    ];
    let sine = |shape: &[i64], frequency: f64| {
        let count = shape.iter().product::<i64>();
        (Tensor::arange(count, (Kind::Float, Device::Cpu)) * frequency).sin().reshape(shape) * 0.3
    };
    let mut adapters = BTreeMap::new();
    for (name, inner, outputs) in &names {
        let ones = vec![1; inner.len() - 1];
        let down = sine(&[&[3], &inner[..]].concat(), 0.7).set_requires_grad(true);
        let up = sine(&[&[*outputs, 3], &ones[..]].concat(), 1.3).set_requires_grad(true);
        adapters.insert((*name).to_owned(), Adapter { down, up, scale: 0.5 });
    }
    let adapted = unet("unet_sd1", weights("unet_sd1").adapters(adapters));
    let merged = unet("unet_sd1", weights("unet_sd1"));
    assert_eq!(adapted.parameters.adapted.len(), names.len());
    for (name, Adapter { down, up, scale }) in &adapted.parameters.adapted {
        let weight = &merged.parameters.tensors[&format!("{name}.weight")];
        let update = (up.flatten(1, -1).matmul(&down.flatten(1, -1)) * *scale).reshape(weight.size());
        let _ = tch::no_grad(|| weight.shallow_clone().g_add_(&update));
    }
    let expected = expected("unet_sd1");
    let (latents, timesteps, prompts) = inputs(&expected, "oblong");
    let on = adapted.forward(&latents, &timesteps, &prompts);
    let want = merged.forward(&latents, &timesteps, &prompts);
    assert_close("adapters on", &values(&on.detach()), &values(&want), TOLERANCE);
    on.square().mean(Kind::Float).backward();
    for (name, adapter) in &adapted.parameters.adapted {
        for part in [&adapter.down, &adapter.up] {
            assert!(part.grad().defined() && part.grad().abs().max().double_value(&[]) > 0.0, "{name}");
        }
    }
    adapted.parameters.switch.set(false);
    let off = adapted.forward(&latents, &timesteps, &prompts);
    assert!(!off.requires_grad());
    let unadapted = expected.floats("oblong.output");
    assert_close("adapters off", &values(&off), &unadapted, TOLERANCE);
    assert!(values(&want).iter().zip(&unadapted).any(|(with, without)| (with - without).abs() > 0.05));
}

#[test]
fn vaes_with_new_and_old_keys_encode_and_decode_as_diffusers_does() {
    let expected = expected("vae");
    for name in ["vae", "vae_old"] {
        let vae = Vae::new(&VaeConfig::from_json(&config(name)).unwrap(), weights(name)).unwrap();
        let (mean, log_variance) = vae.encode(&expected.torch("pixels"));
        assert_close("mean", &values(&mean), &expected.floats("mean"), TOLERANCE);
        assert_close("log variance", &values(&log_variance), &expected.floats("log_variance"), TOLERANCE);
        let decoded = vae.decode(&expected.torch("latents"));
        assert_close("decoded", &values(&decoded), &expected.floats("decoded"), TOLERANCE);
        for tile_side in [None, Some(32)] {
            let sliced = vae.decode_with(&expected.torch("latents"), DecodeOptions { slicing: true, tile_side });
            assert_close("sliced", &values(&sliced), &expected.floats("decoded"), TOLERANCE);
        }
        for slicing in [false, true] {
            let options = DecodeOptions { slicing, tile_side: Some(32) };
            let tiled = vae.decode_with(&expected.torch("large"), options);
            assert_close("tiled", &values(&tiled), &expected.floats("tiled"), TOLERANCE);
        }
    }
}

#[test]
fn text_encoders_give_the_hidden_states_of_transformers() {
    for name in ["text_sd1", "text_sd2"] {
        let encoder = TextEncoder::new(&TextConfig::from_json(&config(name)).unwrap(), weights(name)).unwrap();
        let expected = expected(name);
        let hidden = encoder.forward(&expected.torch_integers("ids"));
        assert_close(name, &values(&hidden), &expected.floats("hidden"), TOLERANCE);
        assert!(encoder.parameters.tensors.keys().all(|key| key.starts_with("text_model.")));
    }
}

#[test]
fn configs_are_read_back_as_they_are_written() {
    for name in ["unet_sd1", "unet_sd2", "unet_other"] {
        let read = UnetConfig::from_json(&config(name)).unwrap();
        assert_eq!(UnetConfig::from_json(&read.to_json()).unwrap(), read);
    }
    for preset in diffusion::config::PRESETS {
        let unet = UnetConfig::preset(preset).unwrap();
        assert_eq!(UnetConfig::from_json(&unet.to_json()).unwrap(), unet);
        let vae = VaeConfig::preset(preset).unwrap();
        assert_eq!(VaeConfig::from_json(&vae.to_json()).unwrap(), vae);
        let text = TextConfig::preset(preset).unwrap();
        assert_eq!(TextConfig::from_json(&text.to_json()).unwrap(), text);
    }
}

#[test]
fn a_random_tiny_model_answers_at_a_realistic_scale() {
    let unet = Unet::new(&UnetConfig::preset("sd-tiny").unwrap(), Weights::random(7)).unwrap();
    let vae = Vae::new(&VaeConfig::preset("sd-tiny").unwrap(), Weights::random(7)).unwrap();
    let text = TextEncoder::new(&TextConfig::preset("sd-tiny").unwrap(), Weights::random(7)).unwrap();
    let hidden = text.forward(&Tensor::arange(77, (Kind::Int64, Device::Cpu)).unsqueeze(0));
    let latents = (Tensor::arange(4 * 8 * 8, (Kind::Float, Device::Cpu)) * 1.7).sin().view([1, 4, 8, 8]);
    let noise = unet.forward(&latents, &Tensor::from_slice(&[500_i64]), &hidden.shallow_clone().into());
    let image = vae.decode(&latents);
    assert_eq!(image.size(), [1, 3, 64, 64]);
    for (what, tensor) in [("hidden", &hidden), ("noise", &noise), ("image", &image)] {
        let deviation = tensor.std(true).double_value(&[]);
        assert!((0.05..5.0).contains(&deviation), "{what}: {deviation}");
    }
    let again = Unet::new(&UnetConfig::preset("sd-tiny").unwrap(), Weights::random(7)).unwrap();
    assert_eq!(values(&again.parameters.tensors["conv_in.weight"]), values(&unet.parameters.tensors["conv_in.weight"]));
}
