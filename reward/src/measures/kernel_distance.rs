//! KID's distance on any features: the squared maximum mean discrepancy under a cubic kernel.
//!
//! Bińkowski et al., 2018, <https://arxiv.org/abs/1801.01401>, section 3. Deviation: one estimate from all images, not the mean
//! over random subsets.

use tch::{Kind, Tensor};

/// Rows of a kernel matrix that are made at a time.
const ROWS: i64 = 1024;

/// Unbiased estimate of MMD² with k(x, y) = (x·y / E + 1)³; may be below 0.
///
/// `left`, `right`: `[N, E]` and `[M, E]`, N and M at least 2.
pub fn kernel_distance(left: &Tensor, right: &Tensor) -> f64 {
    let (left, right) = (left.to_kind(Kind::Double), right.to_kind(Kind::Double));
    let within = |features: &Tensor| {
        let count = features.size()[0] as f64;
        let squares = features.square().sum_dim_intlist([1_i64].as_slice(), false, Kind::Double);
        let own = cubic(&squares, features.size()[1]).sum(Kind::Double).double_value(&[]);
        (kernel_sum(features, features) - own) / (count * (count - 1.0))
    };
    let across = kernel_sum(&left, &right) / (left.size()[0] as f64 * right.size()[0] as f64);
    within(&left) + within(&right) - 2.0 * across
}

fn cubic(products: &Tensor, width: i64) -> Tensor {
    (products / width as f64 + 1.0).pow_tensor_scalar(3)
}

/// Σ k over all pairs.
fn kernel_sum(left: &Tensor, right: &Tensor) -> f64 {
    let rows = left.split(ROWS, 0);
    let part =
        |rows: &Tensor| cubic(&rows.matmul(&right.transpose(0, 1)), left.size()[1]).sum(Kind::Double).double_value(&[]);
    rows.iter().map(part).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measures::frechet::tests::features;

    /// python tests/golden/set_distances.py (numpy)
    #[test]
    fn it_is_numpys() {
        let distance = kernel_distance(&features(20, 0.37, 0.0), &features(15, 0.53, 0.25));
        assert!((distance - 0.060489438308001464).abs() < 1e-12, "{distance}");
    }
}
