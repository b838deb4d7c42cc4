//! Pillow's resampling filters, with the numbers that its constants have.
//!
//! Reference: `precompute_coeffs` of `libImaging/Resample.c` (Pillow 13.0).

use std::fmt;

use fast_image_resize::FilterType;

use super::side::Side;

/// How a picture is resampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// One pixel, the nearest.
    Nearest,
    /// Windowed sinc over six pixels.
    Lanczos,
    /// A triangle over two pixels.
    Bilinear,
    /// Catmull-Rom over four pixels.
    Bicubic,
    /// The mean.
    Box,
    /// Windowed sinc over two pixels.
    Hamming,
}

impl Filter {
    /// All of them, each at the place that is its number in Pillow.
    pub const ALL: [Self; 6] = [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming];

    /// Pillow's number of it, which `resample` of a `preprocessor_config.json` is.
    pub fn number(self) -> usize {
        self as usize
    }

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Lanczos => "lanczos",
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
            Self::Box => "box",
            Self::Hamming => "hamming",
        }
    }

    /// The same filter of the crate that resizes bytes, and how far it reaches; none for the nearest pixel.
    pub(super) fn convolution(self) -> Option<(FilterType, f64)> {
        match self {
            Self::Nearest => None,
            Self::Lanczos => Some((FilterType::Lanczos3, 3.0)),
            Self::Bilinear => Some((FilterType::Bilinear, 1.0)),
            Self::Bicubic => Some((FilterType::CatmullRom, 2.0)),
            Self::Box => Some((FilterType::Box, 0.5)),
            Self::Hamming => Some((FilterType::Hamming, 1.0)),
        }
    }

    #[cfg(feature = "torch")]
    fn weight(self, x: f64) -> f64 {
        use std::f64::consts::PI;

        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (PI * x).sin() / (PI * x) };
        let distance = x.abs();
        match self {
            Self::Nearest => 0.0,
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - distance).max(0.0),
            Self::Hamming if distance < 1.0 => sinc(x) * (0.54 + 0.46 * (PI * x).cos()),
            Self::Bicubic if distance < 1.0 => (1.5 * distance - 2.5) * distance * distance + 1.0,
            Self::Bicubic if distance < 2.0 => -0.5 * (((distance - 5.0) * distance + 8.0) * distance - 4.0),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Hamming | Self::Bicubic | Self::Lanczos => 0.0,
        }
    }

    /// How much of every pixel of `side` is in each pixel kept: `size` rows of `full` weights that sum to 1.
    #[cfg(feature = "torch")]
    pub(super) fn weights(self, side: Side) -> Vec<f32> {
        let full = side.full as usize;
        let mut rows = vec![0.0; full * side.size as usize];
        let Some((_, reach)) = self.convolution() else {
            for (row, source) in rows.chunks_mut(full).zip(nearest_sources(side)) {
                row[source] = 1.0;
            }
            return rows;
        };
        let scale = f64::from(side.full) / side.resized as f64;
        let stretch = scale.max(1.0);
        for (row, place) in rows.chunks_mut(full).zip(side.offset..) {
            let centre = (place as f64 + 0.5) * scale;
            let first = (centre - reach * stretch + 0.5).max(0.0) as usize;
            let last = ((centre + reach * stretch + 0.5) as usize).min(full);
            let weights: Vec<f64> =
                (first..last).map(|source| self.weight((source as f64 - centre + 0.5) / stretch)).collect();
            let sum: f64 = weights.iter().sum();
            for (slot, weight) in row[first..last].iter_mut().zip(weights) {
                *slot = (weight / sum) as f32;
            }
        }
        rows
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The source pixel of every pixel kept. Pillow adds step to step, rounding errors included.
pub(super) fn nearest_sources(side: Side) -> Vec<usize> {
    let step = f64::from(side.full) / side.resized as f64;
    let positions = std::iter::successors(Some(step * 0.5), |position| Some(position + step));
    let kept = positions.skip(side.offset as usize).take(side.size as usize);
    kept.map(|position| (position as usize).min(side.full as usize - 1)).collect()
}

#[cfg(test)]
#[cfg(feature = "torch")]
mod tests {
    use super::*;

    /// Four pixels to two: the middle of the first is at 1, so pixels 0 to 3 are −0.5, 0.5, 1.5, 2.5 away. The
    /// triangle, twice as wide, has 0.75, 0.75, 0.25, 0 there.
    #[test]
    fn a_triangle_over_two_pixels() {
        let side = Side { full: 4, resized: 2, offset: 0, size: 1 };
        assert_eq!(Filter::Bilinear.weights(side), [0.75_f32, 0.75, 0.25, 0.0].map(|weight| weight / 1.75));
        assert_eq!(Filter::Box.weights(side), [0.5, 0.5, 0.0, 0.0]);
        assert_eq!(Filter::Nearest.weights(side), [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_side_that_keeps_its_length_keeps_its_pixels() {
        for filter in Filter::ALL {
            let weights = filter.weights(Side::whole(3));
            let identity = [1.0_f32, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
            assert!(weights.iter().zip(identity).all(|(a, b)| (a - b).abs() < 1e-6), "{filter}: {weights:?}");
        }
        assert_eq!(Filter::ALL.map(Filter::number), [0, 1, 2, 3, 4, 5]);
    }
}
