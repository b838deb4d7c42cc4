//! How often the remixed picture of a pair scores above the one nobody remixed.
//!
//! A tie counts half: a scorer that collapsed to a constant gets 0.5. The original counts it as a win (`>=` in its
//! `validate.py`), which is given beside it so that numbers compare.

use serde::Serialize;

use super::intervals::{Interval, bootstrap_by_prompt, wilson};
use super::slices::SliceRow;
use crate::{Error, Result};

/// The scores of one triplet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoredPair<'a> {
    /// What both pictures were made for.
    pub prompt: &'a str,
    /// Score of the remixed picture.
    pub positive: f32,
    /// Score of the picture nobody remixed.
    pub negative: f32,
}

impl ScoredPair<'_> {
    /// 1 for a win, ½ for a tie, 0 for a loss.
    pub fn outcome(&self) -> f64 {
        f64::from(u8::from(self.positive > self.negative)) + 0.5 * f64::from(u8::from(self.positive == self.negative))
    }
}

/// What `reward validate --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Validation {
    /// Number of scored pairs.
    pub pairs: usize,
    /// Share of pairs won, a tie counting half, in `0..=1`.
    pub accuracy: f64,
    /// The same with ties as wins, as the original counts.
    pub accuracy_ties_as_wins: f64,
    /// Pairs with equal scores.
    pub ties: usize,
    /// Lower end of Wilson's 95 % interval on `accuracy`.
    pub interval_low: f64,
    /// Upper end of Wilson's 95 % interval on `accuracy`.
    pub interval_high: f64,
    /// Lower end of the 95 % bootstrap interval over prompts.
    pub bootstrap_low: f64,
    /// Upper end of the 95 % bootstrap interval over prompts.
    pub bootstrap_high: f64,
    /// Mean of positive score less negative score.
    pub mean_gap: f64,
    /// Chance that a positive of the whole set scores above a negative of the whole set, ties half.
    pub auc: f64,
    /// Pairs left out because a picture could not be read.
    pub skipped: usize,
    /// Accuracy by slice.
    pub slices: Vec<SliceRow>,
}

/// All figures of a scored set; `skipped` and `slices` are passed through, `seed` draws the bootstrap.
///
/// # Errors
/// No pair, or a score that is not finite: the first such pair is named by its number from 0.
pub fn validation(pairs: &[ScoredPair], skipped: usize, slices: Vec<SliceRow>, seed: u64) -> Result<Validation> {
    if pairs.is_empty() {
        return Err(Error::data(format!("no pair was scored ({skipped} skipped): there is no accuracy")));
    }
    if let Some(index) = pairs.iter().position(|pair| !(pair.positive.is_finite() && pair.negative.is_finite())) {
        let ScoredPair { prompt, positive, negative } = pairs[index];
        return Err(Error::data(format!(
            "pair {index} (prompt \"{prompt}\") scores {positive} and {negative}: wanted finite scores"
        ))
        .hint("the model's weights may hold NaN, as after a training run that diverged"));
    }

    let count = pairs.len() as f64;
    let outcomes: Vec<f64> = pairs.iter().map(ScoredPair::outcome).collect();
    let wins: f64 = outcomes.iter().sum();
    let ties = pairs.iter().filter(|pair| pair.positive == pair.negative).count();
    let gaps = pairs.iter().map(|pair| f64::from(pair.positive) - f64::from(pair.negative));
    let prompts: Vec<&str> = pairs.iter().map(|pair| pair.prompt).collect();
    let interval = wilson(wins, pairs.len());
    let bootstrap: Interval = bootstrap_by_prompt(&prompts, &outcomes, seed);
    Ok(Validation {
        pairs: pairs.len(),
        accuracy: wins / count,
        accuracy_ties_as_wins: (wins + 0.5 * ties as f64) / count,
        ties,
        interval_low: interval.low,
        interval_high: interval.high,
        bootstrap_low: bootstrap.low,
        bootstrap_high: bootstrap.high,
        mean_gap: gaps.sum::<f64>() / count,
        auc: auc(pairs),
        skipped,
        slices,
    })
}

/// Mann and Whitney's statistic over all positives and all negatives, in `0..=1`.
fn auc(pairs: &[ScoredPair]) -> f64 {
    let mut negatives: Vec<f32> = pairs.iter().map(|pair| pair.negative).collect();
    negatives.sort_unstable_by(f32::total_cmp);
    let beaten = |positive: f32| {
        let below = negatives.partition_point(|&negative| negative < positive);
        let not_above = negatives.partition_point(|&negative| negative <= positive);
        (below + not_above) as f64 / 2.0
    };
    pairs.iter().map(|pair| beaten(pair.positive)).sum::<f64>() / (pairs.len() as f64).powi(2)
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    fn figures(pairs: &[ScoredPair]) -> Validation {
        validation(pairs, 0, Vec::new(), 0).unwrap()
    }

    fn pair(prompt: &str, positive: f32, negative: f32) -> ScoredPair<'_> {
        ScoredPair { prompt, positive, negative }
    }

    /// Win, tie, loss, win. AUC: the positives 3, 1, 0, 2 beat 4, 1 + 2/2, 1/2, 3 + 1/2 of the negatives {1, 1, 2, 0}.
    /// So it is (4 + 2 + 0.5 + 3.5) / 16.
    #[test]
    fn four_pairs_by_hand() {
        let figures = figures(&[pair("a", 3.0, 1.0), pair("a", 1.0, 1.0), pair("b", 0.0, 2.0), pair("c", 2.0, 0.0)]);
        assert_eq!((figures.pairs, figures.ties, figures.accuracy), (4, 1, 0.625));
        assert_eq!((figures.accuracy_ties_as_wins, figures.mean_gap, figures.auc), (0.75, 0.5, 0.625));
        let Interval { low, high } = wilson(2.5, 4);
        assert_eq!((figures.interval_low, figures.interval_high), (low, high));
    }

    /// python tests/golden/comparison_statistics.py (numpy, sklearn)
    #[test]
    fn figures_are_sklearns() {
        let mut state = 1_u64;
        let mut draw = || {
            state = state * 48_271 % 2_147_483_647;
            state
        };
        let prompts: Vec<String> = (0..500).map(|index| format!("{}", index * index % 97)).collect();
        let pairs: Vec<ScoredPair> = prompts
            .iter()
            .map(|prompt| pair(prompt, (draw() % 20) as f32 / 16.0, (draw() % 16) as f32 / 16.0))
            .collect();
        let figures = figures(&pairs);
        assert_eq!((figures.accuracy, figures.accuracy_ties_as_wins, figures.ties), (0.58, 0.606, 26));
        assert_eq!(figures.mean_gap, 0.118125);
        assert!((figures.auc - 0.593012).abs() < 1e-9, "{}", figures.auc);
        let (low, high) = (figures.bootstrap_low, figures.bootstrap_high);
        assert!((low - 0.5316).abs() < 0.005 && (high - 0.6273).abs() < 0.005, "{low} {high}");
    }

    #[test]
    fn a_constant_scorer_gets_exactly_a_half() {
        let figures = figures(&[pair("a", 0.1, 0.1); 333]);
        assert_eq!((figures.accuracy, figures.auc, figures.accuracy_ties_as_wins), (0.5, 0.5, 1.0));
        assert_eq!((figures.bootstrap_low, figures.bootstrap_high), (0.5, 0.5));
    }

    /// A good scorer on pairs whose order is flipped at random knows nothing: the interval misses ½ about once in 20.
    #[test]
    fn flipped_pairs_have_a_half_in_the_interval() {
        let holds_a_half = |seed: &u64| {
            let mut generator = ChaCha8Rng::seed_from_u64(*seed);
            let mut flipped = || {
                let (better, worse) = (1.0 + generator.next_u32() as f32, 0.5);
                if generator.next_u32() % 2 == 0 { pair("a", better, worse) } else { pair("a", worse, better) }
            };
            let pairs: Vec<_> = (0..400).map(|_| flipped()).collect();
            let figures = figures(&pairs);
            figures.interval_low <= 0.5 && 0.5 <= figures.interval_high
        };
        let seeds: Vec<u64> = (0..20).filter(holds_a_half).collect();
        assert!(seeds.len() >= 17, "{seeds:?}");
    }

    #[test]
    fn scores_that_are_not_finite_are_errors() {
        for bad in [f32::NAN, f32::INFINITY] {
            let error = validation(&[pair("x", 0.0, 1.0), pair("a cat", 0.5, bad)], 0, Vec::new(), 0).unwrap_err();
            assert!(error.to_string().starts_with("pair 1 (prompt \"a cat\") scores 0.5 and"), "{error}");
        }
        assert!(validation(&[], 3, Vec::new(), 0).unwrap_err().to_string().contains("3 skipped"));
    }

    /// The names of DESIGN section 5.
    #[test]
    fn json_has_the_agreed_names() {
        let json = serde_json::to_value(figures(&[pair("a", 1.0, 0.0)])).unwrap();
        let names: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
        assert_eq!(
            names.join(" "),
            "pairs accuracy accuracy_ties_as_wins ties interval_low interval_high bootstrap_low bootstrap_high mean_gap \
             auc skipped slices"
        );
    }
}
