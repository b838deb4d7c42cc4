//! The JSON and tokenizer files of a CLIP folder.

use std::path::Path;

use reward::{
    clip::{
        config::Activation,
        preprocessing::{Preprocessing, Resize},
        tokenizer::Tokenizer,
    },
    weights::{Checkpoint, OpenOptions, layout::Layout, save},
};
use serde_json::json;

use crate::mutate::check;

/// What damage cannot change unseen: another number of heads that divides the width, or another mean, is another model.
type Seen = (Vec<(String, Vec<usize>)>, Activation, Resize);

fn seen(model: &Path) -> reward::Result<Seen> {
    let config = open(model)?.config;
    Ok((config.parameters(), config.vision.activation, config.preprocessing.resize))
}

fn open(model: &Path) -> reward::Result<Checkpoint> {
    Checkpoint::open(model.to_str().unwrap(), OpenOptions::default())
}

fn tiny() -> Checkpoint {
    let mut tiny = open(Path::new("random:tiny")).unwrap();
    (tiny.config.vision.activation, tiny.config.text.activation) = (Activation::Gelu, Activation::Gelu);
    tiny.config.preprocessing = Preprocessing { resize: Resize::Squash, ..Preprocessing::default() };
    tiny
}

/// As `save_pretrained` writes it, without its tokenizer.
fn hugging_face() -> tempfile::TempDir {
    let (folder, tiny) = (tempfile::tempdir().unwrap(), tiny());
    save::hugging_face_folder(folder.path(), &tiny.config, &|name, shape| tiny.read(name, shape)).unwrap();
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"] {
        fs_err::remove_file(folder.path().join(name)).unwrap();
    }
    folder
}

fn damaged(folder: &Path, name: &str) {
    let path = folder.join(name);
    check(&path, &fs_err::read(&path).unwrap(), || seen(folder));
}

#[test]
fn config_json() {
    damaged(hugging_face().path(), "config.json");
}

#[test]
fn preprocessor_config_json() {
    damaged(hugging_face().path(), "preprocessor_config.json");
}

#[test]
fn processor_config_json() {
    let folder = hugging_face();
    let [plain, nested] = ["preprocessor_config.json", "processor_config.json"].map(|name| folder.path().join(name));
    let settings = fs_err::read_to_string(&plain).unwrap();
    fs_err::write(nested, format!("{{\"image_processor\": {settings}}}")).unwrap();
    fs_err::remove_file(plain).unwrap();
    damaged(folder.path(), "processor_config.json");
}

#[test]
fn open_clip_config_json() {
    let (folder, tiny) = (tempfile::tempdir().unwrap(), tiny());
    let weights = folder.path().join("open_clip_model.safetensors");
    save::state_dict(&weights, &tiny.config, Layout::OpenAi, &|name, shape| tiny.read(name, shape)).unwrap();
    let config = json!({
        "model_cfg": {
            "embed_dim": 64, "quick_gelu": false,
            "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "patch_size": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3},
        },
        "preprocess_cfg": {"size": 64, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"},
    });
    fs_err::write(folder.path().join("open_clip_config.json"), format!("{config:#}")).unwrap();
    damaged(folder.path(), "open_clip_config.json");
}

/// Each file alone, so that it alone is read.
#[test]
fn tokenizer_files() {
    let (folder, files) = (hugging_face(), tempfile::tempdir().unwrap());
    Tokenizer::openai().write_files(files.path()).unwrap();
    for name in ["vocab.json", "merges.txt"] {
        let path = folder.path().join(name);
        let valid = fs_err::read(files.path().join(name)).unwrap();
        check(&path, &valid, || open(folder.path())?.check_vocabulary());
        fs_err::remove_file(path).unwrap();
    }
}
