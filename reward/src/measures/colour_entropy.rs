//! How many colours, and how evenly: the entropy of a histogram.

use tch::{Kind, Tensor};

/// Bins a channel.
const LEVELS: i64 = 8;

/// Shannon entropy in bits of the histogram of colours, 8 equal bins a channel, 512 in all.
///
/// `pixels`: `[B, 3, H, W]`, fp32 in 0..=1; gives `[B]`, fp32 in 0..=9.
pub fn colour_entropy(pixels: &Tensor) -> Tensor {
    let bins = LEVELS.pow(3);
    let batch = pixels.size()[0];
    let levels = (pixels * LEVELS).floor().clamp(0, LEVELS - 1).to_kind(Kind::Int64).flatten(2, 3);
    let [red, green, blue] = [0, 1, 2].map(|channel| levels.select(1, channel));
    let colours = (red * LEVELS + green) * LEVELS + blue;
    let rows = Tensor::arange(batch, (Kind::Int64, pixels.device())).unsqueeze(1) * bins;
    let counts = (colours + rows).flatten(0, 1).bincount(None::<&Tensor>, batch * bins).view([batch, bins]);
    let shares = counts.to_kind(Kind::Double) / levels.size()[2] as f64;
    let nats = shares.special_entr().sum_dim_intlist([1_i64].as_slice(), false, Kind::Double);
    (nats / std::f64::consts::LN_2).to_kind(Kind::Float)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::measures::testing::{assert_values, grey, picture};

    /// 1.0 falls in the last bin with 0.9; 0.12 and 0.13 lie on two sides of 1/8. Shares ¼, ¼, ½: 0.5 + 0.5 + 0.5 bits.
    #[test]
    fn entropies_are_those_of_the_shares() {
        let pictures = [grey(&[[0.12, 0.13], [0.9, 1.0]]), grey(&[[0.4, 0.4], [0.4, 0.4]])];
        assert_values(&colour_entropy(&Tensor::cat(&pictures, 0)), &[1.5, 0.0]);
        assert_values(
            &colour_entropy(&picture(&[[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0; 3]]])),
            &[2.0],
        );
    }

    /// A byte's bin is its upper three bits.
    #[test]
    fn every_colour_once_has_nine_bits() {
        let bytes = Tensor::arange(256, (Kind::Float, Device::Cpu)) / 255.0;
        let red = bytes.slice(0, 0, None, 32).view([8, 1, 1]).expand([8, 8, 8], false);
        let pixels = Tensor::stack(&[red.shallow_clone(), red.transpose(0, 1), red.transpose(0, 2)], 0);
        assert_values(&colour_entropy(&pixels.view([1, 3, 16, 32])), &[9.0]);
        assert_values(&colour_entropy(&bytes.view([1, 1, 16, 16]).expand([1, 3, 16, 16], false)), &[3.0]);
    }
}
