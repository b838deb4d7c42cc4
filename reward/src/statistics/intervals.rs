//! 95 % intervals on an accuracy: Wilson's, and a bootstrap over prompts.

use std::collections::BTreeMap;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Binomial, Distribution};

/// 97.5 % quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;
const RESAMPLES: usize = 2_000;

/// Ends of an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end, in `0..=1`.
    pub low: f64,
    /// Upper end, in `0..=1`.
    pub high: f64,
}

/// Wilson's score interval (1927) for `successes` of `trials` independent trials; half a success is a tie.
/// No trial, no information: `0..=1`.
pub fn wilson(successes: f64, trials: usize) -> Interval {
    if trials == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let trials = trials as f64;
    let rate = successes / trials;
    let spread = Z * Z / trials;
    let centre = (rate + spread / 2.0) / (1.0 + spread);
    let half_width = Z / (1.0 + spread) * (rate * (1.0 - rate) / trials + spread / (4.0 * trials)).sqrt();
    Interval { low: (centre - half_width).max(0.0), high: (centre + half_width).min(1.0) }
}

/// Percentile bootstrap of the mean of `outcomes` (each 0, ½ or 1) from 2,000 resamples. Whole prompts are drawn with
/// replacement, because pairs of one prompt are not independent. `prompts` names the prompt of each outcome. The same `seed`
/// gives the same interval. With a single prompt the interval has no width.
///
/// Prompts with equally many pairs and wins are interchangeable, so a resample draws *how many* of each such group come
/// up (multinomial, as successive binomials). This takes a time that does not grow with the number of pairs.
///
/// # Panics
/// If the lengths differ or there is no outcome.
pub fn bootstrap_by_prompt(prompts: &[&str], outcomes: &[f64], seed: u64) -> Interval {
    assert_eq!(prompts.len(), outcomes.len(), "a prompt for every outcome");
    assert!(!outcomes.is_empty(), "nothing to resample");
    let mut clusters: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (prompt, outcome) in prompts.iter().zip(outcomes) {
        let (half_wins, pairs) = clusters.entry(prompt).or_default();
        *half_wins += (outcome * 2.0) as u64;
        *pairs += 1;
    }
    let mut groups: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for &cluster in clusters.values() {
        *groups.entry(cluster).or_default() += 1;
    }

    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut accuracies: Vec<f64> =
        (0..RESAMPLES).map(|_| resampled_accuracy(&groups, clusters.len() as u64, &mut generator)).collect();
    accuracies.sort_unstable_by(f64::total_cmp);
    Interval { low: percentile(&accuracies, 0.025), high: percentile(&accuracies, 0.975) }
}

/// Percentile bootstrap of the mean of any `values`, whole prompts drawn with replacement: 2,000 resamples. `prompts` names
/// the prompt of each value. The same `seed` gives the same interval. With a single prompt the interval has no width.
///
/// # Panics
/// If the lengths differ or there is no value.
pub fn bootstrap_mean_by_prompt(prompts: &[&str], values: &[f64], seed: u64) -> Interval {
    assert_eq!(prompts.len(), values.len(), "a prompt for every value");
    assert!(!values.is_empty(), "nothing to resample");
    let mut clusters: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (prompt, value) in prompts.iter().zip(values) {
        let (sum, count) = clusters.entry(prompt).or_default();
        *sum += value;
        *count += 1.0;
    }
    let clusters: Vec<(f64, f64)> = clusters.into_values().collect();
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut resampled = || {
        let drawn = (0..clusters.len()).map(|_| clusters[generator.random_range(0..clusters.len())]);
        let (sum, count) = drawn.fold((0.0, 0.0), |(sums, counts), (sum, count)| (sums + sum, counts + count));
        sum / count
    };
    let mut means: Vec<f64> = (0..RESAMPLES).map(|_| resampled()).collect();
    means.sort_unstable_by(f64::total_cmp);
    Interval { low: percentile(&means, 0.025), high: percentile(&means, 0.975) }
}

/// One resample: `groups` maps (half wins, pairs) of a prompt to the number of such prompts.
fn resampled_accuracy(groups: &BTreeMap<(u64, u64), u64>, prompts: u64, generator: &mut ChaCha8Rng) -> f64 {
    let (mut to_draw, mut left) = (prompts, prompts);
    let (mut half_wins, mut pairs) = (0, 0);
    for (&(group_half_wins, group_pairs), &size) in groups {
        let share = Binomial::new(to_draw, size as f64 / left as f64).expect("a share is in 0..=1");
        let drawn = share.sample(generator);
        half_wins += drawn * group_half_wins;
        pairs += drawn * group_pairs;
        to_draw -= drawn;
        left -= size;
    }
    half_wins as f64 / 2.0 / pairs as f64
}

/// Linear interpolation between order statistics, as numpy does.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let position = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    below + (above - below) * position.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(interval: Interval, low: f64, high: f64, tolerance: f64) {
        assert!((interval.low - low).abs() < tolerance && (interval.high - high).abs() < tolerance, "{interval:?}");
    }

    /// The mean of 400 values 0, 1, 2, 3 in turn is 1.5 with standard error √1.25 / 20. Four prompts hold one each of
    /// them, 100 times over, so that by prompt it is √1.25 / 2.
    #[test]
    fn a_mean_spreads_by_its_standard_error_over_prompts() {
        let values: Vec<f64> = (0..400).map(|index| f64::from(index % 4)).collect();
        let own: Vec<String> = (0..400).map(|index| index.to_string()).collect();
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        let half = 1.96 * 1.25_f64.sqrt() / 20.0;
        assert_close(bootstrap_mean_by_prompt(&own, &values, 0), 1.5 - half, 1.5 + half, 0.02);
        let shared: Vec<&str> = (0..400).map(|index| ["a", "b", "c", "d"][index % 4]).collect();
        let interval = bootstrap_mean_by_prompt(&shared, &values, 0);
        assert!(interval.low < 0.8 && interval.high > 2.2, "{interval:?}");
    }

    /// python tests/golden/comparison_statistics.py (scipy)
    #[test]
    fn wilson_is_scipys() {
        assert_close(wilson(7.0, 10), 0.39677814746114526, 0.892208732593699, 1e-12);
        assert_close(wilson(697.0, 1000), 0.6678076814786311, 0.72468457567806, 1e-12);
        assert_close(wilson(0.0, 5), 0.0, 0.43448246478317476, 1e-12);
        assert_close(wilson(5.0, 5), 0.5655175352168251, 1.0, 1e-12);
    }

    /// rate 1/2 of n: centre 1/2, half width z / (2 √(n + z²)); n = 1 with one tie.
    #[test]
    fn wilson_takes_half_successes() {
        let half_width = Z / 2.0 / (1.0 + Z * Z).sqrt();
        assert_close(wilson(0.5, 1), 0.5 - half_width, 0.5 + half_width, 1e-12);
    }

    #[test]
    fn bootstrap_is_reproducible_and_treats_a_prompt_as_one() {
        let outcomes = [1.0, 1.0, 0.0, 0.0, 0.5];
        let by_prompt = |prompts: [&str; 5], seed| bootstrap_by_prompt(&prompts, &outcomes, seed);
        assert_eq!(by_prompt(["a", "a", "b", "b", "c"], 7), by_prompt(["a", "a", "b", "b", "c"], 7));
        assert_eq!(by_prompt(["a"; 5], 7), Interval { low: 0.5, high: 0.5 });
        // Two prompts: both, or one twice, so a resample is all wins or all losses one time in four each.
        let two = bootstrap_by_prompt(&["a", "a", "b", "b"], &outcomes[..4], 7);
        assert_eq!(two, Interval { low: 0.0, high: 1.0 });
    }

    #[test]
    fn a_hundred_thousand_pairs_take_no_time() {
        let prompts: Vec<String> = (0..100_000).map(|pair| format!("prompt {}", pair % 3_456)).collect();
        let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let outcomes: Vec<f64> = (0_u64..100_000).map(|pair| f64::from(u8::from(pair * pair % 7 > 1))).collect();
        let started = std::time::Instant::now();
        bootstrap_by_prompt(&prompts, &outcomes, 0);
        assert!(started.elapsed().as_secs_f64() < 2.0, "{:?}", started.elapsed());
    }
}
