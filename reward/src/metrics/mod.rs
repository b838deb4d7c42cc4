//! Measures of generated pictures. Those without weights need no prompt: a picture is `[3, H, W]`, fp32, 0..=1. Those with
//! a checkpoint are [`Reward`](crate::score::reward::Reward)s, loaded by
//! [`RewardSpec::load`](crate::score::spec::RewardSpec::load).

pub mod aesthetic;
mod affine;
pub mod clip_reward;
mod colour_entropy;
mod contrast;
mod diversity;
mod edge_density;
mod frechet;
pub mod hps;
pub mod image_reward;
mod kernel_distance;
pub mod pick_score;
mod saturation;

pub use colour_entropy::colour_entropy;
pub use contrast::contrast;
pub use diversity::diversity;
pub use edge_density::{EDGE_THRESHOLD, edge_density};
pub use frechet::frechet_distance;
pub use kernel_distance::kernel_distance;
pub use saturation::saturation;

use tch::Tensor;

/// Luma by Rec. 601: `[B, 3, H, W]` to `[B, 1, H, W]`.
fn luma(pixels: &Tensor) -> Tensor {
    let weights = Tensor::from_slice(&[0.299_f32, 0.587, 0.114]).to_device(pixels.device()).view([1, 3, 1, 1]);
    (pixels * weights).sum_dim_intlist([1_i64].as_slice(), true, None)
}

/// What the tests of the measures share.
#[cfg(test)]
mod testing {
    use tch::Tensor;

    /// A picture `[1, 3, H, W]` of rows of RGB pixels.
    pub(super) fn picture<const WIDTH: usize>(rows: &[[[f32; 3]; WIDTH]]) -> Tensor {
        let pixels = Tensor::from_slice(rows.as_flattened().as_flattened());
        pixels.view([1, rows.len() as i64, WIDTH as i64, 3]).permute([0, 3, 1, 2])
    }

    /// A grey picture `[1, 3, H, W]`.
    pub(super) fn grey<const WIDTH: usize>(rows: &[[f32; WIDTH]]) -> Tensor {
        let pixels = Tensor::from_slice(rows.as_flattened());
        pixels.view([1, 1, rows.len() as i64, WIDTH as i64]).expand([1, 3, -1, -1], false)
    }

    /// The values are these, within fp32.
    #[track_caller]
    pub(super) fn assert_values(got: &Tensor, want: &[f32]) {
        let close = got.size() == [want.len() as i64] && got.allclose(&Tensor::from_slice(want), 1e-5, 1e-6, false);
        assert!(close, "got {:?}, want {want:?}", Vec::<f32>::try_from(got));
    }
}
