//! Which file a `--lora` path means.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use reward::foreign::{self, Foreign};

use super::kinds;
use crate::{Error, Result};

/// What trainers call the file in a folder, the first that is there is taken.
const FILE_NAMES: [&str; 4] =
    ["pytorch_lora_weights.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.bin", "adapter_model.bin"];

/// What a run's checkpoint has beside its LoRA.
const STATE: [&str; 3] = ["trained.safetensors", "ema.safetensors", "optimizer.safetensors"];

/// Bytes of a file's start that are looked at.
const START: u64 = 1 << 20;

/// The file itself, or the one of a folder.
///
/// # Errors
/// Nothing there, a folder with none or several, a file that is something else by its first bytes.
pub(crate) fn locate(path: &Path) -> Result<PathBuf> {
    if let Some(error) = path.to_str().and_then(|written| foreign::url(written, "a LoRA file")) {
        return Err(error);
    }
    let file = if path.is_dir() { in_folder(path)? } else { path.to_owned() };
    if !file.is_file() {
        return Err(Error::data(format!("{}: no such file or folder", path.display())));
    }
    let name = file.file_name().unwrap_or_default();
    let beside = file.with_file_name(FILE_NAMES[0]);
    if STATE.iter().any(|state| name == *state) && beside.is_file() {
        return Err(Error::data(format!("{}: the state of a checkpoint, want a LoRA", file.display()))
            .hint(format!("{} beside it is one", FILE_NAMES[0])));
    }
    let mut start = Vec::new();
    fs_err::File::open(&file)?.take(START).read_to_end(&mut start)?;
    Foreign::refuse(&file, &start[..start.len().min(foreign::HEAD)], "a LoRA")?;
    kinds::of_pickle(&file, &start)?;
    Ok(file)
}

fn in_folder(folder: &Path) -> Result<PathBuf> {
    if let Some(known) = FILE_NAMES.iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
        return Ok(known);
    }
    if folder.join("model_index.json").is_file() {
        return Err(
            Error::data(format!("{}: a model folder, want a LoRA", folder.display())).hint("give it as --model")
        );
    }
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "safetensors") && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    match &found[..] {
        [one] => Ok(one.clone()),
        [] => {
            let below = folder.join("lora");
            let hint = match below.is_dir() {
                true => format!("{} holds the run's LoRA", below.display()),
                false => "give a .safetensors file, or a folder that holds one".to_owned(),
            };
            Err(Error::data(format!("{}: no LoRA file in this folder", folder.display())).hint(hint))
        }
        several => {
            let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let names: Vec<String> = several.iter().take(5).map(name).collect();
            let more = if several.len() > names.len() { ", …" } else { "" };
            let count = several.len();
            Err(Error::data(format!(
                "{}: {count} .safetensors files, want one: {}{more}",
                folder.display(),
                names.join(", ")
            ))
            .hint("give the path of the one that is meant"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_means_its_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let says = |part: &str| {
            let error = locate(folder.path()).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        };
        says("no LoRA file in this folder");
        fs_err::write(place("my_style_v2.safetensors"), "xxxxxxxxx").unwrap();
        assert_eq!(locate(folder.path()).unwrap(), place("my_style_v2.safetensors"));
        fs_err::write(place("other.safetensors"), "xxxxxxxxx").unwrap();
        says("2 .safetensors files, want one: my_style_v2.safetensors, other.safetensors");
        fs_err::write(place("pytorch_lora_weights.safetensors"), "xxxxxxxxx").unwrap();
        assert_eq!(locate(folder.path()).unwrap(), place("pytorch_lora_weights.safetensors"));
        fs_err::write(place("trained.safetensors"), "xxxxxxxxx").unwrap();
        let error = locate(&place("trained.safetensors")).unwrap_err();
        assert!(error.to_string().contains("the state of a checkpoint"), "{error}");
    }

    #[test]
    fn what_is_no_lora_by_its_first_bytes_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lora.safetensors");
        for (bytes, part) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 4265380\n"[..], "a Git LFS pointer"),
            (b"<!DOCTYPE html><html>", "an HTML page"),
            (b"", "an empty file"),
            (b"PK\x03\x04 x/data.pkl \x80\x02}q\x00X\x0f\x00\x00\x00string_to_param", "a textual inversion"),
            (b"PK\x03\x04 x/data.pkl \x80\x02]q\x00(", "without layer names"),
        ] {
            fs_err::write(&path, bytes).unwrap();
            let error = locate(&path).unwrap_err().to_string();
            assert!(error.contains("lora.safetensors") && error.contains(part) && !error.contains('\n'), "{error}");
        }
        let error = locate(Path::new("https://example.org/lora.safetensors")).unwrap_err().to_string();
        assert!(error.contains("is a URL"), "{error}");
    }
}
