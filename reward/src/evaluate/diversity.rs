//! How unlike the images of a set are: each image's mean cosine distance to the others.

use std::collections::HashMap;

/// Mean of 1 − cosine of each image to the others of its group, in `0..=2`; nothing where it is alone. Averaged over a group it
/// is the mean over the group's pairs.
///
/// `groups`: the group of each image. `embeddings`: a unit embedding for each. Since Σ e·e' = e·(Σ e' − e), no matrix is made.
pub(super) fn distances<G: std::hash::Hash + Eq + Copy>(groups: &[G], embeddings: &[&[f32]]) -> Vec<Option<f64>> {
    let mut sums: HashMap<G, (f64, Vec<f64>)> = HashMap::new();
    for (group, embedding) in groups.iter().zip(embeddings) {
        let (count, sum) = sums.entry(*group).or_insert_with(|| (0.0, vec![0.0; embedding.len()]));
        *count += 1.0;
        sum.iter_mut().zip(*embedding).for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let distance = |(group, embedding): (&G, &&[f32])| {
        let (count, sum) = &sums[group];
        let cosines = sum.iter().zip(*embedding).map(|(sum, value)| (sum - f64::from(*value)) * f64::from(*value));
        (*count > 1.0).then(|| 1.0 - cosines.sum::<f64>() / (count - 1.0))
    };
    groups.iter().zip(embeddings).map(distance).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cosines 0.6, 0 and 0.8 in the first group: distances (0.4 + 1) / 2, (0.4 + 0.2) / 2, (1 + 0.2) / 2.
    #[test]
    fn distances_by_hand() {
        let embeddings = [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.0, -1.0]];
        let embeddings: Vec<&[f32]> = embeddings.iter().map(|embedding| &embedding[..]).collect();
        let found = distances(&["a", "a", "a", "b"], &embeddings);
        for (got, want) in found.iter().zip([0.7, 0.3, 0.6]) {
            assert!((got.unwrap() - want).abs() < 1e-7, "{found:?}");
        }
        assert_eq!(found[3], None);
    }
}
