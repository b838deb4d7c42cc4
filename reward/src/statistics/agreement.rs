//! How far two metrics agree on which images are better: Spearman's rank correlation.

/// Spearman's ρ in -1..=1: Pearson's correlation of the ranks, equal values sharing the mean of theirs. `None` where a side is
/// constant or there are fewer than two values.
///
/// # Panics
/// If the lengths differ.
pub fn spearman(left: &[f64], right: &[f64]) -> Option<f64> {
    assert_eq!(left.len(), right.len(), "values in pairs");
    let (left, right) = (centred_ranks(left), centred_ranks(right));
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = (product(&left, &left) * product(&right, &right)).sqrt();
    (scale > 0.0).then(|| product(&left, &right) / scale)
}

/// Ranks less their mean.
fn centred_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|a, b| values[*a].total_cmp(&values[*b]));
    let centre = (values.len() as f64 - 1.0) / 2.0;
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for equal in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let rank = first as f64 + (equal.len() as f64 - 1.0) / 2.0;
        equal.iter().for_each(|index| ranks[*index] = rank - centre);
        first += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// python tests/golden/comparison_statistics.py (scipy.stats.spearmanr)
    #[test]
    fn it_is_scipys_with_ties() {
        let left = [1.0, 2.0, 2.0, 3.5, 5.0, 4.0, 0.5, 2.0];
        let right = [0.3, 0.9, 0.7, 0.7, 1.2, 1.1, 0.4, 0.1];
        assert!((spearman(&left, &right).unwrap() - 0.7608650751944147).abs() < 1e-12);
    }

    #[test]
    fn order_is_all_that_counts() {
        assert_eq!(spearman(&[1.0, 2.0, 30.0], &[0.0, 0.1, 0.11]), Some(1.0));
        assert_eq!(spearman(&[1.0, 2.0, 30.0], &[3.0, 2.0, -9.0]), Some(-1.0));
        assert_eq!(spearman(&[1.0, 1.0], &[0.0, 1.0]), None);
        assert_eq!(spearman(&[], &[]), None);
    }
}
