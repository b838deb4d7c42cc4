//! Root-mean-square contrast.

use tch::Tensor;

use super::luma;

/// Standard deviation of luma (Rec. 601) over the pixels, divided by their number, not by one less.
///
/// `pixels`: `[B, 3, H, W]`, fp32 in 0..=1; gives `[B]`, fp32 in 0..=0.5.
pub fn contrast(pixels: &Tensor) -> Tensor {
    luma(pixels).std_dim([1_i64, 2, 3].as_slice(), false, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measures::testing::{assert_values, grey, picture};

    #[test]
    fn half_black_half_white_has_a_half_and_an_even_picture_none() {
        let pictures = [grey(&[[0.0, 1.0], [1.0, 0.0]]), grey(&[[0.6, 0.6], [0.6, 0.6]])];
        assert_values(&contrast(&Tensor::cat(&pictures, 0)), &[0.5, 0.0]);
    }

    /// Lumas 0.587 and 0.114: half their difference.
    #[test]
    fn green_is_lighter_than_blue() {
        assert_values(&contrast(&picture(&[[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])), &[0.2365]);
    }
}
