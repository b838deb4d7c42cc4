//! Weights in several files, which an index (`model.safetensors.index.json`, `pytorch_model.bin.index.json`) names.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use serde_json::Value;

use crate::{Error, Result};

/// Bytes of an index at most; that of the largest published models has 2 MB.
const MAX_INDEX: u64 = 64 << 20;

/// The files that `index` names, which all lie beside it.
///
/// # Errors
/// As [`named`], or a file that is not there.
pub fn of(index: &Path) -> Result<Vec<PathBuf>> {
    let folder = index.parent().unwrap_or(index);
    let shards: Vec<PathBuf> = named(index)?.iter().map(|name| folder.join(name)).collect();
    match shards.iter().find(|shard| !shard.is_file()) {
        Some(shard) => Err(Error::data(format!("{}: no such file, but {} names it", shard.display(), index.display()))
            .hint("a shard was not downloaded or copied: get it, too")),
        None => Ok(shards),
    }
}

/// The names of the files in `index`.
///
/// # Errors
/// Not an index, or a name that leads out of its folder.
pub fn named(index: &Path) -> Result<BTreeSet<String>> {
    let label = index.display();
    let size = fs_err::metadata(index)?.len();
    if size > MAX_INDEX {
        return Err(Error::data(format!("{label}: {size} bytes, want an index of at most {MAX_INDEX}")));
    }
    let parsed: Value = serde_json::from_slice(&fs_err::read(index)?)
        .map_err(|error| Error::data(format!("{label}: not JSON")).caused_by(error))?;
    let mut shards = BTreeSet::new();
    for (key, file) in parsed.get("weight_map").and_then(Value::as_object).into_iter().flatten() {
        let is_beside =
            |name: &&str| matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
        let name = file.as_str().filter(is_beside).ok_or_else(|| {
            let key = key.escape_debug();
            Error::data(format!("{label}: `weight_map` has {file} for `{key}`, want the name of a file beside it"))
        })?;
        shards.insert(name.to_owned());
    }
    if shards.is_empty() {
        return Err(Error::data(format!("{label}: no `weight_map`, want the file of every tensor")));
    }
    Ok(shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_beside_the_index_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("model.safetensors.index.json");
        let read = |text: &str| {
            fs_err::write(&index, text).unwrap();
            of(&index)
        };
        fs_err::write(folder.path().join("1.safetensors"), "").unwrap();
        let found = read(r#"{"weight_map": {"a": "1.safetensors", "b": "1.safetensors"}}"#).unwrap();
        assert_eq!(found, [folder.path().join("1.safetensors")]);
        for (text, wanted) in [
            (r#"{"weight_map": {"a": "../x"}}"#, "`weight_map` has \"../x\" for `a`"),
            (r#"{"weight_map": {"a": "/etc/x"}}"#, "`weight_map` has \"/etc/x\" for `a`"),
            (r#"{"weight_map": {"a": 3}}"#, "`weight_map` has 3 for `a`"),
            (r#"{"weight_map": {"a": "2.safetensors"}}"#, "2.safetensors: no such file, but"),
            (r#"{"weight_map": {}}"#, "no `weight_map`"),
            ("[]", "no `weight_map`"),
            ("{", "not JSON"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(wanted) && error.contains("index.json"), "{error}");
        }
    }
}
