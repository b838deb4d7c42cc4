//! The original's triplet loss on squared Euclidean distances of unit vectors (Schroff et al., 2015,
//! <https://arxiv.org/abs/1503.03832>, eq. 3): `mean(relu(|a − p|² − |a − n|² + margin))`.

use tch::{Kind, Tensor};

use super::Embeddings;

/// The mean over the batch, a scalar. On unit vectors it is `relu(2 (cos_n − cos_p) + margin)`: a pair whose cosines differ
/// by more than `margin / 2` is left alone.
pub fn triplet(embeddings: &Embeddings, margin: f64) -> Tensor {
    let distance =
        |image: &Tensor| (&embeddings.text - image).square().sum_dim_intlist([-1_i64].as_slice(), false, Kind::Float);
    (distance(&embeddings.positive) - distance(&embeddings.negative) + margin).relu().mean(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_worked() {
        // a = (1, 0), p = (0.75, ·): |a-p|² = 2 - 2·0.75 = 0.5; n = (0.9, ·): 2 - 1.8 = 0.2; relu(0.5 - 0.2 + 0.3) = 0.6.
        // Second row: p and n swapped: relu(0.2 - 0.5 + 0.3) = 0. Mean 0.3.
        let at = |cosine: f32| [cosine, (1.0 - cosine * cosine).sqrt()];
        let rows = |rows: [[f32; 2]; 2]| Tensor::from_slice(&rows.concat()).view([2, 2]);
        let embeddings = Embeddings {
            text: rows([[1.0, 0.0]; 2]),
            positive: rows([at(0.75), at(0.9)]),
            negative: rows([at(0.9), at(0.75)]),
            prompt: Tensor::from_slice(&[0_i64, 1]),
        };
        assert!((triplet(&embeddings, 0.3).double_value(&[]) - 0.3).abs() < 1e-6);
    }
}
