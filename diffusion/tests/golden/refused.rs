//! Models and weights that are refused, and what the errors say.

use std::collections::BTreeMap;

use diffusion::{
    Error,
    config::{TextConfig, UnetConfig, VaeConfig},
    layer::Adapter,
    unet::Unet,
    vae::Vae,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::models::{config, weights};

/// The fixture's config with one field changed.
fn changed(folder: &str, key: &str, value: Value) -> Value {
    let mut config = config(folder);
    config[key] = value;
    config
}

#[track_caller]
fn assert_says<T>(result: Result<T, Error>, parts: &[&str]) {
    let error = result.err().expect("refused").to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn unsupported_values_of_a_unet_are_named() {
    let cases = [
        ("addition_embed_type", json!("text_time"), "Stable Diffusion XL"),
        ("transformer_layers_per_block", json!([1, 2, 10]), "Stable Diffusion XL"),
        ("in_channels", json!(9), "inpainting"),
        ("_class_name", json!("SD3Transformer2DModel"), "Stable Diffusion 3"),
        ("_class_name", json!("FluxTransformer2DModel"), "Flux"),
        ("time_cond_proj_dim", json!(256), "latent consistency"),
        ("act_fn", json!("gelu"), "silu"),
        ("down_block_types", json!(["DownBlock2D", "AttnDownBlock2D"]), "CrossAttnDownBlock2D"),
        ("block_out_channels", json!([8, 18]), "groups"),
        ("attention_head_dim", json!([2, 4, 8]), "entries"),
        ("layers_per_block", json!([1, 2]), "the same for every level"),
        ("invented", json!("x"), "invented"),
    ];
    for (key, value, part) in cases {
        let key_named = if key == "block_out_channels" { "channels" } else { key };
        assert_says(UnetConfig::from_json(&changed("unet_sd2", key, value)), &[key_named, part]);
    }
}

#[test]
fn unsupported_values_of_the_other_models_are_named() {
    let vae = |key, value| VaeConfig::from_json(&changed("vae", key, value));
    assert_says(vae("latent_channels", json!(16)), &["latent_channels", "Flux"]);
    assert_says(vae("use_quant_conv", json!(false)), &["use_quant_conv"]);
    assert_says(vae("_class_name", json!("VQModel")), &["VQModel", "AutoencoderKL"]);
    let text = |key, value| TextConfig::from_json(&changed("text_sd2", key, value));
    assert_says(text("hidden_act", json!("relu")), &["hidden_act", "quick_gelu"]);
    assert_says(text("architectures", json!(["CLIPTextModelWithProjection"])), &["CLIPTextModelWithProjection"]);
    assert_says(text("hidden_size", json!(33)), &["hidden_size", "heads"]);
}

#[test]
fn weights_of_another_model_are_listed() {
    let sd1 = UnetConfig::from_json(&config("unet_sd1")).unwrap();
    assert_says(Unet::new(&sd1, weights("unet_sd2")), &["unet_sd2", "do not fit", "is missing", "more"]);
    let wider = UnetConfig { cross_attention_dim: 48, ..UnetConfig::from_json(&config("unet_sd2")).unwrap() };
    assert_says(Unet::new(&wider, weights("unet_sd2")), &["attn2.to_k.weight` has shape [8, 32], want [8, 48]"]);
    let shallow = VaeConfig { block_out_channels: vec![8, 16], ..VaeConfig::from_json(&config("vae")).unwrap() };
    assert_says(Vae::new(&shallow, weights("vae")), &["do not fit"]);
}

#[test]
fn adapters_that_fit_no_layer_are_listed() {
    let config = UnetConfig::from_json(&config("unet_sd2")).unwrap();
    let adapter = |inputs: i64, outputs: i64| {
        let zeros = |shape: [i64; 2]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        Adapter { down: zeros([2, inputs]), up: zeros([outputs, 2]), scale: 1.0 }
    };
    let with = |name: &str, adapter: Adapter| {
        Unet::new(&config, weights("unet_sd2").adapters(BTreeMap::from([(name.to_owned(), adapter)])))
    };
    assert_says(with("down_blocks.7.to_q", adapter(8, 8)), &["down_blocks.7.to_q", "does not have"]);
    assert_says(
        with("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", adapter(9, 8)),
        &["attn1.to_q", "[2, 9]", "[rank, 8]"],
    );
}
