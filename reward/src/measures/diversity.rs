//! How unlike one another the pictures of a set are.

use tch::{Kind, Tensor};

/// Mean of 1 − cosine over all pairs; 0 for fewer than two.
///
/// `embeddings`: `[B, E]`, rows of length 1; gives 0..=2. Since |Σ e|² is Σ |e|² and the cosines of all ordered pairs, no
/// `[B, B]` is made.
pub fn diversity(embeddings: &Tensor) -> f64 {
    let count = embeddings.size()[0] as f64;
    if count < 2.0 {
        return 0.0;
    }
    let embeddings = embeddings.to_kind(Kind::Double);
    let total = embeddings.sum_dim_intlist([0_i64].as_slice(), false, Kind::Double);
    let squares = |x: &Tensor| x.square().sum(Kind::Double).double_value(&[]);
    1.0 - (squares(&total) - squares(&embeddings)) / (count * (count - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: &[[f32; 2]]) -> f64 {
        diversity(&Tensor::from_slice(rows.as_flattened()).view([-1, 2]))
    }

    /// Cosines 0.6, 0 and 0.8: mean distance (0.4 + 1 + 0.2) / 3.
    #[test]
    fn it_is_the_mean_over_the_pairs() {
        assert!((of(&[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]) - 1.6 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn equal_pictures_have_none_and_opposite_ones_two() {
        assert_eq!(of(&[[1.0, 0.0]; 3]), 0.0);
        assert_eq!(of(&[[1.0, 0.0], [-1.0, 0.0]]), 2.0);
    }

    #[test]
    fn fewer_than_two_have_none() {
        assert_eq!(of(&[[1.0, 0.0]]), 0.0);
        assert_eq!(of(&[]), 0.0);
    }
}
