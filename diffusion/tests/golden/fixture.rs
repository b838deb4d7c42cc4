//! Reading fixtures, and how far values are from them.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use tch::{Kind, Tensor};

/// Where `name` is in `tests/golden`.
pub(crate) fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")).join(name)
}

/// Copies the folder of the golden pipeline, to be changed.
pub(crate) fn copy_of_model(to: &Path) {
    let model = golden("pipeline/model");
    for part in ["text_encoder", "tokenizer", "scheduler", "unet", "vae", "."] {
        fs_err::create_dir_all(to.join(part)).unwrap();
        for entry in fs_err::read_dir(model.join(part)).unwrap().map(Result::unwrap) {
            if entry.path().is_file() {
                fs_err::copy(entry.path(), to.join(part).join(entry.file_name())).unwrap();
            }
        }
    }
}

/// Reads, changes and writes a JSON file.
pub(crate) fn edit(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut value = serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
    change(&mut value);
    fs_err::write(path, value.to_string()).unwrap();
}

/// A safetensors file of expected values, read without this project's own reader.
pub(crate) struct Fixture(Vec<u8>);

impl Fixture {
    pub(crate) fn open(name: &str) -> Self {
        Self(fs_err::read(golden(name)).unwrap())
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.tensors().names().into_iter().map(str::to_owned).collect()
    }

    pub(crate) fn shape(&self, name: &str) -> Vec<i64> {
        self.tensors().tensor(name).unwrap().shape().iter().map(|size| *size as i64).collect()
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = self.tensors();
        tensors.tensor(name).unwrap().data().as_chunks().0.iter().copied().map(f32::from_le_bytes).collect()
    }

    pub(crate) fn integers(&self, name: &str) -> Vec<i64> {
        let tensors = self.tensors();
        tensors.tensor(name).unwrap().data().as_chunks().0.iter().copied().map(i64::from_le_bytes).collect()
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        self.tensors().tensor(name).unwrap().data().to_vec()
    }

    /// An fp32 tensor of libtorch.
    pub(crate) fn torch(&self, name: &str) -> Tensor {
        Tensor::from_slice(&self.floats(name)).reshape(self.shape(name))
    }

    /// An int64 tensor of libtorch.
    pub(crate) fn torch_integers(&self, name: &str) -> Tensor {
        Tensor::from_slice(&self.integers(name)).reshape(self.shape(name))
    }
}

/// The values of a tensor, row-major, fp32.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.to_kind(Kind::Float).contiguous().view(-1)).unwrap()
}

/// Every value within `tolerance`, and no NaN.
#[track_caller]
pub(crate) fn assert_close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let worst = got
        .iter()
        .zip(want)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |worst: f32, error| if error > worst || error.is_nan() { error } else { worst });
    assert!(worst <= tolerance, "{what}: off by {worst:e}, more than {tolerance:e}");
}
