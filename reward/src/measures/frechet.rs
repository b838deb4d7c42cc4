//! FID's distance on any features: between the normal distributions that have their means and covariances.
//!
//! Heusel et al., 2017, <https://arxiv.org/abs/1706.08500>, equation 6. The features are the caller's: with CLIP's it is no FID
//! that can be compared with those of Inception.

use tch::{Kind, Tensor};

/// |μ − μ'|² + tr(Σ + Σ' − 2 (Σ Σ')^½), 0 for equal means and covariances. The trace of the root is that of the symmetric
/// (Σ^½ Σ' Σ^½)^½.
///
/// `left`, `right`: `[N, E]` and `[M, E]`, N and M at least 2.
pub fn frechet_distance(left: &Tensor, right: &Tensor) -> f64 {
    let ((mean, covariance), (other_mean, other_covariance)) = (moments(left), moments(right));
    let (values, vectors) = covariance.linalg_eigh("L");
    let root = (&vectors * values.clamp_min(0.0).sqrt()).matmul(&vectors.transpose(0, 1));
    let product = root.matmul(&other_covariance).matmul(&root);
    let trace = product.linalg_eigvalsh("L").clamp_min(0.0).sqrt().sum(Kind::Double);
    let shift = (mean - other_mean).square().sum(Kind::Double);
    let spread = covariance.trace() + other_covariance.trace() - trace * 2.0;
    (shift + spread).double_value(&[])
}

/// Mean `[E]` and covariance `[E, E]`, divided by N − 1.
fn moments(features: &Tensor) -> (Tensor, Tensor) {
    let features = features.to_kind(Kind::Double);
    let mean = features.mean_dim([0_i64].as_slice(), false, Kind::Double);
    let centred = &features - &mean;
    let covariance = centred.transpose(0, 1).matmul(&centred) / (features.size()[0] - 1) as f64;
    (mean, covariance)
}

#[cfg(test)]
pub(super) mod tests {
    use tch::Device;

    use super::*;

    /// `[count, 5]`, as tests/golden/set_distances.py makes them.
    pub(crate) fn features(count: i64, step: f64, shift: f64) -> Tensor {
        ((Tensor::arange(count * 5, (Kind::Double, Device::Cpu)) * step).sin() + shift).view([count, 5])
    }

    /// python tests/golden/set_distances.py (scipy.linalg.sqrtm)
    #[test]
    fn it_is_scipys() {
        let (left, right) = (features(20, 0.37, 0.0), features(15, 0.53, 0.25));
        assert!((frechet_distance(&left, &right) - 0.5226970007336094).abs() < 1e-6);
        assert!((frechet_distance(&right, &left) - 0.5226970007336094).abs() < 1e-6);
        assert!(frechet_distance(&left, &left).abs() < 1e-6);
    }

    /// Fewer images than features: the covariance has no full rank. Moved by 1 in each of five features.
    #[test]
    fn few_images_are_no_trouble() {
        let left = features(3, 0.37, 0.0);
        assert!((frechet_distance(&left, &(&left + 1.0)) - 5.0).abs() < 1e-6);
    }
}
