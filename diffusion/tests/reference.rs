//! This crate beside diffusers-rs with the same weights: values, and the gradient of every parameter. Both layouts that
//! diffusers-rs knows are tried small: transformers in all levels but the coarsest, 1×1 convolutions (SD 1) or linear layers
//! (SD 2) around them, as many heads in every level (SD 1) or as many channels a head (SD 2). Its residual blocks have 32
//! groups whatever the config says, so these have too, and at least two channels a group: with one, what is added to a whole
//! channel has no effect, and its gradient is rounding alone.
#![cfg(feature = "reference")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

use std::sync::Mutex;

use diffusion::{
    config::{UnetConfig, VaeConfig},
    noise::{Stream, normal},
    unet::Unet,
    vae::Vae,
    verify::reference,
    weights::Weights,
};
use tch::{Kind, Tensor};

/// diffusers-rs draws from libtorch's one generator, when it builds a model and when it samples.
static GENERATOR: Mutex<()> = Mutex::new(());

fn unets() -> [(&'static str, UnetConfig); 2] {
    let tiny = UnetConfig::preset("sd-tiny").unwrap();
    let three_levels = UnetConfig {
        block_out_channels: vec![64, 64, 96],
        down_attention: vec![true, true, false],
        up_attention: vec![false, true, true],
        layers_per_block: 2,
        heads: vec![2; 3],
        use_linear_projection: false,
        ..tiny.clone()
    };
    [("as SD 1", three_levels), ("as SD 2", tiny)]
}

/// The largest difference over the largest value.
fn apart(ours: &Tensor, theirs: &Tensor) -> f64 {
    let largest = |tensor: Tensor| tensor.abs().max().double_value(&[]);
    largest(ours - theirs) / largest(theirs.shallow_clone())
}

#[test]
fn the_unet_and_its_gradients_are_those_of_diffusers_rs() {
    let _alone = GENERATOR.lock().unwrap();
    for (name, config) in unets() {
        let ours = Unet::new(&config, Weights::random(1).trained(true)).unwrap();
        let theirs = reference::unet(&config, &ours.parameters).unwrap();
        let latents = normal(2, Stream::Latents, &[2, 4, 8, 12]);
        let context = normal(3, Stream::Noise, &[2, 7, config.cross_attention_dim]);
        let weight = normal(4, Stream::Noise, &[2, 4, 8, 12]);

        let predicted = ours.forward(&latents, &Tensor::from_slice(&[481.0_f32; 2]), &context.shallow_clone().into());
        let wanted = theirs.model.forward(&latents, 481.0, &context);
        let error = apart(&predicted, &wanted);
        assert!(error < 1e-5, "{name}: {error:e}");

        (predicted * &weight).sum(Kind::Float).backward();
        (wanted * &weight).sum(Kind::Float).backward();
        let variables = theirs.variables.variables();
        assert_eq!(variables.len(), ours.parameters.tensors.len());
        for (key, variable) in variables {
            let (ours, theirs) = (ours.parameters.tensors[&key].grad(), variable.grad());
            assert!(theirs.abs().max().double_value(&[]) > 0.0, "{name}: {key} has no gradient");
            let error = apart(&ours.reshape(theirs.size()), &theirs);
            assert!(error < 1e-4, "{name}: gradient of {key}: {error:e}");
        }
    }
}

#[test]
fn the_vae_is_that_of_diffusers_rs() {
    let tiny = VaeConfig::preset("sd-tiny").unwrap();
    let deeper = VaeConfig { block_out_channels: vec![8, 16, 24], layers_per_block: 2, ..tiny.clone() };
    let _alone = GENERATOR.lock().unwrap();
    for config in [tiny, deeper] {
        let ours = Vae::new(&config, Weights::random(1)).unwrap();
        let theirs = reference::vae(&config, &ours.parameters).unwrap();
        tch::no_grad(|| {
            let pixels = normal(2, Stream::Pixels(0), &[2, 3, 4 * config.factor(), 2 * config.factor()]).tanh();
            let (wanted, noise) = reference::vae_sample(&theirs.model, &pixels, 5).unwrap();
            let (mean, log_variance) = ours.encode(&pixels);
            let error = apart(&(mean + (log_variance * 0.5).exp() * noise), &wanted);
            assert!(error < 1e-5, "encoder {:?}: {error:e}", config.block_out_channels);
            let latents = normal(3, Stream::Latents, &[2, 4, 4, 6]);
            let error = apart(&ours.decode(&latents), &theirs.model.decode(&latents));
            assert!(error < 1e-5, "decoder {:?}: {error:e}", config.block_out_channels);
        });
    }
}

/// What diffusers-rs cannot be is said, not panicked over and not called a mismatch.
#[test]
fn what_diffusers_rs_does_not_know_is_an_error() {
    let [_, (_, config)] = unets();
    let uneven = UnetConfig { up_attention: vec![true, true], ..config.clone() };
    for (config, message) in [
        (uneven, "diffusers-rs has no UNet whose"),
        (UnetConfig { norm_num_groups: 8, ..config }, "diffusers-rs knows 32 groups"),
    ] {
        let ours = Unet::new(&config, Weights::random(1)).unwrap();
        let error = reference::unet(&config, &ours.parameters).err().unwrap().to_string();
        assert!(error.starts_with(message), "{error}");
    }
}
