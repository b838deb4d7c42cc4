//! What is no checkpoint, or one of another model, is refused with an error that names it; no pickle is executed.

use std::path::Path;

use reward::weights::{
    Checkpoint, OpenOptions,
    save::{ReadValues, named_tensors},
};

use crate::{
    fixture::golden,
    models::{open, refusal},
};

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// `openai.safetensors` after `change`, opened.
fn changed(change: impl FnOnce(&mut Tensors)) -> String {
    let original = open("openai.safetensors", None).unwrap();
    let mut tensors: Tensors = original.parameters().collect::<Result<_, _>>().unwrap();
    change(&mut tensors);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.safetensors");
    let lazy = tensors.into_iter().map(|(name, shape, values)| {
        let read: ReadValues = Box::new(move || Ok(values.clone()));
        (name, shape, read)
    });
    named_tensors(&path, lazy.collect()).unwrap();
    let error = refusal(Checkpoint::open(path.to_str().unwrap(), OpenOptions::default()));
    assert!(error.hint_text().is_some(), "{error}");
    error.to_string()
}

#[track_caller]
fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn every_tensor_that_does_not_fit_is_named() {
    let missing = changed(|tensors| tensors.retain(|(name, ..)| name != "ln_final.bias"));
    assert_contains(&missing, &["changed.safetensors", "1 tensor(s)", "`ln_final.bias` is missing"]);
    let unexpected = changed(|tensors| tensors.push(("head.weight".to_owned(), vec![2], vec![0.0; 2])));
    assert_contains(&unexpected, &["changed.safetensors", "1 tensor(s)", "`head.weight` is unexpected"]);
    let other_shape = changed(|tensors| {
        let norm = tensors.iter_mut().find(|(name, ..)| name == "visual.ln_post.weight").unwrap();
        (norm.1, norm.2) = (vec![3], vec![1.0; 3]);
    });
    assert_contains(&other_shape, &["changed.safetensors", "`visual.ln_post.weight` has shape [3], want [128]"]);
    let no_clip = changed(|tensors| tensors.retain(|(name, ..)| name == "ln_final.bias"));
    assert_contains(&no_clip, &["changed.safetensors", "`visual.conv1.weight`"]);
    let no_block = changed(|tensors| tensors.retain(|(name, ..)| !name.starts_with("transformer.resblocks.0")));
    assert_contains(&no_block, &["changed.safetensors", "`transformer.resblocks.0."]);
}

#[test]
fn another_architecture_is_said_with_its_worst_tensors() {
    let error = refusal(open("openai.pt", Some("open_clip_config"))).to_string();
    assert_contains(&error, &["openai.pt", "do not fit this architecture", "want [", "; and "]);
    // Width 32 is no multiple of 64: heads have to be named.
    let error = refusal(open("open_clip_gelu.pt", None));
    assert_contains(&error.to_string(), &["open_clip_gelu.pt", "heads", "width 32"]);
    assert_contains(error.hint_text().unwrap(), &["--model"]);
    // Keys of transformers, and no config.json beside them.
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("model.safetensors");
    fs_err::copy(golden("clip/hf_gelu/model.safetensors"), &alone).unwrap();
    let error = refusal(Checkpoint::open(alone.to_str().unwrap(), OpenOptions::default()));
    assert_contains(&error.to_string(), &["model.safetensors", "config.json"]);
}

/// Opens the first `keep` bytes of a fixture.
fn truncated(name: &str, keep: usize) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("cut-{name}"));
    fs_err::write(&path, &fs_err::read(golden("clip").join(name)).unwrap()[..keep]).unwrap();
    refusal(Checkpoint::open(path.to_str().unwrap(), OpenOptions::default())).to_string()
}

#[test]
fn truncated_files_are_named() {
    for name in ["openai.safetensors", "openai.pt", "openai_small_torchscript.pt"] {
        let whole = fs_err::metadata(golden("clip").join(name)).unwrap().len() as usize;
        for keep in [0, 1, 6, 100, whole.div_euclid(2), whole - 1] {
            assert_contains(&truncated(name, keep), &[&format!("cut-{name}")]);
        }
    }
}

#[test]
fn no_pickle_is_executed() {
    let proof = Path::new("unpickled-code-was-executed");
    for name in ["malicious.pt", "malicious_tensor.pt"] {
        let error = refusal(open(name, None));
        assert_contains(&error.to_string(), &[name]);
        assert!(!proof.exists(), "{name} was executed");
    }
}

#[test]
fn what_is_not_there_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let refused = |model: &str| refusal(Checkpoint::open(model, OpenOptions::default()));
    assert_contains(&refused(&path("absent.pt")).to_string(), &["absent.pt: no such file"]);
    assert_contains(&refused(&path("")).to_string(), &["no config.json"]);
    fs_err::copy(golden("clip/hf_gelu/config.json"), folder.path().join("config.json")).unwrap();
    assert_contains(&refused(&path("")).to_string(), &["no model.safetensors"]);
    assert_contains(&refused("random:huge").to_string(), &["random:huge"]);
}
