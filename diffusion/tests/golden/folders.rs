//! Diffusers folders: written, read again, and what is said when something is not right.

use std::path::Path;

use diffusion::{
    save::{self, Pipeline, Precision},
    source::{Source, SourceOptions},
    text::TextEncoder,
    unet::Unet,
    vae::Vae,
    weights::Parameters,
};

use crate::fixture::{copy_of_model, golden, values};

struct Models {
    unet: Unet,
    vae: Vae,
    text: TextEncoder,
}

fn models(source: &Source) -> Models {
    let (config, weights) = source.unet().unwrap();
    let unet = Unet::new(&config, weights).unwrap();
    let (config, weights) = source.vae().unwrap();
    let vae = Vae::new(&config, weights).unwrap();
    let (config, weights) = source.text_encoder().unwrap();
    Models { unet, vae, text: TextEncoder::new(&config, weights).unwrap() }
}

fn open(model: &str) -> Source {
    Source::open(model, SourceOptions::default()).unwrap()
}

fn write(folder: &Path, precision: Precision) -> Models {
    let source = open("random:sd-tiny");
    let models = models(&source);
    let (tokenizer, scheduler) = (source.tokenizer().unwrap(), source.scheduler().unwrap());
    let pipeline = Pipeline {
        unet: &models.unet,
        vae: &models.vae,
        text_encoder: &models.text,
        tokenizer: &tokenizer,
        scheduler: &scheduler,
    };
    save::folder(folder, &pipeline, precision).unwrap();
    models
}

fn assert_same(found: &Parameters, wanted: &Parameters, tolerance: f32) {
    assert!(found.tensors.keys().eq(wanted.tensors.keys()));
    for (key, tensor) in &found.tensors {
        let (found, wanted) = (values(tensor), values(&wanted.tensors[key]));
        let near = found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() <= tolerance * b.abs().max(1e-2));
        assert!(near, "{key}");
    }
}

#[test]
fn a_saved_folder_is_read_again() {
    for (precision, tolerance) in [(Precision::Full, 0.0), (Precision::Half, 1e-3)] {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("model");
        let written = write(&folder, precision);
        let source = open(folder.to_str().unwrap());
        let read = models(&source);
        assert_same(&read.unet.parameters, &written.unet.parameters, tolerance);
        assert_same(&read.vae.parameters, &written.vae.parameters, tolerance);
        assert_same(&read.text.parameters, &written.text.parameters, tolerance);
        assert_eq!(read.unet.config, written.unet.config);
        assert_eq!(read.text.config, written.text.config);
        let random = open("random:sd-tiny");
        assert_eq!(source.scheduler().unwrap().to_json(), random.scheduler().unwrap().to_json());
        let prompt = "a photo of a cat!";
        let ids = source.tokenizer().unwrap().encode(prompt).unwrap();
        assert_eq!(ids, random.tokenizer().unwrap().encode(prompt).unwrap());
        assert_eq!(fs_err::read_dir(temporary.path()).unwrap().count(), 1, "nothing beside the folder");
    }
}

#[test]
fn layers_are_told_without_reading_weights() {
    let source = open("random:sd-tiny");
    let layers = source.layers().unwrap();
    let models = models(&source);
    let built = diffusion::lora::Layers::of(&models.unet.parameters, &models.text.parameters);
    assert_eq!((layers.unet, layers.text), (built.unet, built.text));
}

#[test]
fn a_pickle_is_read_where_there_is_no_safetensors_file() {
    let temporary = tempfile::tempdir().unwrap();
    let model = golden("pipeline/model");
    copy_of_model(temporary.path());
    let encoder = temporary.path().join("text_encoder");
    fs_err::remove_file(encoder.join("model.safetensors")).unwrap();
    fs_err::copy(golden("pipeline/pytorch_model.bin"), encoder.join("pytorch_model.bin")).unwrap();
    let read = models(&open(temporary.path().to_str().unwrap()));
    assert_same(&read.text.parameters, &models(&open(model.to_str().unwrap())).text.parameters, 0.0);
}

#[test]
fn fp16_variants_and_shards_are_found() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("model");
    let written = write(&folder, Precision::Full);
    let path = folder.join("unet/diffusion_pytorch_model.safetensors");
    // Two shards with an index.
    let bytes = fs_err::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<_> = tensors.names().into_iter().map(str::to_owned).collect();
    names.sort();
    let mut map = serde_json::Map::new();
    let shards = names.split_at(names.len() / 2);
    for (number, shard) in [shards.0, shards.1].into_iter().enumerate() {
        let file = format!("diffusion_pytorch_model-{:05}-of-00002.safetensors", number + 1);
        let views = shard.iter().map(|name| (name, tensors.tensor(name).unwrap()));
        safetensors::serialize_to_file(views, None, &folder.join("unet").join(&file)).unwrap();
        map.extend(shard.iter().map(|name| (name.clone(), file.clone().into())));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs_err::write(folder.join("unet/diffusion_pytorch_model.safetensors.index.json"), index.to_string()).unwrap();
    fs_err::remove_file(&path).unwrap();
    let vae = folder.join("vae");
    let (plain, variant) = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors");
    fs_err::rename(vae.join(plain), vae.join(variant)).unwrap();
    let read = models(&open(folder.to_str().unwrap()));
    assert_same(&read.unet.parameters, &written.unet.parameters, 0.0);
    assert_same(&read.vae.parameters, &written.vae.parameters, 0.0);
    fs_err::remove_file(folder.join("unet/diffusion_pytorch_model-00002-of-00002.safetensors")).unwrap();
    let error = open(folder.to_str().unwrap()).unet().err().unwrap().to_string();
    assert!(error.contains("diffusion_pytorch_model-00002-of-00002.safetensors: no such file"), "{error}");
}

#[test]
fn what_is_missing_or_another_model_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("model");
    write(&folder, Precision::Full);
    let name = folder.to_str().unwrap();
    let refused = |file: &str, read: &dyn Fn(Source) -> Option<diffusion::Error>| {
        let away = temporary.path().join("away");
        fs_err::rename(folder.join(file), &away).unwrap();
        let error = match Source::open(name, SourceOptions::default()) {
            Ok(source) => read(source).unwrap(),
            Err(error) => error,
        };
        fs_err::rename(away, folder.join(file)).unwrap();
        let named = format!("{}: no such file", folder.join(file).display());
        assert!(error.to_string().contains(&named), "{error}");
    };
    refused("model_index.json", &|_| None);
    refused("unet/config.json", &|source| source.unet().err());
    refused("unet/diffusion_pytorch_model.safetensors", &|source| source.unet().err());
    refused("text_encoder/model.safetensors", &|source| source.text_encoder().err());
    refused("tokenizer/merges.txt", &|source| source.tokenizer().err());
    refused("scheduler/scheduler_config.json", &|source| source.scheduler().err());

    let index = fs_err::read_to_string(folder.join("model_index.json")).unwrap();
    for (class, family) in [
        ("StableDiffusionXLPipeline", "Stable Diffusion XL"),
        ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
        ("FluxPipeline", "Flux"),
    ] {
        fs_err::write(folder.join("model_index.json"), index.replace("StableDiffusionPipeline", class)).unwrap();
        let error = Source::open(name, SourceOptions::default()).err().unwrap().to_string();
        assert!(error.contains(family) && error.contains("is not supported"), "{error}");
    }
    for (model, message) in [
        ("random:sd3", "no such random model"),
        ("./nowhere", "no such file or folder"),
        ("nowhere/model.safetensors", "no such file or folder"),
    ] {
        let error = Source::open(model, SourceOptions::default()).err().unwrap().to_string();
        assert!(error.contains(message), "{error}");
    }
}
