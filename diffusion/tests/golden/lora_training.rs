//! Adapters on convolutions against PEFT (`lora_training.py`): outputs, gradients, merging, files; two LoRAs at once; every
//! method trains and saves them.

use std::{path::Path, sync::atomic::AtomicBool};

use diffusion::{
    algorithm::{self, Data, Method, MethodName},
    finetune::{FinetuneConfig, dry_run, finetune},
    lora::{self, Base, Lora, LoraSpec, merge},
    source::{Source, SourceOptions},
};
use reward::{event::Silent, run::Ended, weights::file::TensorFile, world::World};
use tch::{Kind, Tensor};

use crate::{
    fixture::{Fixture, assert_close, golden, values},
    lora::{layers, run_unet, unet},
};

fn expected() -> Fixture {
    Fixture::open("lora/training.safetensors")
}

/// As leaves that train.
fn convolutions() -> Lora {
    let mut lora = Lora::open(&golden("lora/convolutions.safetensors"), &layers(), 1.0).unwrap();
    for adapter in lora.unet.values_mut() {
        adapter.down = adapter.down.detach().copy().set_requires_grad(true);
        adapter.up = adapter.up.detach().copy().set_requires_grad(true);
    }
    lora
}

#[test]
fn gradients_of_adapters_on_convolutions_are_pefts() {
    let (fixture, inputs) = (expected(), Fixture::open("lora/expected.safetensors"));
    for checkpointing in [false, true] {
        let mut unet = unet(Some(convolutions()));
        unet.checkpointing = checkpointing;
        let timesteps = Tensor::from_slice(&inputs.integers("timesteps"));
        let output = unet.forward(&inputs.torch("latents"), &timesteps, &inputs.torch("context").into());
        assert_close("output", &values(&output), &fixture.floats("output"), 1e-5);
        (output * fixture.torch("loss_weights")).sum(Kind::Float).backward();
        let trained = unet.parameters.trained();
        assert_eq!(trained.len(), 2 * 41);
        for (name, tensor) in trained {
            let want = fixture.torch(&format!("grad.{name}"));
            let found = tensor.grad();
            assert_eq!(found.size(), want.size(), "{name}");
            let (apart, own) = ((found - &want).norm().double_value(&[]), want.norm().double_value(&[]));
            assert!(apart <= 1e-4 * own, "{name}: gradient off by {:e} of its norm", apart / own);
        }
    }
}

#[test]
fn merged_convolutions_are_pefts_and_come_back_to_the_bit() {
    let (fixture, unet, lora) = (expected(), unet(None), convolutions());
    let weight = |layer: &str| unet.parameters.tensors[&format!("{layer}.weight")].copy();
    let names: Vec<String> =
        fixture.names().iter().filter_map(|name| name.strip_prefix("delta.")).map(str::to_owned).collect();
    assert_eq!(names.len(), 3);
    let (before, output): (Vec<_>, _) = (names.iter().map(|name| weight(name)).collect(), run_unet(&unet));
    let merged = merge(&unet.parameters, &lora.unet).unwrap();
    for (name, before) in names.iter().zip(&before) {
        let update = values(&(weight(name) - before));
        assert_close(name, &update, &fixture.floats(&format!("delta.{name}")), 1e-6);
    }
    assert_close("merged", &run_unet(&unet), &fixture.floats("output"), 1e-5);
    merged.unmerge(&unet.parameters);
    assert_eq!(run_unet(&unet), output);
}

#[test]
fn two_loras_at_once_are_diffusers_set_adapters() {
    let specs = [("lora/diffusers", 0.7), ("lora/convolutions.safetensors", -0.4)]
        .map(|(path, scale)| LoraSpec { path: golden(path), scale });
    let both = Lora::open_all(&specs, &layers(), 1.0).unwrap();
    assert!(!both.text.is_empty());
    assert_close("both", &run_unet(&unet(Some(both))), &expected().floats("both"), 1e-5);
    let off = Lora::open_all(&specs, &layers(), 0.0).unwrap();
    assert_close("none", &run_unet(&unet(Some(off))), &run_unet(&unet(None)), 1e-5);
    assert!(Lora::open_all(&[], &layers(), 1.0).unwrap().unet.is_empty());
}

/// A 1.x model: convolutions around its transformers.
fn model(folder: &Path) -> String {
    let model = folder.join("model");
    for part in ["scheduler", "text_encoder", "tokenizer", "vae", "unet"] {
        let from =
            golden(if part == "unet" { "lora/unet".to_owned() } else { format!("pipeline/model/{part}") }.as_str());
        fs_err::create_dir_all(model.join(part)).unwrap();
        for file in fs_err::read_dir(from).unwrap() {
            let file = file.unwrap();
            fs_err::copy(file.path(), model.join(part).join(file.file_name())).unwrap();
        }
    }
    fs_err::copy(golden("pipeline/model/model_index.json"), model.join("model_index.json")).unwrap();
    model.display().to_string()
}

fn config(folder: &Path, method: &'static Method) -> FinetuneConfig {
    let (prompts, images) = (folder.join("prompts.txt"), folder.join("images.csv"));
    fs_err::write(&prompts, "a fox\nan owl\n").unwrap();
    image::RgbImage::from_pixel(64, 64, image::Rgb([200, 30, 30])).save(folder.join("red.png")).unwrap();
    fs_err::write(&images, "prompt,path,liked\nred,red.png,true\nred again,red.png,false\n").unwrap();
    let by_reward = method.data.contains(&Data::Prompts);
    FinetuneConfig {
        algorithm: Some(MethodName(method)),
        model: Some(model(folder)),
        reward: if by_reward { vec!["random:tiny".parse().unwrap()] } else { Vec::new() },
        prompts: by_reward.then_some(prompts),
        images: method.data.contains(&Data::Pictures).then(|| images.clone()),
        labels: method.data.contains(&Data::Labels).then_some(images),
        output: Some(folder.join("run")),
        train_steps: 2,
        sample_steps: 3,
        batch_size: 2,
        scale_images: 2,
        lora_rank: 2,
        lora_alpha: Some(3.0),
        lora_targets: ["proj_in", "conv1", "conv_shortcut", "downsamplers.0.conv", "to_q"].map(str::to_owned).to_vec(),
        device: reward::device::DeviceName::Cpu,
        ..FinetuneConfig::default()
    }
}

fn run(config: &FinetuneConfig) -> std::path::PathBuf {
    match finetune(config, false, &World::alone(), &Silent, &AtomicBool::new(false)).unwrap() {
        Ended::Finished(path) => path,
        other @ Ended::Interrupted { .. } => panic!("{other:?}"),
    }
}

#[test]
fn every_method_trains_adapters_on_convolutions_and_saves_them() {
    for algorithm in algorithm::ALL {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), algorithm);
        dry_run(&config, &Silent, &AtomicBool::new(false)).unwrap();
        assert!(!folder.path().join("run").exists(), "{algorithm}");
        let saved = run(&config);
        let file = TensorFile::open(&saved.join("pytorch_lora_weights.safetensors")).unwrap();
        let block = "unet.down_blocks.0";
        for (key, shape) in [
            (format!("{block}.attentions.0.proj_in.lora_A.weight"), vec![2, 16, 1, 1]),
            (format!("{block}.attentions.0.proj_in.lora_B.weight"), vec![16, 2, 1, 1]),
            (format!("{block}.resnets.0.conv1.lora_A.weight"), vec![2, 16, 3, 3]),
            (format!("{block}.resnets.0.conv1.lora_B.weight"), vec![16, 2, 1, 1]),
            (format!("{block}.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"), vec![2, 16]),
        ] {
            assert_eq!(file.shapes()[&key], shape, "{algorithm}: {key}");
            if key.ends_with("B.weight") {
                assert!(file.read(&key).unwrap().iter().any(|value| *value != 0.0), "{algorithm}: {key} trained");
            }
        }
        let kohya = TensorFile::open(&saved.join("kohya.safetensors")).unwrap();
        let down = "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight";
        assert_eq!(kohya.shapes()[down], [2, 16, 1, 1]);
        let left: Vec<_> =
            fs_err::read_dir(folder.path().join("run")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("rehearsal")), "{left:?}");
    }
}

/// A run that starts from two LoRAs, of other ranks and scales, with convolutions and the text encoder, loses nothing.
#[test]
fn what_a_run_starts_from_is_saved_again() {
    let folder = tempfile::tempdir().unwrap();
    let specs = [("lora/diffusers", 0.7), ("lora/convolutions.safetensors", -0.4)]
        .map(|(path, scale)| LoraSpec { path: golden(path), scale })
        .to_vec();
    let plain = FinetuneConfig::default();
    let config = FinetuneConfig {
        lora: specs.clone(),
        lora_rank: plain.lora_rank,
        lora_alpha: None,
        lora_targets: plain.lora_targets,
        learning_rate: 1e-7,
        train_steps: 1,
        ..config(folder.path(), algorithm::ALL[1])
    };
    let source = Source::open(config.model.as_deref().unwrap(), SourceOptions::default()).unwrap();
    let layers = source.layers().unwrap();
    let given = Lora::open_all(&specs, &layers, 1.0).unwrap();
    let saved = run(&config);
    for file in ["pytorch_lora_weights.safetensors", "kohya.safetensors"] {
        let again = Lora::open(&saved.join(file), &layers, 1.0).unwrap();
        assert!(!given.text.is_empty());
        for (given, again) in [(&given.unet, &again.unet), (&given.text, &again.text)] {
            assert!(given.keys().eq(again.keys()), "{file}");
            for (layer, adapter) in given {
                let update = |adapter: &diffusion::layer::Adapter| {
                    adapter.up.flatten(1, -1).matmul(&adapter.down.flatten(1, -1)) * adapter.scale
                };
                assert_close(layer, &values(&update(&again[layer])), &values(&update(adapter)), 1e-6);
            }
        }
    }
}

/// What a web UI looks for in the metadata.
#[test]
fn kohyas_file_says_its_base_and_keeps_it_when_converted() {
    let folder = tempfile::tempdir().unwrap();
    let metadata = |path: &Path| -> serde_json::Value {
        let bytes = fs_err::read(path).unwrap();
        let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        serde_json::from_slice::<serde_json::Value>(&bytes[8..8 + size]).unwrap()["__metadata__"].take()
    };
    let (first, second) = (folder.path().join("fox.safetensors"), folder.path().join("fox-again.safetensors"));
    let source = Source::open("random:sd21-base", SourceOptions::default()).unwrap();
    let layers = source.layers().unwrap();
    let shapes = layers
        .unet
        .iter()
        .filter(|(name, _)| name.ends_with("attn2.to_k"))
        .map(|(name, shape)| (name.clone(), shape.clone()));
    let adapters = lora::fresh(&shapes.collect(), &["to_k".to_owned()], 1, 2.0, 0).unwrap();
    let lora = Lora { unet: adapters, ..Lora::default() };
    let base = Base::of_model(&layers, source.scheduler().unwrap().prediction_type, "fox".to_owned());
    lora::kohya(&first, &lora, &base).unwrap();
    let wanted = [
        ("ss_v2", "True"),
        ("ss_base_model_version", "sd_v2"),
        ("ss_network_module", "networks.lora"),
        ("ss_network_dim", "1"),
        ("ss_network_alpha", "2.0"),
        ("modelspec.sai_model_spec", "1.0.0"),
        ("modelspec.architecture", "stable-diffusion-v2-512/lora"),
        ("modelspec.prediction_type", "epsilon"),
        ("modelspec.title", "fox"),
    ];
    let found = metadata(&first);
    wanted.iter().for_each(|(key, value)| assert_eq!(found[key], *value, "{found}"));
    // The base is not named: what the file says, or its widths, tell it.
    let convert = |from: &Path, format, to: &Path| {
        diffusion::export::convert(&[LoraSpec::new(from)], None, SourceOptions::default(), format, to).unwrap();
    };
    convert(&first, diffusion::export::LoraFormat::Kohya, &second);
    let found = metadata(&second);
    let kept = wanted.iter().filter(|(key, _)| *key != "modelspec.title");
    kept.for_each(|(key, value)| assert_eq!(found[key], *value, "{found}"));
    assert_eq!(found["modelspec.title"], "fox-again");
    let (plain, third) = (folder.path().join("plain.safetensors"), folder.path().join("third.safetensors"));
    convert(&first, diffusion::export::LoraFormat::Diffusers, &plain);
    convert(&plain, diffusion::export::LoraFormat::Kohya, &third);
    assert_eq!(metadata(&third)["ss_v2"], "True");
    assert_eq!(metadata(&third)["modelspec.architecture"], serde_json::Value::Null, "what it predicts is not known");
}
