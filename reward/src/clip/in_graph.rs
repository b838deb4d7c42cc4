//! CLIP's preprocessing on tensors, so that gradients reach the pixels: what [`super::preprocess`] makes of an RGB file.
//!
//! Deviation from it: nothing is rounded to bytes, which no gradient would pass, and weights of the resize are fp32
//! (`_upsample_bicubic2d_aa` of libtorch has Pillow's filter). Golden values: `tests/golden/finetune.py`.

use tch::{Kind, Tensor};

use super::preprocess::{MEAN, STD};

/// The short side resized to `size` (bicubic, antialiased, cut off at 0 and 1 as Pillow's bytes are), the centre of the
/// long one, normalised.
///
/// `pixels`: `[B, 3, H, W]`, 0..=1, any float kind; gives `[B, 3, size, size]`, fp32, in the graph of `pixels`.
pub fn preprocess(pixels: &Tensor, size: i64) -> Tensor {
    let [_, _, height, width] = pixels.size()[..] else { unreachable!("pixels are [B, 3, H, W]") };
    let short = height.min(width);
    let [rows, columns] = [height, width].map(|side| (size * side).div_euclid(short));
    let mut pixels = pixels.to_kind(Kind::Float);
    if short != size {
        pixels = pixels.internal_upsample_bicubic2d_aa([rows, columns], false, None, None).clamp(0.0, 1.0);
    }
    let offset = |side: i64| ((side - size) as f64 / 2.0).round_ties_even() as i64;
    normalised(&pixels.narrow(2, offset(rows), size).narrow(3, offset(columns), size))
}

/// The long side resized to `size` (bicubic, antialiased), the short one filled up with black, normalised.
///
/// Reference: `ResizeMaxSize` in `hpsv2/src/open_clip/transform.py` (hpsv2 1.2.0), which resizes float tensors: nothing is
/// cut off at 0 and 1. Deviation: a side never rounds to 0 pixels, and a picture whose long side fits as it is is filled up
/// too; the original fails on both.
///
/// `pixels`: `[B, 3, H, W]`, 0..=1, any float kind; gives `[B, 3, size, size]`, fp32, in the graph of `pixels`.
pub fn letterbox(pixels: &Tensor, size: i64) -> Tensor {
    let [_, _, height, width] = pixels.size()[..] else { unreachable!("pixels are [B, 3, H, W]") };
    let mut pixels = pixels.to_kind(Kind::Float);
    let scale = size as f64 / height.max(width) as f64;
    if height.max(width) != size {
        let [rows, columns] = [height, width].map(|side| ((side as f64 * scale).round_ties_even() as i64).max(1));
        pixels = pixels.internal_upsample_bicubic2d_aa([rows, columns], false, None, None);
    }
    let [rows, columns] = [2, 3].map(|side| size - pixels.size()[side]);
    // PyTorch counts from the last dimension: left, right, top, bottom.
    let [left, top] = [columns >> 1, rows >> 1];
    normalised(&pixels.constant_pad_nd([left, columns - left, top, rows - top]))
}

fn normalised(pixels: &Tensor) -> Tensor {
    let channel = |values: [f32; 3]| Tensor::from_slice(&values).to_device(pixels.device()).view([1, 3, 1, 1]);
    (pixels - channel(MEAN)) / channel(STD)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Of [`preprocess`], back in 0..=1.
    fn seen(pixels: &Tensor, size: i64) -> Tensor {
        let channel = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]);
        preprocess(pixels, size) * channel(STD) + channel(MEAN)
    }

    #[test]
    fn a_picture_that_fits_is_only_normalised() {
        let pixels = Tensor::arange(12, (Kind::Float, Device::Cpu)).view([1, 3, 2, 2]) / 12.0;
        assert!(seen(&pixels, 2).allclose(&pixels, 0.0, 1e-6, false));
    }

    /// Surplus 3 of 5 columns over 2 rows: half is 1.5, and halves round to even. Surplus 1: 0.5, to 0.
    #[test]
    fn half_a_pixel_of_offset_rounds_to_even() {
        let columns = |width| Tensor::arange(width, (Kind::Float, Device::Cpu)).expand([1, 3, 2, width], false) / 8.0;
        for (width, first) in [(5, 2.0), (3, 0.0), (4, 1.0)] {
            assert!((seen(&columns(width), 2).double_value(&[0, 0, 0, 0]) * 8.0 - first).abs() < 1e-5, "{width}");
        }
    }

    /// An enlarged step overshoots without the cut.
    #[test]
    fn a_resize_stays_within_0_and_1() {
        let step = Tensor::from_slice(&[0.0_f32, 0.0, 1.0, 1.0]).expand([1, 3, 4, 4], false);
        let enlarged = seen(&step, 12);
        assert!(enlarged.min().double_value(&[]).abs() < 1e-6);
        assert!((enlarged.max().double_value(&[]) - 1.0).abs() < 1e-6);
    }
}
