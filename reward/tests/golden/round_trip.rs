//! What is written opens again as the same model, to the bit.

use reward::weights::{Checkpoint, OpenOptions, layout::Layout, save};

use crate::models::models;

#[track_caller]
fn assert_same(what: &str, written: &Checkpoint, original: &Checkpoint) {
    assert_eq!(written.config, original.config, "{what}");
    for (written, original) in written.parameters().zip(original.parameters()) {
        let ((name, shape, written), (_, original_shape, original)) = (written.unwrap(), original.unwrap());
        assert_eq!(shape, original_shape, "{what} {name}");
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert!(bits(&written) == bits(&original), "{what} {name}: other values");
    }
}

#[test]
fn state_dicts_in_every_layout() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for model in models() {
        let config = &model.checkpoint.config;
        for layout in [Layout::OpenAi, Layout::OpenClipCustomText, Layout::HuggingFace] {
            save::state_dict(&path, config, layout, &|name, shape| model.checkpoint.read(name, shape)).unwrap();
            let options = OpenOptions { architecture: Some(config), ..OpenOptions::default() };
            let written = Checkpoint::open(path.to_str().unwrap(), options).unwrap();
            assert_same(&format!("{} as {layout:?}", model.name), &written, &model.checkpoint);
        }
    }
    assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1, "a partial file is left over");
}

#[test]
fn hugging_face_folders() {
    for model in models() {
        let folder = tempfile::tempdir().unwrap();
        let config = &model.checkpoint.config;
        save::hugging_face_folder(folder.path(), config, &|name, shape| model.checkpoint.read(name, shape)).unwrap();
        let written = Checkpoint::open(folder.path().to_str().unwrap(), OpenOptions::default()).unwrap();
        assert_same(model.name, &written, &model.checkpoint);
        let files = ["config.json", "merges.txt", "preprocessor_config.json", "tokenizer_config.json", "vocab.json"];
        for file in files {
            assert!(folder.path().join(file).is_file(), "{file}");
        }
    }
}

/// The file holds what it replaces until the new one is complete.
#[test]
fn a_failed_write_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs_err::write(&path, "old").unwrap();
    let model = models().next().unwrap();
    let result = save::state_dict(&path, &model.checkpoint.config, Layout::OpenAi, &|name, shape| match name {
        "text_projection" => Err(reward::Error::data("unreadable")),
        _ => model.checkpoint.read(name, shape),
    });
    assert_eq!(result.unwrap_err().to_string(), "unreadable");
    assert_eq!(fs_err::read(&path).unwrap(), b"old");
    assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
}

/// transformers splits large models over several files with an index.
#[test]
fn sharded_folders() {
    let folder = tempfile::tempdir().unwrap();
    let model = models().next().unwrap();
    let original = &model.checkpoint;
    save::hugging_face_folder(folder.path(), &original.config, &|name, shape| original.read(name, shape)).unwrap();
    let whole = folder.path().join("model.safetensors");
    let bytes = fs_err::read(&whole).unwrap();
    fs_err::remove_file(&whole).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut index = serde_json::Map::new();
    let shard =
        |tower: bool| if tower { "model-00001-of-00002.safetensors" } else { "model-00002-of-00002.safetensors" };
    for tower in [true, false] {
        let part: Vec<_> = tensors.iter().filter(|(name, _)| name.starts_with("vision_model.") == tower).collect();
        index.extend(part.iter().map(|(name, _)| ((*name).to_owned(), shard(tower).into())));
        safetensors::serialize_to_file(part, None, &folder.path().join(shard(tower))).unwrap();
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": index});
    fs_err::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let written = Checkpoint::open(folder.path().to_str().unwrap(), OpenOptions::default()).unwrap();
    assert_same("sharded", &written, original);
}
