//! How a model wants its pictures. A CLIP folder's `preprocessor_config.json` or `open_clip_config.json` says it; the decoder's
//! path ([`super::preprocess`]) and the differentiable one (`preprocess_tensor`) both do it.
//!
//! Reference: `_transform` in `clip/clip.py` (openai-clip 1.0.1), `open_clip/transform.py` (open_clip_torch 3.3.0),
//! `CLIPImageProcessor` (transformers 5.24.0). Deviation from transformers: the crop begins where OpenAI's does. Where the
//! surplus of the long side is 3 more than a multiple of 4, transformers begins one pixel earlier.

use std::fmt;

use super::{filter::Filter, side::Side};

/// Mean of the red, green and blue values (0..=1) of OpenAI's training pictures.
pub const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviations of the channels.
#[allow(clippy::excessive_precision, reason = "the digits OpenAI wrote")]
pub const STD: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// How a picture becomes square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resize {
    /// The short side is resized to the model's size, and the centre of the long one kept.
    Shortest,
    /// The long side is resized to the model's size, and the short one filled up.
    Longest {
        /// Value of red, green and blue of what is filled up, 0 to 255.
        fill: u8,
    },
    /// Both sides are resized to the model's size, whatever their ratio.
    Squash,
    /// HPSv2's own: as [`Self::Longest`] with black, but the resized values are not cut off at black and white.
    Letterbox,
}

/// What is done to a picture before the model sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocessing {
    /// How it becomes square.
    pub resize: Resize,
    /// How it is resampled.
    pub filter: Filter,
    /// Subtracted from red, green and blue in 0..=1.
    pub mean: [f32; 3],
    /// Divides what is left.
    pub std: [f32; 3],
}

impl Default for Preprocessing {
    /// OpenAI's.
    fn default() -> Self {
        Self { resize: Resize::Shortest, filter: Filter::Bicubic, mean: MEAN, std: STD }
    }
}

impl Preprocessing {
    /// Columns and rows of a picture of `width` × `height` for a model of `size` × `size` pixels.
    pub(super) fn sides(&self, width: u32, height: u32, size: u32) -> [Side; 2] {
        let (short, long) = (width.min(height), width.max(height));
        [width, height].map(|full| match self.resize {
            Resize::Shortest => Side::cropped(full, short, size),
            Resize::Squash => Side { full, resized: u64::from(size), offset: 0, size },
            // The two libraries compute the ratio the other way round, which decides where half a pixel goes.
            Resize::Longest { .. } => Side::fitted(full, f64::from(full) / (f64::from(long) / f64::from(size)), size),
            Resize::Letterbox => Side::fitted(full, f64::from(full) * (f64::from(size) / f64::from(long)), size),
        })
    }

    /// Value of red, green and blue beside a picture that does not fill the square.
    pub(super) fn fill(&self) -> u8 {
        match self.resize {
            Resize::Longest { fill } => fill,
            Resize::Shortest | Resize::Squash | Resize::Letterbox => 0,
        }
    }
}

impl fmt::Display for Preprocessing {
    /// OpenAI's by its name, any other in full.
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        if *self == Self::default() {
            return formatter.write_str("OpenAI's preprocessing");
        }
        let Self { resize, filter, mean: [red, green, blue], std: [red_std, green_std, blue_std] } = self;
        match resize {
            Resize::Shortest => formatter.write_str("pictures cropped")?,
            Resize::Longest { fill } => write!(formatter, "pictures filled up with {fill}")?,
            Resize::Squash => formatter.write_str("pictures squashed")?,
            Resize::Letterbox => formatter.write_str("pictures letterboxed")?,
        }
        write!(formatter, " ({filter}), mean {red} {green} {blue}, std {red_std} {green_std} {blue_std}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sides(resize: Resize, width: u32, height: u32) -> [(u64, u64, u32); 2] {
        let preprocessing = Preprocessing { resize, ..Preprocessing::default() };
        preprocessing.sides(width, height, 224).map(|side| (side.resized, side.offset, side.size))
    }

    #[test]
    fn long_side_is_cut_off_to_whole_pixels_and_half_offsets_go_to_even() {
        let long = |full, short| {
            let side = Side::cropped(full, short, 224);
            (side.resized, side.offset)
        };
        // 224 · 331 / 257 = 288.5, (288 − 224) / 2 = 32
        assert_eq!(long(331, 257), (288, 32));
        // Surplus 1, 3, 5, 7: halves 0.5, 1.5, 2.5, 3.5 round to even.
        assert_eq!([225, 227, 229, 231].map(|full| long(full, 224)), [(225, 0), (227, 2), (229, 2), (231, 4)]);
        assert_eq!(long(5000, 20), (56_000, 27_888));
        assert_eq!(long(7, 7), (224, 0));
    }

    /// For 45 · 224 / 320 = 31.5 the two ways to compute it fall on either side. And 1 / 5000 of a side is still a pixel.
    #[test]
    fn the_long_side_fits_and_the_short_one_is_filled_up() {
        let longest = Resize::Longest { fill: 0 };
        assert_eq!(sides(longest, 448, 224), [(224, 0, 224), (112, 0, 112)]);
        assert_eq!(sides(longest, 320, 45)[1].0, 32);
        assert_eq!(sides(Resize::Letterbox, 320, 45)[1].0, 31);
        assert_eq!(sides(longest, 1, 5000), [(1, 0, 1), (224, 0, 224)]);
        assert_eq!(sides(Resize::Squash, 20, 5000), [(224, 0, 224), (224, 0, 224)]);
        let side = Side::fitted(100, 101.0, 224);
        assert_eq!(side.margins(224), [61, 62]);
    }

    #[test]
    fn openais_is_said_by_name_and_others_in_full() {
        assert_eq!(Preprocessing::default().to_string(), "OpenAI's preprocessing");
        let other = Preprocessing {
            resize: Resize::Longest { fill: 127 },
            filter: Filter::Bilinear,
            mean: [0.5; 3],
            std: [0.25, 0.5, 1.0],
        };
        assert_eq!(other.to_string(), "pictures filled up with 127 (bilinear), mean 0.5 0.5 0.5, std 0.25 0.5 1");
    }
}
