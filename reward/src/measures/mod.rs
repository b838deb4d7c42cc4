//! Measures of generated pictures that need no weights of their own: of pixels, `[B, 3, H, W]`, fp32, 0..=1, or of embeddings.
//! A measure of pixels is a file, and its lines in [`PixelMeasure`].

#[cfg(feature = "torch")]
mod colour_entropy;
#[cfg(feature = "torch")]
mod contrast;
#[cfg(feature = "torch")]
mod diversity;
#[cfg(feature = "torch")]
mod edge_density;
#[cfg(feature = "torch")]
mod frechet;
#[cfg(feature = "torch")]
mod kernel_distance;
#[cfg(feature = "torch")]
mod saturation;

#[cfg(feature = "torch")]
pub use {
    colour_entropy::colour_entropy,
    contrast::contrast,
    diversity::diversity,
    edge_density::{EDGE_THRESHOLD, edge_density},
    frechet::frechet_distance,
    kernel_distance::kernel_distance,
    saturation::saturation,
};

#[cfg(feature = "torch")]
use tch::Tensor;

use crate::closed_set;

closed_set! {
    /// A measure of the pixels of one image.
    pub enum PixelMeasure: "measure" {
        /// Mean HSV saturation.
        Saturation = "saturation",
        /// Deviation of luma.
        Contrast = "contrast",
        /// Share of pixels on an edge.
        EdgeDensity = "edge-density",
        /// How many colours, and how evenly.
        ColourEntropy = "colour-entropy",
    }
}

impl PixelMeasure {
    /// What its numbers are.
    pub fn convention(self) -> &'static str {
        match self {
            Self::Saturation => "mean HSV saturation of the pixels, 0..1",
            Self::Contrast => "standard deviation of Rec. 601 luma, 0..0.5",
            Self::EdgeDensity => "share of pixels with a Sobel gradient of luma above 0.4, 0..1",
            Self::ColourEntropy => "entropy in bits of the histogram of 512 colours, 8 levels a channel, 0..9",
        }
    }

    /// Measures pictures, `[B, 3, H, W]`, fp32 in 0..=1; gives `[B]`, fp32.
    #[cfg(feature = "torch")]
    pub fn of(self, pixels: &Tensor) -> Tensor {
        match self {
            Self::Saturation => saturation(pixels),
            Self::Contrast => contrast(pixels),
            Self::EdgeDensity => edge_density(pixels),
            Self::ColourEntropy => colour_entropy(pixels),
        }
    }
}

#[cfg(feature = "torch")]
/// Luma by Rec. 601: `[B, 3, H, W]` to `[B, 1, H, W]`.
fn luma(pixels: &Tensor) -> Tensor {
    let weights = Tensor::from_slice(&[0.299_f32, 0.587, 0.114]).to_device(pixels.device()).view([1, 3, 1, 1]);
    (pixels * weights).sum_dim_intlist([1_i64].as_slice(), true, None)
}

/// What the tests of the measures share.
#[cfg(all(test, feature = "torch"))]
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
