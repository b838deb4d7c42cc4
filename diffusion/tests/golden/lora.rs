//! LoRA files of every convention against diffusers and PEFT (`lora.py`).

use std::{collections::BTreeMap, path::Path};

use diffusion::{
    config::{TextConfig, UnetConfig},
    folder::{self, Component},
    lora::{self, Base, Layers, Lora},
    text::TextEncoder,
    unet::Unet,
    weights::Weights,
};
use tch::Tensor;

use crate::fixture::{Fixture, assert_close, golden, values};

fn weights(component: Component) -> Weights {
    let (files, place) = folder::weights(&golden("lora"), component).unwrap();
    Weights::from_files("lora".to_owned(), files, place)
}

pub(crate) fn unet(lora: Option<Lora>) -> Unet {
    let config = UnetConfig::from_json(&folder::config(&golden("lora"), Component::Unet).unwrap()).unwrap();
    Unet::new(&config, weights(Component::Unet).adapters(lora.map(|lora| lora.unet).unwrap_or_default())).unwrap()
}

fn text(lora: Option<Lora>) -> TextEncoder {
    let config = TextConfig::from_json(&folder::config(&golden("lora"), Component::TextEncoder).unwrap()).unwrap();
    let weights = weights(Component::TextEncoder).adapters(lora.map(|lora| lora.text).unwrap_or_default());
    TextEncoder::new(&config, weights).unwrap()
}

pub(crate) fn layers() -> Layers {
    Layers::of(&unet(None).parameters, &text(None).parameters)
}

fn opened(file: &str) -> Lora {
    Lora::open(&golden("lora").join(file), &layers(), 1.0).unwrap()
}

pub(crate) fn run_unet(unet: &Unet) -> Vec<f32> {
    let fixture = Fixture::open("lora/expected.safetensors");
    let timesteps = Tensor::from_slice(&fixture.integers("timesteps"));
    values(&unet.forward(&fixture.torch("latents"), &timesteps, &fixture.torch("context").into()))
}

fn run_text(text: &TextEncoder) -> Vec<f32> {
    let ids = Tensor::from_slice(&Fixture::open("lora/expected.safetensors").integers("ids")).reshape([2, 12]);
    values(&text.forward(&ids))
}

fn expected(name: &str) -> Vec<f32> {
    Fixture::open("lora/expected.safetensors").floats(name)
}

/// Files, with whether they have adapters for the text encoder.
const FILES: [(&str, &str, bool); 4] = [
    ("diffusers", "diffusers", true),
    ("peft", "peft", false),
    ("kohya", "kohya.safetensors", true),
    ("processors", "processors.safetensors", false),
];

#[test]
fn outputs_are_those_of_diffusers_and_peft() {
    assert_close("unet", &run_unet(&unet(None)), &expected("unet.base"), 1e-5);
    assert_close("text", &run_text(&text(None)), &expected("text.base"), 1e-5);
    for (name, file, has_text) in FILES {
        assert_close(name, &run_unet(&unet(Some(opened(file)))), &expected(&format!("unet.{name}")), 1e-5);
        assert_eq!(opened(file).text.is_empty(), !has_text, "{name}");
        if has_text {
            assert_close(name, &run_text(&text(Some(opened(file)))), &expected(&format!("text.{name}")), 1e-5);
        }
    }
}

#[test]
fn merged_weights_give_the_same_and_come_back_to_the_bit() {
    for (name, file, _) in FILES {
        let unet = unet(None);
        let before = run_unet(&unet);
        let merged = lora::merge(&unet.parameters, &opened(file).unet).unwrap();
        assert_close(name, &run_unet(&unet), &expected(&format!("unet.{name}")), 1e-5);
        merged.unmerge(&unet.parameters);
        assert_eq!(run_unet(&unet), before, "{name}");
    }
}

#[test]
fn the_scale_multiplies() {
    let lora = |scale| Lora::open(&golden("lora/kohya.safetensors"), &layers(), scale).unwrap();
    assert_close("no update", &run_unet(&unet(Some(lora(0.0)))), &expected("unet.base"), 1e-5);
    let (half, whole) = (lora(0.5), lora(1.0));
    // alpha 1 in rank 4.
    assert!(half.unet.values().all(|adapter| adapter.scale == 0.125));
    assert!(whole.unet.values().all(|adapter| adapter.scale == 0.25));
}

/// Factors and scales by layer.
fn content(lora: &Lora) -> BTreeMap<String, (Vec<f32>, Vec<f32>, f64)> {
    let all = lora.unet.iter().chain(&lora.text);
    all.map(|(layer, adapter)| (layer.clone(), (values(&adapter.down), values(&adapter.up), adapter.scale))).collect()
}

#[test]
fn files_that_were_written_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("written.safetensors");
    for (name, file, _) in FILES {
        let lora = opened(file);
        for by_kohya in [false, true] {
            match by_kohya {
                false => lora::diffusers(&path, &lora).unwrap(),
                true => lora::kohya(&path, &lora, &Base::default()).unwrap(),
            }
            let again = Lora::open(&path, &layers(), 1.0).unwrap();
            let (found, wanted) = (content(&again), content(&lora));
            assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{name}");
            for (layer, (down, up, scale)) in wanted {
                assert_eq!((&found[&layer].0, &found[&layer].1), (&down, &up), "{name} {layer}");
                // kohya's alpha is fp32.
                assert!((found[&layer].2 - scale).abs() <= 1e-7 * scale, "{name} {layer}: {scale}");
            }
        }
    }
}

fn write(path: &Path, tensors: &[(&str, &[usize])]) {
    let bytes = vec![0; 1 << 16];
    let views = tensors.iter().map(|(name, shape)| {
        let length = shape.iter().product::<usize>() * 4;
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &bytes[..length]);
        (*name, view.unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

#[test]
fn what_does_not_fit_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.safetensors");
    let attention = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    let layer = attention.replace("blocks_", "blocks.").replace("_0", ".0").replace("0_", "0.").replace("1_", "1.");
    let down = format!("lora_unet_{attention}.lora_down.weight");
    let up = format!("lora_unet_{attention}.lora_up.weight");
    let error = |tensors: &[(&str, &[usize])]| {
        write(&path, tensors);
        Lora::open(&path, &layers(), 1.0).unwrap_err().to_string()
    };
    let other_base = error(&[(&down, &[4, 320]), (&up, &[320, 4])]);
    assert!(other_base.contains("down [4, 320] and up [320, 4] do not fit its weight [16, 16]"), "{other_base}");
    assert!(other_base.contains(&layer.replace("attn1.to.q", "attn1.to_q")), "{other_base}");
    let alone = error(&[(&down, &[4, 16])]);
    assert!(alone.contains("down without up"), "{alone}");
    let unknown: Vec<String> = (0..9).map(|block| format!("unet.nowhere.{block}.lora_A.weight")).collect();
    let unknown: Vec<(&str, &[usize])> = unknown.iter().map(|name| (name.as_str(), &[4, 16][..])).collect();
    let unknown = error(&unknown);
    assert!(unknown.contains("no layer `nowhere.0`") && unknown.contains("and 4 more"), "{unknown}");
    for (key, kind) in [
        (format!("lora_unet_{attention}.dora_scale"), "DoRA is not supported"),
        (format!("lora_unet_{attention}.hada_w1_a"), "LoHa is not supported"),
        (format!("lora_unet_{attention}.lokr_w1"), "LoKr is not supported"),
        (format!("lora_unet_{attention}.lora_mid.weight"), "LoCon with a Tucker decomposition is not supported"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha".to_owned(), "Stable Diffusion XL"),
    ] {
        let error = error(&[(&down, &[4, 16]), (&up, &[16, 4]), (&key, &[1])]);
        assert!(error.contains(kind), "{error}");
    }
}

/// One adapter of the text encoder and one of the UNet, by the names of each program, in the shapes of the model.
#[test]
fn every_programs_names_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("named.safetensors");
    let layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let ldm = "input_blocks.1.1.transformer_blocks.0.attn1.to_q";
    let text = "encoder.layers.0.self_attn.q_proj";
    for (unet, of_text, [down, up]) in [
        (
            format!("diffusion_model.{ldm}"),
            format!("text_encoders.clip_l.transformer.text_model.{text}"),
            [".lora_down.weight", ".lora_up.weight"],
        ),
        (format!("unet.{ldm}"), format!("clip_l.{text}"), [".lora_down.weight", ".lora_up.weight"]),
        (
            format!("lora_unet_{}", ldm.replace('.', "_")),
            format!("lora_te_text_model_{}", text.replace('.', "_")),
            [".lora_down.weight", ".lora_up.weight"],
        ),
        (
            format!("base_model.model.{layer}"),
            format!("text_encoder.text_model.{text}"),
            [".lora_A.my_style.weight", ".lora_B.my_style.weight"],
        ),
        (
            format!("unet.base_model.model.{layer}"),
            format!("text_encoder.{text}"),
            [".lora_A.weight", ".lora_B.weight"],
        ),
    ] {
        let keys =
            [format!("{unet}{down}"), format!("{unet}{up}"), format!("{of_text}{down}"), format!("{of_text}{up}")];
        let [unet_down, unet_up, text_down, text_up] = keys.each_ref().map(String::as_str);
        let tensors: [(&str, &[usize]); 5] =
            [(unet_down, &[4, 16]), (unet_up, &[16, 4]), (text_down, &[4, 16]), (text_up, &[16, 4]), ("step", &[])];
        write(&path, &tensors);
        let lora = Lora::open(&path, &layers(), 1.0).unwrap();
        assert!(lora.unet.keys().eq([layer]), "{unet}");
        assert!(lora.text.keys().eq([&format!("text_model.{text}")]), "{of_text}");
    }
}

/// Values of every tensor by name and shape; the first becomes `odd`.
fn write_values(path: &Path, tensors: &[(&str, &[usize], f32)]) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape, value)| (0..shape.iter().product::<usize>()).flat_map(|_| value.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

#[test]
fn values_that_are_not_finite_are_refused_by_file_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nan.safetensors");
    let layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    let names = ["lora_down.weight", "lora_up.weight", "alpha", "scalar"].map(|part| format!("{layer}.{part}"));
    let shapes: [&[usize]; 4] = [&[4, 16], &[16, 4], &[], &[]];
    let write = |values: [f32; 4]| {
        let tensors = names.iter().zip(shapes).zip(values).map(|((name, shape), value)| (name.as_str(), shape, value));
        write_values(&path, &tensors.collect::<Vec<_>>());
    };
    for (odd, name) in names.iter().enumerate() {
        for value in [f32::NAN, f32::INFINITY] {
            let mut values = [1.0; 4];
            values[odd] = value;
            write(values);
            let error = Lora::open(&path, &layers(), 1.0).unwrap_err().to_string();
            assert!(
                error.contains("nan.safetensors") && error.contains(name) && error.contains("is NaN, infinite"),
                "{error}"
            );
        }
    }
    // Finite, but not what comes of it.
    write([1e30, 1e30, 1.0, 1.0]);
    let error = Lora::open(&path, &layers(), 1.0).unwrap_err().to_string();
    assert!(error.contains("not finite") && error.contains("attn1.to_q"), "{error}");
    // LyCORIS' factor is a factor: alpha 2 of rank 4, times 3, times the user's.
    write([1.0, 1.0, 2.0, 3.0]);
    let lora = Lora::open(&path, &layers(), 0.5).unwrap();
    assert_eq!(lora.unet.values().next().unwrap().scale, 0.75);
}

/// "Another base" is said only where shapes differ, and by name where the prompts' widths tell it.
#[test]
fn hints_say_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.safetensors");
    let hint = |layers: &Layers, tensors: &[(&str, &[usize])]| {
        write(&path, tensors);
        Lora::open(&path, layers, 1.0).unwrap_err().hint_text().unwrap().to_owned()
    };
    let layers_of = |model: &str| diffusion::source::Source::open(model, Default::default()).unwrap().layers().unwrap();
    let reads_prompt = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";
    let (down, up) = (format!("{reads_prompt}.lora_down.weight"), format!("{reads_prompt}.lora_up.weight"));
    let one = hint(&layers_of("random:sd15"), &[(&down, &[4, 1024]), (&up, &[320, 4])]);
    assert_eq!(
        one,
        "it was trained on another base: Stable Diffusion 2.x with prompts 1024 wide, this model's are 768 wide"
    );
    let two = hint(&layers_of("random:sd21-base"), &[(&down, &[4, 768]), (&up, &[320, 4])]);
    assert!(two.contains("Stable Diffusion 1.x with prompts 768 wide, this model's are 1024 wide"), "{two}");
    let half = hint(&layers_of("random:sd15"), &[(&down, &[4, 768])]);
    assert!(!half.contains("another base"), "{half}");
    // An adapter that fits either base is for either.
    let own = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k";
    let (down, up) = (format!("{own}.lora_down.weight"), format!("{own}.lora_up.weight"));
    write(&path, &[(&down, &[4, 320]), (&up, &[320, 4])]);
    for model in ["random:sd15", "random:sd21-base"] {
        Lora::open(&path, &layers_of(model), 1.0).unwrap();
    }
}
