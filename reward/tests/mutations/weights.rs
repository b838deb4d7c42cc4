//! Weights: a safetensors file, an archive of PyTorch, the format before it, and the index of shards.

use std::path::{Path, PathBuf};

use reward::{
    clip::config::ClipConfig,
    weights::{
        Checkpoint, OpenOptions,
        save::{ReadValues, named_tensors, state_dict},
    },
};

use crate::mutate::{check, damage, seeds};

fn golden(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")).join(name)
}

fn open(path: &Path) -> reward::Result<Checkpoint> {
    Checkpoint::open(path.to_str().unwrap(), OpenOptions::default())
}

/// The architecture of what is whole, every tensor of which can be read.
fn read(path: &Path) -> reward::Result<ClipConfig> {
    let checkpoint = open(path)?;
    checkpoint.parameters().try_for_each(|parameter| parameter.map(drop))?;
    Ok(checkpoint.config)
}

/// Reads the fixture `name` when it is damaged.
fn survives(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged-weights");
    check(&path, &fs_err::read(golden(name)).unwrap(), || read(&path));
}

#[test]
fn an_archive_of_pytorch() {
    survives("weights/plain.pt");
}

#[test]
fn a_whole_module() {
    survives("weights/module.pt");
}

#[test]
fn the_format_before_zip() {
    survives("clip/openai_small_legacy.pt");
}

/// The pickle alone, which is a small part of the file.
#[test]
fn a_pickle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged-weights");
    let valid = fs_err::read(golden("weights/plain.pt")).unwrap();
    let data = valid.windows(8).position(|window| window == b"data.pkl").unwrap();
    let start = data + valid[data..].windows(2).position(|window| window == b"\x80\x02").unwrap();
    let end = start + valid[start..].windows(4).position(|window| window.starts_with(b"PK") && window[2] < 9).unwrap();
    for seed in seeds() {
        // Of the same length, so that the archive stays whole.
        let mut damaged = valid.clone();
        let pickle = damage(&valid[start..end], seed);
        let length = pickle.len().min(end - start);
        damaged[start..][..length].copy_from_slice(&pickle[..length]);
        fs_err::write(&path, &damaged).unwrap();
        if let Err(error) = read(&path) {
            let message = error.to_string();
            assert!(message.contains("damaged-weights") && !message.contains('\n'), "{seed}: {message}");
        }
    }
}

#[test]
fn a_safetensors_file() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, path) = (folder.path().join("whole.safetensors"), folder.path().join("damaged.safetensors"));
    let plain = open(&golden("weights/plain.pt")).unwrap();
    let layout = reward::weights::layout::Layout::OpenAi;
    state_dict(&whole, &plain.config, layout, &|name, shape| plain.read(name, shape)).unwrap();
    check(&path, &fs_err::read(&whole).unwrap(), || read(&path));
}

/// A tensor that no shard has is said of the folder, whose name has that of the index here.
#[test]
fn the_index_of_shards() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("model.safetensors.index.json.folder");
    fs_err::create_dir(&folder).unwrap();
    fs_err::copy(golden("clip/hf_gelu/config.json"), folder.join("config.json")).unwrap();
    let whole = reward::weights::file::TensorFile::open(&golden("clip/hf_gelu/model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for (shard, has_text) in [("one.safetensors", true), ("two.safetensors", false)] {
        let is_here = |name: &&String| name.starts_with("text") == has_text;
        let names: Vec<String> = whole.shapes().keys().filter(is_here).cloned().collect();
        names.iter().for_each(|name| drop(map.insert(name.clone(), shard.into())));
        let lazy = names.into_iter().map(|name| {
            let (shape, values) = (whole.shapes()[&name].clone(), whole.read(&name).unwrap());
            (name, shape, Box::new(move || Ok(values.clone())) as ReadValues)
        });
        named_tensors(&folder.join(shard), lazy.collect()).unwrap();
    }
    // A few names stand for all.
    let few: serde_json::Map<_, _> = map.into_iter().step_by(20).collect();
    let index = serde_json::json!({"metadata": {"total_size": 12345}, "weight_map": few}).to_string();
    let path = folder.join("model.safetensors.index.json");
    check(&path, index.as_bytes(), || Ok(open(&folder)?.config));
}
