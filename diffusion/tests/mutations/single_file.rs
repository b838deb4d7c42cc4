//! The header of a single-file checkpoint.

use std::{collections::BTreeMap, path::Path};

use diffusion::{
    Result,
    source::{Source, SourceOptions},
    text::TextEncoder,
    unet::Unet,
    vae::Vae,
};
use reward::weights::file::TensorFile;
use serde_json::{Map, Value, json};

use crate::mutate::check;

/// The header of a small Stable Diffusion 1 file, and how many bytes of values follow.
fn header() -> (String, u64) {
    let all: Value = serde_json::from_str(include_str!("../../../tests/golden/sd_keys.json")).unwrap();
    let models = [&all["sd1"]["unet"], &all["sd1"]["vae"], &all["sd1"]["text_encoder"]];
    let (mut header, mut end) = (Map::new(), 0_u64);
    for (key, entry) in models.iter().flat_map(|model| model["keys"].as_object().unwrap()) {
        let shape: Vec<u64> = serde_json::from_value(entry[1].clone()).unwrap();
        let start = end;
        end += 4 * shape.iter().product::<u64>();
        header.insert(key.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
    }
    (Value::from(header).to_string(), end)
}

/// Puts a file together of a header and zeros that take no room on the disk.
fn assemble(path: &Path, header: &[u8], values: u64) {
    let head = [&(header.len() as u64).to_le_bytes(), header].concat();
    fs_err::write(path, &head).unwrap();
    let file = fs_err::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(head.len() as u64 + values).unwrap();
}

/// Names and shapes of all three models, which have to be those of the file.
fn models(path: &Path) -> Result<()> {
    let source = Source::open(path.to_str().unwrap(), SourceOptions::default())?;
    source.scheduler()?;
    source.remarks()?;
    let (config, weights) = source.unet()?;
    Unet::new(&config, weights)?;
    let (config, weights) = source.vae()?;
    Vae::new(&config, weights)?;
    let (config, weights) = source.text_encoder()?;
    TextEncoder::new(&config, weights)?;
    Ok(())
}

#[test]
fn the_header_of_a_single_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs_err::create_dir_all(folder.path().join("header")).unwrap();
    // Of the same name, which errors have.
    let alone = folder.path().join("header/model.safetensors");
    let (header, values) = header();
    assemble(&path, header.as_bytes(), values);
    let valid: BTreeMap<String, Vec<usize>> = TensorFile::open(&path).unwrap().shapes().clone();
    models(&path).unwrap();
    check(&alone, header.as_bytes(), || {
        assemble(&path, &fs_err::read(&alone).unwrap(), values);
        let found = TensorFile::open(&path)?.shapes().clone();
        // Values are zeros everywhere: only names and shapes make another model.
        if found != valid {
            models(&path)?;
        }
        Ok(found.len())
    });
}
