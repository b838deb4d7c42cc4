//! PyTorch's archives (`.pt`, `.pth`, `.ckpt`, `.bin`): the dictionaries of tensors in them, and where the tensors are in the
//! file. A zip archive of `torch.save` or TorchScript, or the format before PyTorch 1.6, which is pickles in a row.

use std::{collections::HashMap, ops::Range};

use super::{
    pickle::{Object, Objects},
    place::Place,
    source::Source,
    tensors::{Dictionary, StoredTensor, dictionaries, element_sizes},
    zip,
};
use crate::{Error, Result};

/// Bytes of a pickle at most: names, shapes and settings, never the tensors.
const MAX_PICKLE: u64 = 64 << 20;

/// Bytes that tensors may have beyond the file's, since elements are repeated where a stride is 0 or storages are shared.
const MAX_REPEATED: u64 = 256 << 20;

/// A tensor of an archive by the path of its dictionary and its key there.
pub(super) struct Found {
    pub(super) dictionary: String,
    pub(super) key: String,
    pub(super) place: Place,
}

/// Every tensor of a zip archive.
///
/// # Errors
/// No whole archive, a pickle that cannot be understood or holds no tensors, tensors that do not fit their storages.
pub(super) fn of_zip(source: &Source, is_torch_script: &mut bool) -> Result<Vec<Found>> {
    let entries = zip::entries(source)?;
    // A state dict has no such part.
    *is_torch_script = entries.keys().any(|name| name.ends_with("/constants.pkl"));
    let (name, place) = entries
        .iter()
        .find(|(name, _)| name.as_str() == "data.pkl" || name.ends_with("/data.pkl"))
        .ok_or_else(|| other_zip(source, &entries))?;
    let place = place.clone().ok_or_else(|| compressed(source, name))?;
    let pickle = source.bytes(place.start, bounded(source, place.end - place.start)?)?;
    let objects = Objects::read(&pickle).map_err(|problem| unreadable(source, &problem))?;
    let folder = name.trim_end_matches("data.pkl");
    located(source, &objects, |key| {
        let name = format!("{folder}data/{key}");
        match entries.get(&name) {
            Some(Some(place)) => Ok(place.clone()),
            Some(None) => Err(compressed(source, &name)),
            None => Err(Error::data(format!("{}: no part `{name}` in the zip file", source.path().display()))
                .hint("it may be damaged: copy or download it again")),
        }
    })
}

/// Every tensor of a file in the format before PyTorch 1.6.
///
/// # Errors
/// As [`of_zip`].
pub(super) fn of_pickles(source: &Source) -> Result<Vec<Found>> {
    // Three pickles that name the format, the object, the keys of its storages, then the storages with their lengths.
    const MAGIC: [u8; 14] = *b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
    let head = source.bytes(0, source.length().min(MAX_PICKLE))?;
    if !head.starts_with(&MAGIC) {
        return Err(Error::data(format!("{}: a pickle that PyTorch did not write", source.path().display()))
            .hint("want the file that torch.save or safetensors.torch.save_file writes"));
    }
    let mut at = 0;
    let mut next = || {
        let objects = Objects::read(&head[at..]).map_err(|problem| unreadable(source, &problem))?;
        at += objects.end;
        Ok::<_, Error>((objects, at))
    };
    for _ in 0..3 {
        next()?;
    }
    let (objects, _) = next()?;
    let (keys, mut data) = next().map(|(keys, end)| (keys, end as u64))?;
    let sizes = element_sizes(&objects);
    let mut storages = HashMap::new();
    for key in keys.sequence(keys.root).iter().filter_map(|key| keys.text(*key)) {
        let size = sizes.get(key).copied().ok_or_else(|| unreadable(source, "a storage of no known type"))?;
        let mut count = [0; 8];
        source.read(data, &mut count)?;
        let start = data + 8;
        let bytes = u64::from_le_bytes(count).checked_mul(size as u64);
        let end = bytes.and_then(|bytes| start.checked_add(bytes)).filter(|end| *end <= source.length());
        data = end.ok_or_else(|| {
            Error::data(format!("{}: not complete: a storage ends beyond the file", source.path().display()))
                .hint("it may be truncated: copy or download it again")
        })?;
        storages.insert(key.to_owned(), start..data);
    }
    located(source, &objects, |key| {
        let missing = || Error::data(format!("{}: no storage `{key}` in the file", source.path().display()));
        storages.get(key).cloned().ok_or_else(missing)
    })
}

fn located(source: &Source, objects: &Objects, storage: impl Fn(&str) -> Result<Range<u64>>) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    let mut left = source.length().saturating_mul(16).saturating_add(MAX_REPEATED);
    for Dictionary { path, tensors } in dictionaries(objects).map_err(|problem| unreadable(source, &problem))? {
        for (key, tensor) in tensors {
            let StoredTensor { storage: part, dtype, offset, shape, strides } = tensor;
            let place = Place::within(storage(part)?, left, dtype, offset, shape, strides).map_err(|problem| {
                Error::data(format!("{}: tensor `{key}`: {problem}", source.path().display()))
                    .hint("it may be truncated: copy or download it again")
            })?;
            left = left.saturating_sub(place.bytes());
            found.push(Found { dictionary: path.clone(), key, place });
        }
    }
    if found.is_empty() { Err(no_tensors(source, objects)) } else { Ok(found) }
}

fn bounded(source: &Source, size: u64) -> Result<u64> {
    if size <= MAX_PICKLE {
        return Ok(size);
    }
    Err(unreadable(source, &format!("{size} bytes, want at most {MAX_PICKLE}")))
}

fn unreadable(source: &Source, problem: &str) -> Error {
    Error::data(format!("{}: cannot be read as a PyTorch checkpoint: {problem}", source.path().display()))
        .hint("it may be damaged: copy or download it again; else save its state dict alone, with safetensors.torch.save_file")
}

fn compressed(source: &Source, name: &str) -> Error {
    Error::data(format!("{}: `{name}` is compressed, as torch.save never does", source.path().display()))
        .hint("was it unpacked and zipped again? `zip -0` stores without compression")
}

/// A zip file that PyTorch did not write.
fn other_zip(source: &Source, entries: &zip::Entries) -> Error {
    let first = entries.keys().next().map_or("nothing".to_owned(), |name| format!("`{name}`"));
    let is_weights =
        |name: &&String| [".safetensors", ".pt", ".pth", ".bin", ".ckpt"].iter().any(|end| name.ends_with(end));
    let error =
        Error::data(format!("{}: a zip file that is no PyTorch archive (it holds {first})", source.path().display()));
    match entries.keys().find(is_weights) {
        Some(name) => error.hint(format!("unpack it and give `{name}`")),
        None => error.hint("want the file that torch.save or safetensors.torch.save_file writes"),
    }
}

fn no_tensors(source: &Source, objects: &Objects) -> Error {
    let path = source.path().display();
    let sharded = |object: &Object| {
        matches!(object, Object::Global(module, name)
            if module.starts_with("torch.distributed") && (name.contains("ShardedTensor") || name.contains("DTensor")))
    };
    if objects.all().iter().any(sharded) {
        return Error::data(format!("{path}: holds one process's part of its tensors (ShardedTensor or DTensor)"))
            .hint("save the whole state dict: FSDP's FULL_STATE_DICT, or full_tensor() of every DTensor");
    }
    Error::data(format!("{path}: a pickle that holds no tensors by name; nothing in it was executed"))
        .hint("convert it in Python where you trust it: safetensors.torch.save_file(state_dict, \"model.safetensors\")")
}
