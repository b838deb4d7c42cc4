//! The frozen prefix's activations, computed once per image and prompt and kept in RAM or on disk.
//!
//! An entry depends on the content alone. It is keyed by image bytes (or token ids), frozen weights and preprocessing, and is
//! computed by itself, never as part of a batch. Over budget nothing is evicted: what came first stays.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use blake3::Hash;
use tch::{Kind, Tensor};

use crate::{Result, files::replace_file};

/// Activations by content, within a budget.
pub struct PrefixCache {
    store: Store,
    budget: u64,
    used: AtomicU64,
}

enum Store {
    Off,
    Ram(Mutex<HashMap<Hash, Tensor>>),
    /// `context` names weights, preprocessing and precision.
    Disk {
        folder: PathBuf,
        context: Hash,
    },
}

const CHECKSUM: usize = 32;

impl PrefixCache {
    /// Keeps nothing.
    pub fn off() -> Self {
        Self { store: Store::Off, budget: 0, used: AtomicU64::new(0) }
    }

    /// Keeps up to `budget` bytes in memory.
    pub fn ram(budget: u64) -> Self {
        Self { store: Store::Ram(Mutex::default()), budget, used: AtomicU64::new(0) }
    }

    /// Keeps up to `budget` bytes in `folder`, shared between runs. `context` identifies everything but the content that an
    /// entry depends on.
    ///
    /// # Errors
    /// The folder cannot be made or listed.
    pub fn disk(folder: PathBuf, context: Hash, budget: u64) -> Result<Self> {
        fs_err::create_dir_all(&folder)?;
        let mut used = 0;
        for entry in fs_err::read_dir(&folder)? {
            used += entry?.metadata()?.len();
        }
        Ok(Self { store: Store::Disk { folder, context }, budget, used: AtomicU64::new(used) })
    }

    /// Whether an entry is there (on disk it may still turn out damaged).
    pub fn contains(&self, key: Hash) -> bool {
        match &self.store {
            Store::Off => false,
            Store::Ram(entries) => entries.lock().is_ok_and(|entries| entries.contains_key(&key)),
            Store::Disk { folder, context } => folder.join(file_name(*context, key)).is_file(),
        }
    }

    /// The activations `[.., width]` of kind `kind` on the CPU. A damaged entry counts as absent.
    pub fn get(&self, key: Hash, width: usize, kind: Kind) -> Option<Tensor> {
        match &self.store {
            Store::Off => None,
            Store::Ram(entries) => entries.lock().ok()?.get(&key).map(Tensor::shallow_clone),
            Store::Disk { folder, context } => {
                let bytes = fs_err::read(folder.join(file_name(*context, key))).ok()?;
                let (checksum, data) = bytes.split_at_checked(CHECKSUM)?;
                let row = width * kind.elt_size_in_bytes();
                if blake3::hash(data).as_bytes() != checksum || !data.len().is_multiple_of(row) {
                    return None;
                }
                Some(Tensor::from_data_size(data, &[data.len().div_euclid(row) as i64, width as i64], kind))
            }
        }
    }

    /// Keeps an entry if the budget allows it. A disk that fails only costs speed, so its errors are dropped.
    pub fn put(&self, key: Hash, activations: &Tensor) {
        let bytes = (activations.numel() * activations.kind().elt_size_in_bytes()) as u64;
        if matches!(self.store, Store::Off) {
            return;
        }
        if self.used.fetch_add(bytes, Ordering::Relaxed) + bytes > self.budget {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return;
        }
        let host = activations.detach().to_device(tch::Device::Cpu).contiguous();
        match &self.store {
            Store::Off => {}
            Store::Ram(entries) => {
                if let Ok(mut entries) = entries.lock() {
                    entries.insert(key, host);
                }
            }
            Store::Disk { folder, context } => {
                let mut data = vec![0; bytes as usize];
                host.copy_data_u8(&mut data, host.numel());
                let entry = [blake3::hash(&data).as_bytes().as_slice(), &data].concat();
                let written =
                    replace_file(&folder.join(file_name(*context, key)), |partial| Ok(fs_err::write(partial, entry)?));
                drop(written);
            }
        }
    }
}

fn file_name(context: Hash, key: Hash) -> String {
    blake3::hash(&[context.as_bytes().as_slice(), key.as_bytes()].concat()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(value: f32) -> (Hash, Tensor) {
        (blake3::hash(&value.to_le_bytes()), Tensor::from_slice(&[value, -value, 0.5, 2.0]).view([2, 2]))
    }

    fn read(cache: &PrefixCache, key: Hash) -> Option<Vec<f32>> {
        cache.get(key, 2, Kind::Float).map(|tensor| Vec::try_from(tensor.flatten(0, -1)).unwrap())
    }

    #[test]
    fn over_budget_the_first_stays() {
        let cache = PrefixCache::ram(16);
        let [(first, first_value), (second, second_value)] = [entry(1.0), entry(3.0)];
        cache.put(first, &first_value);
        cache.put(second, &second_value);
        assert_eq!(read(&cache, first), Some(vec![1.0, -1.0, 0.5, 2.0]));
        assert_eq!(read(&cache, second), None);
    }

    #[test]
    fn a_disk_entry_outlives_the_run_and_a_damaged_one_is_absent() {
        let folder = tempfile::tempdir().unwrap();
        let open = |context: &[u8]| PrefixCache::disk(folder.path().to_owned(), blake3::hash(context), 1000).unwrap();
        let (key, value) = entry(1.0);
        open(b"weights").put(key, &value);
        assert_eq!(read(&open(b"weights"), key), Some(vec![1.0, -1.0, 0.5, 2.0]));
        assert_eq!(read(&open(b"other weights"), key), None);
        let path = folder.path().join(file_name(blake3::hash(b"weights"), key));
        let mut bytes = fs_err::read(&path).unwrap();
        bytes[CHECKSUM + 1] ^= 1;
        fs_err::write(&path, bytes).unwrap();
        assert_eq!(read(&open(b"weights"), key), None);
    }
}
