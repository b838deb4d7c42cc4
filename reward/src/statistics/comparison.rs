//! One set of images against another by one metric, pair by pair.

use serde::Serialize;

use super::{
    deviation,
    intervals::{bootstrap_by_prompt, bootstrap_mean_by_prompt},
    mean,
    sign_test::sign_test,
};

/// Two images of the same prompt and seed, scored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair<'a> {
    /// What both were made for.
    pub prompt: &'a str,
    /// Score of the image of the set that is judged.
    pub score: f64,
    /// Score of the baseline's.
    pub baseline: f64,
}

/// How a set does against the baseline. Intervals are 95 % bootstraps that draw whole prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The set that is compared, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// The metric's name.
    pub metric: String,
    /// Pairs with both scores.
    pub n_pairs: usize,
    /// Share of pairs won, a tie counting half, in `0..=1`.
    pub win_rate: f64,
    /// Pairs with equal scores.
    pub ties: usize,
    /// Lower end of the interval of `win_rate`.
    pub interval_low: f64,
    /// Upper end of the interval of `win_rate`.
    pub interval_high: f64,
    /// Mean of score less the baseline's score.
    pub mean_difference: f64,
    /// Lower end of the interval of `mean_difference`.
    pub mean_difference_low: f64,
    /// Upper end of the interval of `mean_difference`.
    pub mean_difference_high: f64,
    /// Two-sided sign test over the pairs that are no ties.
    pub p_value: f64,
    /// Mean difference in standard deviations of the difference (Cohen's d of pairs); nothing where those are 0.
    #[serde(skip)]
    pub effect_size: Option<f64>,
}

/// Compares; nothing without a pair. The same `seed` gives the same intervals.
pub fn compare(metric: &str, pairs: &[Pair], seed: u64) -> Option<Comparison> {
    if pairs.is_empty() {
        return None;
    }
    let prompts: Vec<&str> = pairs.iter().map(|pair| pair.prompt).collect();
    let differences: Vec<f64> = pairs.iter().map(|pair| pair.score - pair.baseline).collect();
    let outcome = |difference: &f64| if *difference == 0.0 { 0.5 } else { f64::from(u8::from(*difference > 0.0)) };
    let outcomes: Vec<f64> = differences.iter().map(outcome).collect();
    let count = |wanted: f64| outcomes.iter().filter(|outcome| **outcome == wanted).count();
    let (wins, losses) = (count(1.0), count(0.0));
    let won = bootstrap_by_prompt(&prompts, &outcomes, seed);
    let gained = bootstrap_mean_by_prompt(&prompts, &differences, seed);
    let (mean_difference, spread) = (mean(&differences), deviation(&differences));
    Some(Comparison {
        set: None,
        metric: metric.to_owned(),
        n_pairs: pairs.len(),
        win_rate: mean(&outcomes),
        ties: pairs.len() - wins - losses,
        interval_low: won.low,
        interval_high: won.high,
        mean_difference,
        mean_difference_low: gained.low,
        mean_difference_high: gained.high,
        p_value: sign_test(wins as u64, losses as u64),
        effect_size: (spread > 0.0).then(|| mean_difference / spread),
    })
}

#[cfg(test)]
mod tests {
    use rand::RngExt;
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
    use rand_distr::{Distribution, StandardNormal};
    use rayon::prelude::*;

    use super::*;

    /// Two wins, a tie, a loss: (2 + ½) / 4. Differences 1, 3, 0, -2: mean ½, deviation √(13/3). Of 3 decided, 2 are
    /// wins: p = 1.
    #[test]
    fn four_pairs_by_hand() {
        let pair = |prompt, score, baseline| Pair { prompt, score, baseline };
        let pairs = [pair("a", 2.0, 1.0), pair("a", 3.0, 0.0), pair("b", 1.0, 1.0), pair("b", 0.0, 2.0)];
        let found = compare("m", &pairs, 0).unwrap();
        assert_eq!((found.n_pairs, found.ties, found.win_rate, found.p_value), (4, 1, 0.625, 1.0));
        assert_eq!(found.mean_difference, 0.5);
        assert!((found.effect_size.unwrap() - 0.5 / (13.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        // Both prompts are a, or both b, in one resample of four each.
        assert_eq!((found.interval_low, found.interval_high), (0.25, 1.0));
        assert_eq!((found.mean_difference_low, found.mean_difference_high), (-1.0, 2.0));
        assert_eq!(compare("m", &[], 0), None);
    }

    const RUNS: u64 = 2_000;
    /// Share of pairs whose two images are the same.
    const TIES: f64 = 0.1;

    /// Compares 100 prompts × 4 seeds whose scores have an effect of the prompt that both sets share and one of their own. The
    /// set's are `shift` standard deviations of a difference higher.
    fn simulated(run: u64, shift: f64) -> Comparison {
        let mut generator = ChaCha8Rng::seed_from_u64(run);
        let normal = |generator: &mut ChaCha8Rng| -> f64 { StandardNormal.sample(generator) };
        let names: Vec<String> = (0..100).map(|prompt| prompt.to_string()).collect();
        // Own effect ½ and noise 1 on either side: variance 2 · (¼ + 1).
        let shift = shift * 2.5_f64.sqrt();
        let mut pairs = Vec::new();
        for prompt in &names {
            let [shared, own, others] = [0, 1, 2].map(|_| normal(&mut generator));
            for _ in 0..4 {
                let baseline = shared + 0.5 * others + normal(&mut generator);
                let score = shared + 0.5 * own + normal(&mut generator) + shift;
                let same = generator.random::<f64>() < TIES;
                pairs.push(Pair { prompt, score: if same { baseline } else { score }, baseline });
            }
        }
        compare("m", &pairs, run).unwrap()
    }

    /// In how many of the runs the intervals hold the true win rate and the true mean difference.
    fn coverage(shift: f64, win_rate: f64) -> [f64; 2] {
        let difference = (1.0 - TIES) * shift * 2.5_f64.sqrt();
        let held = (0..RUNS).into_par_iter().map(|run| {
            let found = simulated(run, shift);
            assert!(found.ties > 10);
            let holds = |low, high, truth| u64::from(low <= truth && truth <= high);
            [
                holds(found.interval_low, found.interval_high, win_rate),
                holds(found.mean_difference_low, found.mean_difference_high, difference),
            ]
        });
        held.reduce(|| [0, 0], |a, b| [a[0] + b[0], a[1] + b[1]]).map(|held| held as f64 / RUNS as f64)
    }

    #[track_caller]
    fn assert_honest(covered: [f64; 2]) {
        assert!(covered.iter().all(|share| (0.93..=0.97).contains(share)), "{covered:?}");
    }

    #[test]
    fn intervals_hold_a_half_when_nothing_differs() {
        assert_honest(coverage(0.0, 0.5));
    }

    /// Φ(0.28222) = 0.61111 of the nine pairs in ten that are decided, and half of the tenth: 0.6.
    #[test]
    fn intervals_hold_a_win_rate_of_three_fifths() {
        assert_honest(coverage(0.282_216_147_062_508_2, 0.6));
    }
}
