//! How much line there is: the share of pixels on an edge, by Sobel's operator.

use tch::{Kind, Tensor};

use super::luma;

/// What an edge's gradient exceeds. A straight edge between luma a and b has 4·|a − b|, so: a tenth of the range.
pub const EDGE_THRESHOLD: f64 = 0.4;

/// Share of the pixels whose Sobel gradient of luma (Rec. 601) exceeds [`EDGE_THRESHOLD`], among those that have all eight
/// neighbours; 0 where none has.
///
/// `pixels`: `[B, 3, H, W]`, fp32 in 0..=1; gives `[B]`, fp32 in 0..=1.
pub fn edge_density(pixels: &Tensor) -> Tensor {
    let luma = luma(pixels);
    let [batch, _, height, width] = luma.size()[..] else { unreachable!("luma is [B, 1, H, W]") };
    if height.min(width) < 3 {
        return Tensor::zeros([batch], (Kind::Float, luma.device()));
    }
    let across = Tensor::from_slice(&[-1.0_f32, 0.0, 1.0, -2.0, 0.0, 2.0, -1.0, 0.0, 1.0]).view([1, 3, 3]);
    let kernels = Tensor::stack(&[across.shallow_clone(), across.transpose(1, 2)], 0).to_device(luma.device());
    let gradients = luma.conv2d(&kernels, None::<&Tensor>, [1, 1], [0, 0], [1, 1], 1);
    let magnitudes = gradients.norm_scalaropt_dim(2.0, [1], false);
    magnitudes.gt(EDGE_THRESHOLD).to_kind(Kind::Float).mean_dim([1_i64, 2].as_slice(), false, Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measures::testing::{assert_values, grey};

    /// Two of the four inner columns, those beside the step, see it, whichever way it goes.
    #[test]
    fn a_step_is_seen_from_both_sides() {
        let step = grey(&[[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]; 3]);
        assert_values(&edge_density(&step), &[0.5]);
        assert_values(&edge_density(&step.transpose(2, 3)), &[0.5]);
    }

    #[test]
    fn a_step_below_a_tenth_is_no_edge() {
        let steps = [0.09, 0.11].map(|high| grey(&[[0.0, 0.0, high, high]; 4]));
        assert_values(&edge_density(&Tensor::cat(&steps, 0)), &[0.0, 1.0]);
    }

    /// Across and down each have 0.075 · 4 = 0.3, together 0.3 · √2 = 0.424.
    #[test]
    fn a_slope_counts_in_its_own_direction() {
        let slope = grey(&[[0.0, 0.0375, 0.075], [0.0375, 0.075, 0.1125], [0.075, 0.1125, 0.15]]);
        assert_values(&edge_density(&slope), &[1.0]);
    }

    #[test]
    fn without_inner_pixels_there_is_no_edge() {
        assert_values(&edge_density(&grey(&[[0.0, 1.0, 0.0]; 2])), &[0.0]);
    }
}
