//! Preprocessing on tensors, so that gradients reach the pixels: what [`super::preprocess`] makes of an RGB file.
//!
//! Deviations from it: nothing is rounded to bytes, which no gradient would pass. Weights of the resize are fp32
//! (`_upsample_bicubic2d_aa` of libtorch has Pillow's filter). Golden values: `tests/golden/{finetune,metrics,preprocessing}.py`.
//!
//! Reference for [`Resize::Letterbox`]: `ResizeMaxSize` in `hpsv2/src/open_clip/transform.py` (hpsv2 1.2.0), which resizes
//! float tensors. Deviation: a picture whose long side fits as it is is filled up too, on which the original fails.

use tch::{Kind, Tensor};

use super::{
    filter::Filter,
    preprocessing::{Preprocessing, Resize},
    side::Side,
};

/// Pictures as the model sees them: resized, cut off at 0 and 1 as bytes are, cropped or filled up, normalised.
///
/// `pixels`: `[B, 3, H, W]`, 0..=1, any float kind; gives `[B, 3, size, size]`, fp32, in the graph of `pixels`.
pub fn preprocess(pixels: &Tensor, size: i64, how: &Preprocessing) -> Tensor {
    let [_, _, height, width] = pixels.size()[..] else { unreachable!("pixels are [B, 3, H, W]") };
    let [columns, rows] = how.sides(width as u32, height as u32, size as u32);
    let mut pixels = pixels.to_kind(Kind::Float);
    if columns.is_resized() || rows.is_resized() {
        pixels = match how.filter {
            Filter::Bicubic => {
                let whole = [rows, columns].map(|side| side.resized as i64);
                kept(&pixels.internal_upsample_bicubic2d_aa(whole, false, None, None), columns, rows)
            }
            filter => {
                let weights = |side: Side| {
                    let shape = [i64::from(side.size), i64::from(side.full)];
                    Tensor::from_slice(&filter.weights(side)).view(shape).to_device(pixels.device())
                };
                // Columns first, and cut off after each, as bytes are.
                let narrow = pixels.matmul(&weights(columns).tr()).clamp(0.0, 1.0);
                weights(rows).matmul(&narrow)
            }
        };
        if how.resize != Resize::Letterbox {
            pixels = pixels.clamp(0.0, 1.0);
        }
    } else {
        pixels = kept(&pixels, columns, rows);
    }
    let [[left, right], [top, bottom]] = [columns, rows].map(|side| side.margins(size as u32).map(i64::from));
    if left + right + top + bottom > 0 {
        // PyTorch counts from the last dimension.
        pixels = pixels.pad([left, right, top, bottom], "constant", f64::from(how.fill()) / 255.0);
    }
    let channel = |values: [f32; 3]| Tensor::from_slice(&values).to_device(pixels.device()).view([1, 3, 1, 1]);
    (&pixels - channel(how.mean)) / channel(how.std)
}

/// The stretch of either side that is kept.
fn kept(pixels: &Tensor, columns: Side, rows: Side) -> Tensor {
    let narrow =
        |pixels: &Tensor, dimension, side: Side| pixels.narrow(dimension, side.offset as i64, i64::from(side.size));
    narrow(&narrow(pixels, 2, rows), 3, columns)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Result of [`preprocess`], back in 0..=1.
    fn seen(pixels: &Tensor, size: i64) -> Tensor {
        let how = Preprocessing::default();
        let channel = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]);
        preprocess(pixels, size, &how) * channel(how.std) + channel(how.mean)
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
