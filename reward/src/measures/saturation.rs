//! How colourful: the saturation of HSV.

use tch::{Kind, Tensor};

/// Mean over the pixels of (max − min) / max of the three channels, black counting 0.
///
/// `pixels`: `[B, 3, H, W]`, fp32 in 0..=1; gives `[B]`, fp32 in 0..=1.
pub fn saturation(pixels: &Tensor) -> Tensor {
    const TINY: f64 = 1e-12;
    let (high, low) = (pixels.amax([1], false), pixels.amin([1], false));
    ((&high - low) / high.clamp_min(TINY)).mean_dim([1_i64, 2].as_slice(), false, Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measures::testing::{assert_values, grey, picture};

    #[test]
    fn grey_has_none_and_pure_red_all() {
        assert_values(&saturation(&grey(&[[0.0, 0.3], [0.7, 1.0]])), &[0.0]);
        assert_values(&saturation(&picture(&[[[0.2, 0.0, 0.0]]])), &[1.0]);
    }

    /// (0.8 − 0.2) / 0.8 = 0.75 and black 0, so 0.375; beside it (1 − 0.5) / 1 twice.
    #[test]
    fn it_is_the_mean_of_each_picture() {
        let first = picture(&[[[0.8, 0.2, 0.5], [0.0, 0.0, 0.0]]]);
        let second = picture(&[[[1.0, 0.5, 1.0], [0.5, 0.5, 1.0]]]);
        assert_values(&saturation(&Tensor::cat(&[first, second], 0)), &[0.375, 0.5]);
    }
}
