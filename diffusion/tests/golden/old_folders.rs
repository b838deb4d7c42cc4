//! Folders as old versions of diffusers left them, against what diffusers makes of them (`old_folders.py`).

use std::sync::atomic::AtomicBool;

use diffusion::{
    config::UnetConfig,
    lora::Lora,
    pipeline::Pipeline,
    remark::Remark,
    sample::Request,
    schedule::{PredictionType, SamplerName},
    source::{Source, SourceOptions},
    unet::Unet,
    vae::DecodeOptions,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::{
    fixture::{Fixture, assert_close, copy_of_model, edit, golden, values},
    samplers::assert_close_for_its_size,
};

fn open(folder: &std::path::Path) -> Source {
    Source::open(folder.to_str().unwrap(), SourceOptions::default()).unwrap()
}

#[test]
fn old_scheduler_files_do_not_clip_and_begin_at_1() {
    let fixture = Fixture::open("old_folders.safetensors");
    let files: Value = serde_json::from_str(&fs_err::read_to_string(golden("old_folders.json")).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    copy_of_model(folder.path());
    let pipeline =
        Pipeline::load(&open(folder.path()), Lora::default(), DecodeOptions::default(), Device::Cpu, Kind::Float)
            .unwrap();
    let prompts = pipeline.embed(&["a red house by the sea", "Two cats, café & rain 雨"]).unwrap();
    let nothing = pipeline.embed(&[""]).unwrap();
    for (name, file) in files.as_object().unwrap() {
        fs_err::write(folder.path().join("scheduler/scheduler_config.json"), file.to_string()).unwrap();
        let source = open(folder.path());
        let request = Request {
            sampler: &source.sampler(SamplerName::Ddim, 10, 0.0).unwrap(),
            prompts: &prompts,
            negative_prompts: Some(&nothing),
            base: None,
            latents: &fixture.torch("start"),
            seeds: &[0, 1],
            guidance_scale: 7.5,
            precision: Kind::Float,
        };
        let latents = pipeline.denoise(&request, &AtomicBool::new(false), |_| ()).unwrap();
        let wanted = fixture.floats(&format!("{name}.latents"));
        assert_close_for_its_size(name, &values(&latents), &wanted, 1e-4);
        // What is exported says it itself, and is not warned of.
        let exported = source.scheduler().unwrap().to_json();
        assert_eq!((&exported["clip_sample"], &exported["steps_offset"]), (&json!(false), &json!(1)), "{name}");
        let warned = source.remarks().unwrap();
        assert_eq!(warned.len(), usize::from(name != "euler-linspace"), "{name}: {warned:?}");
    }
}

#[test]
fn a_unet_without_a_middle_block_computes_as_in_diffusers() {
    let fixture = Fixture::open("old_folders.safetensors");
    let folder = tempfile::tempdir().unwrap();
    copy_of_model(folder.path());
    edit(&folder.path().join("unet/config.json"), |config| config["mid_block_type"] = Value::Null);
    let path = folder.path().join("unet/diffusion_pytorch_model.safetensors");
    let bytes = fs_err::read(&path).unwrap();
    let error = open(folder.path()).unet().and_then(|(config, weights)| Unet::new(&config, weights)).err().unwrap();
    assert!(error.to_string().contains("`mid_block.attentions.0.norm.bias` is unexpected"), "{error}");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = tensors.tensors().into_iter().filter(|(name, _)| !name.starts_with("mid_block."));
    safetensors::serialize_to_file(kept.collect::<Vec<_>>(), None, &path).unwrap();
    let (config, weights) = open(folder.path()).unet().unwrap();
    let unet = Unet::new(&config, weights).unwrap();
    let timesteps = Tensor::from_slice(&[981_i64, 1]);
    let output = tch::no_grad(|| unet.forward(&fixture.torch("start"), &timesteps, &fixture.torch("context").into()));
    assert_close("no middle block", &values(&output), &fixture.floats("no_middle"), 1e-5);
}

#[test]
fn what_is_not_followed_is_told() {
    let folder = tempfile::tempdir().unwrap();
    copy_of_model(folder.path());
    assert_eq!(open(folder.path()).remarks().unwrap(), []);
    edit(&folder.path().join("unet/config.json"), |config| {
        config["_diffusers_version"] = json!("0.8.1");
        config["optimization_step"] = json!(1);
    });
    let asked = SourceOptions { prediction_type: Some(PredictionType::Velocity), ..SourceOptions::default() };
    let remarks = Source::open(folder.path().to_str().unwrap(), asked).unwrap().remarks().unwrap();
    let texts: Vec<&str> = remarks
        .iter()
        .map(|remark| match remark {
            Remark::Note(text) | Remark::Warning(text) => text.as_str(),
        })
        .collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert!(texts[0].contains("unet/config.json: `optimization_step` not read"), "{texts:?}");
    assert!(texts[1].contains("`sample_size` 8 of diffusers 0.8.1 is taken as 64"), "{texts:?}");
    assert!(texts[2].contains("v_prediction, as asked") && texts[2].contains("says epsilon"), "{texts:?}");
}

/// The version whose layout is written: below 0.9 diffusers would make 512 pixels of a smaller model.
#[test]
fn exported_folders_say_their_size() {
    for preset in diffusion::config::PRESETS {
        let config = UnetConfig::preset(preset).unwrap();
        assert_eq!(config.to_json()["_diffusers_version"], "0.42.1");
        assert_eq!(UnetConfig::from_json(&config.to_json()).unwrap().sample_size, config.sample_size);
    }
}

#[test]
fn errors_name_file_key_and_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |file: &str, content: &str, says: &[&str]| {
        copy_of_model(folder.path());
        fs_err::write(folder.path().join(file), content).unwrap();
        let load = || {
            let source = Source::open(folder.path().to_str().unwrap(), SourceOptions::default())?;
            source.sampler(SamplerName::Dpmpp2m, 10, 0.0)?;
            source.tokenizer()?.encode("a red house")?;
            Pipeline::load(&source, Lora::default(), DecodeOptions::default(), Device::Cpu, Kind::Float)
        };
        let error = load().err().unwrap_or_else(|| panic!("{file}: {content}"));
        let text = format!("{error}\n{}", error.hint_text().unwrap_or_default());
        assert!(says.iter().chain([&file]).all(|part| text.contains(part)), "{text}");
        assert!(!error.to_string().contains('\n'), "{error}");
    };
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
    for file in ["model_index.json", "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"] {
        refused(file, lfs, &["Git LFS pointer", "git lfs pull"]);
        refused(file, "<!DOCTYPE html><html>", &["an HTML page"]);
        refused(file, "", &["an empty file"]);
        refused(file, "{\"a\": 1,}", &["not JSON", "line 1 column 9"]);
    }
    let stock = r#"{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": "#;
    let scheduler = "scheduler/scheduler_config.json";
    refused(scheduler, &format!("{stock}NaN}}"), &["`beta_end` is NaN"]);
    refused(scheduler, &format!(r#"{stock}0.012, "num_train_timesteps": 1000000000}}"#), &["`num_train_timesteps`"]);
    let sde = format!(r#"{stock}0.012, "algorithm_type": "sde-dpmsolver++"}}"#);
    refused(scheduler, &sde, &["`algorithm_type`", "dpmpp-2m", "other schedulers can use it: ddim, euler, euler-a"]);
    let edited = |file: &str, key: &str, value: Value| {
        let mut config: Value =
            serde_json::from_str(&fs_err::read_to_string(golden("pipeline/model").join(file)).unwrap()).unwrap();
        config[key] = value;
        config.to_string()
    };
    for (file, key, value) in [
        ("unet/config.json", "layers_per_block", json!(1_000_000_000)),
        ("unet/config.json", "attention_head_dim", json!(1_000_000_000)),
        ("vae/config.json", "norm_num_groups", json!(1_000_000_000)),
        ("vae/config.json", "layers_per_block", json!(1_000_000_000)),
        ("vae/config.json", "scaling_factor", json!("0.18")),
        ("text_encoder/config.json", "num_hidden_layers", json!(1_000_000_000)),
        ("text_encoder/config.json", "vocab_size", json!(1_000_000_000)),
        ("text_encoder/config.json", "hidden_act", json!(3)),
        ("text_encoder/config.json", "layer_norm_eps", json!("12")),
    ] {
        refused(file, &edited(file, key, value), &[&format!("`{key}`")]);
    }
    // Sizes within the bounds that the weights do not have: no memory for them.
    for (file, key, value) in [
        ("unet/config.json", "block_out_channels", json!([65536, 65536])),
        ("unet/config.json", "cross_attention_dim", json!(65536)),
    ] {
        copy_of_model(folder.path());
        fs_err::write(folder.path().join(file), edited(file, key, value)).unwrap();
        let (config, weights) = open(folder.path()).unet().unwrap();
        let error = Unet::new(&config, weights).err().unwrap();
        assert!(error.to_string().contains("do not fit this architecture"), "{error}");
        assert!(error.hint_text().unwrap().contains("another model"), "{error}");
    }
    let small = edited("text_encoder/config.json", "vocab_size", json!(300));
    copy_of_model(folder.path());
    fs_err::write(folder.path().join("text_encoder/config.json"), small).unwrap();
    let error = open(folder.path()).tokenizer().unwrap().encode("a red house").unwrap_err().to_string();
    assert!(error.contains("tokenizer: token `") && error.contains("has 300 rows (`vocab_size`)"), "{error}");
    let short = edited("text_encoder/config.json", "max_position_embeddings", json!(12));
    fs_err::write(folder.path().join("text_encoder/config.json"), short).unwrap();
    let error = open(folder.path()).tokenizer().err().unwrap().to_string();
    assert!(error.contains("77 ids (`model_max_length`)") && error.contains("reads 12"), "{error}");
}

#[test]
fn other_folders_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy_of_model(&model);
    let refused = |path: &std::path::Path| {
        let error = Source::open(path.to_str().unwrap(), SourceOptions::default()).err().unwrap();
        format!("{error}\n{}", error.hint_text().unwrap_or_default())
    };
    let error = refused(&model.join("unet"));
    assert!(error.contains("one model, UNet2DConditionModel") && error.contains("the folder above it"), "{error}");
    let run = folder.path().join("run");
    fs_err::create_dir_all(run.join("lora")).unwrap();
    fs_err::write(run.join("metrics.jsonl"), "").unwrap();
    assert!(refused(&run).contains("run/lora"), "{}", refused(&run));
    fs_err::write(run.join("lora/pytorch_lora_weights.safetensors"), "").unwrap();
    assert!(refused(&run.join("lora")).contains("holds a LoRA"));
    let single = folder.path().join("single");
    fs_err::create_dir_all(&single).unwrap();
    fs_err::write(single.join("v1-5.safetensors"), "").unwrap();
    assert!(refused(&single).contains("single/v1-5.safetensors"));
    for url in ["https://example.org/a.safetensors", "s3://bucket/model"] {
        let error = Source::open(url, SourceOptions::default()).err().unwrap().to_string();
        assert!(error.contains(url) && error.contains("is a URL"), "{error}");
    }
    // As PEFT leaves a UNet that was saved while adapters were attached.
    let path = model.join("unet/diffusion_pytorch_model.safetensors");
    let bytes = fs_err::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let renamed = |name: String| name.replace("to_q.weight", "to_q.base_layer.weight");
    let views = tensors.tensors().into_iter().map(|(name, view)| (renamed(name), view));
    safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, &path).unwrap();
    let error = open(&model).unet().err().unwrap();
    assert!(error.to_string().contains("saved with adapters inside (`"), "{error}");
    assert!(error.hint_text().unwrap().contains("fuse_lora"), "{error}");
}
