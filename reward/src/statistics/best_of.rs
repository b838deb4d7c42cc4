//! What picking the best of n images is worth.

use std::collections::BTreeMap;

/// Expected score of the best of n images of a prompt, averaged over the prompts. Here n goes from 1 to the fewest images that a
/// prompt has. The images picked from are drawn without replacement, so it is exact. Among k sorted scores the i-th (from 1) is
/// the best of n in C(i − 1, n − 1) of C(k, n) draws. `prompts` names the prompt of each score.
///
/// # Panics
/// If the lengths differ.
pub fn best_of(prompts: &[&str], scores: &[f64]) -> Vec<f64> {
    assert_eq!(prompts.len(), scores.len(), "a prompt for every score");
    let mut by_prompt: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (prompt, score) in prompts.iter().zip(scores) {
        by_prompt.entry(prompt).or_default().push(*score);
    }
    by_prompt.values_mut().for_each(|scores| scores.sort_unstable_by(f64::total_cmp));
    let fewest = by_prompt.values().map(Vec::len).min().unwrap_or(0);
    let mean = |n: usize| by_prompt.values().map(|sorted| expected_maximum(sorted, n)).sum::<f64>();
    (1..=fewest).map(|n| mean(n) / by_prompt.len() as f64).collect()
}

/// From the top down, the chance that no better image was drawn but this one was.
fn expected_maximum(sorted: &[f64], n: usize) -> f64 {
    let (mut expected, mut none_better) = (0.0, 1.0);
    for (below, score) in sorted.iter().enumerate().rev() {
        // Of below + 1 images left, n are drawn.
        let drawn = (n as f64 / (below as f64 + 1.0)).min(1.0);
        expected += none_better * drawn * score;
        none_better *= 1.0 - drawn;
    }
    expected
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For 1, 2, 4: the mean 7/3; pairs (1,2), (1,4), (2,4) with maxima 2, 4, 4; all three 4. For 0, 0, 3, 3: mean 1.5; one of six
    /// pairs has no 3, so 2.5; three always have one. Averaged over the prompts.
    #[test]
    fn two_prompts_by_hand() {
        let curve = best_of(&["a", "a", "a", "b", "b", "b", "b"], &[4.0, 1.0, 2.0, 3.0, 0.0, 0.0, 3.0]);
        let wanted = [(7.0 / 3.0 + 1.5) / 2.0, (10.0 / 3.0 + 2.5) / 2.0, 3.5];
        assert!(curve.iter().zip(wanted).all(|(got, want)| (got - want).abs() < 1e-12), "{curve:?}");
        assert_eq!(curve.len(), 3);
        assert!(best_of(&[], &[]).is_empty());
    }
}
