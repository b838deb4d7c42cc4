//! Reading fixtures, and how far values are from them.

use std::path::PathBuf;

use safetensors::SafeTensors;

/// Where `name` is in `tests/golden`.
pub(crate) fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")).join(name)
}

/// `golden(name)` as the command line would give it.
pub(crate) fn golden_text(name: &str) -> String {
    golden(name).to_str().unwrap().to_owned()
}

/// A safetensors file of expected values, read without this crate's own reader.
pub(crate) struct Fixture(Vec<u8>);

impl Fixture {
    pub(crate) fn open(name: &str) -> Self {
        Self(fs_err::read(golden(name)).unwrap())
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    #[cfg(feature = "torch")]
    pub(crate) fn names(&self) -> Vec<String> {
        self.tensors().names().into_iter().map(str::to_owned).collect()
    }

    pub(crate) fn shape(&self, name: &str) -> Vec<usize> {
        self.tensors().tensor(name).unwrap().shape().to_vec()
    }

    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = self.tensors();
        tensors.tensor(name).unwrap().data().as_chunks().0.iter().copied().map(f32::from_le_bytes).collect()
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        self.tensors().tensor(name).unwrap().data().to_vec()
    }

    pub(crate) fn integers(&self, name: &str) -> Vec<i64> {
        let tensors = self.tensors();
        tensors.tensor(name).unwrap().data().as_chunks().0.iter().copied().map(i64::from_le_bytes).collect()
    }

    /// An fp32 tensor of libtorch.
    #[cfg(feature = "torch")]
    pub(crate) fn torch(&self, name: &str) -> tch::Tensor {
        let shape: Vec<i64> = self.shape(name).iter().map(|size| *size as i64).collect();
        tch::Tensor::from_slice(&self.floats(name)).reshape(shape)
    }
}

/// The values of a tensor, row-major, fp32.
#[cfg(feature = "torch")]
pub(crate) fn values(tensor: &tch::Tensor) -> Vec<f32> {
    Vec::try_from(tensor.to_kind(tch::Kind::Float).contiguous().view(-1)).unwrap()
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

/// `|got - want| / |want|`, Euclidean norms; for a `want` of zeros, `|got|`.
#[cfg(feature = "torch")]
pub(crate) fn relative_norm(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(want).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    match norm(&mut want.iter().map(|value| f64::from(*value))) {
        0.0 => difference,
        size => difference / size,
    }
}
