//! What an evaluation says of a set: what `--json` prints, and the tables beside it.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::statistics::{
    agreement::spearman,
    comparison::{Comparison, Pair},
    deviation,
    intervals::bootstrap_mean_by_prompt,
    mean,
};

/// What `evaluate --json` prints.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// The sets, then the baseline.
    pub sets: Vec<SetSummary>,
    /// Each set against the baseline by each metric; empty without a baseline.
    pub comparisons: Vec<Comparison>,
    /// The same by values of a column, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slices: Option<Vec<Slice>>,
}

/// One set of images.
#[derive(Debug, Serialize)]
pub struct SetSummary {
    /// The set's name.
    pub name: String,
    /// Images, one per row.
    pub n_images: usize,
    /// Distinct prompts.
    pub n_prompts: usize,
    /// By the label of the metric, in the order asked for.
    #[serde(serialize_with = "as_map")]
    pub metrics: Vec<(String, MetricSummary)>,
}

/// The images of a set that share one value of a column.
#[derive(Debug, Serialize)]
pub struct Slice {
    /// The set, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// What was sliced by.
    pub column: String,
    /// The value that these images share.
    pub value: String,
    /// How many there are.
    pub n_images: usize,
    /// By the label of the metric, in the order asked for.
    #[serde(serialize_with = "as_map")]
    pub metrics: Vec<(String, MetricSummary)>,
    /// These images against the baseline's of the same prompt and seed; empty without a baseline.
    pub comparisons: Vec<Comparison>,
}

/// One metric over a set.
#[derive(Debug, Clone, Serialize)]
pub struct MetricSummary {
    /// Over the images; nothing if none has a score.
    pub mean: Option<f64>,
    /// The sample's standard deviation over the images.
    pub std: Option<f64>,
    /// Lower end of the mean's 95 % bootstrap interval over prompts.
    pub interval_low: Option<f64>,
    /// Upper end of it.
    pub interval_high: Option<f64>,
    /// What the number is.
    pub convention: String,
    /// SHA-256 of the weights, if the metric has any.
    pub checkpoint_sha256: Option<String>,
}

impl MetricSummary {
    /// Summarises scores with their prompts. The same `seed` gives the same interval.
    pub(super) fn of(scored: &[(&str, f64)], convention: &str, checkpoint_sha256: &str, seed: u64) -> Self {
        let (prompts, scores): (Vec<&str>, Vec<f64>) = scored.iter().copied().unzip();
        let any = !scores.is_empty();
        let interval = any.then(|| bootstrap_mean_by_prompt(&prompts, &scores, seed));
        Self {
            mean: any.then(|| mean(&scores)),
            std: any.then(|| deviation(&scores)),
            interval_low: interval.map(|interval| interval.low),
            interval_high: interval.map(|interval| interval.high),
            convention: convention.to_owned(),
            checkpoint_sha256: Some(checkpoint_sha256.to_owned()).filter(|sha256| !sha256.is_empty()),
        }
    }
}

fn as_map<S: Serializer>(metrics: &[(String, MetricSummary)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(metrics.iter().map(|(name, summary)| (name, summary)))
}

/// One prompt's images by one metric.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRow {
    /// The prompt.
    pub prompt: String,
    /// Pairs in the slice.
    pub pairs: usize,
    /// Mean score of the set's images.
    pub mean: f64,
    /// Mean score of the baseline's.
    pub baseline: f64,
    /// Share of pairs won, a tie counting half.
    pub win_rate: f64,
}

/// A row for each prompt, the largest gain first.
pub fn per_prompt(pairs: &[Pair]) -> Vec<PromptRow> {
    let mut by_prompt: BTreeMap<&str, Vec<Pair>> = BTreeMap::new();
    for pair in pairs {
        by_prompt.entry(pair.prompt).or_default().push(*pair);
    }
    let row = |(prompt, pairs): (&str, Vec<Pair>)| {
        let column = |of: fn(&Pair) -> f64| mean(&pairs.iter().map(of).collect::<Vec<_>>());
        let outcome = |pair: &Pair| match pair.score.total_cmp(&pair.baseline) {
            _ if pair.score == pair.baseline => 0.5,
            order => f64::from(u8::from(order.is_gt())),
        };
        PromptRow {
            prompt: prompt.to_owned(),
            pairs: pairs.len(),
            mean: column(|pair| pair.score),
            baseline: column(|pair| pair.baseline),
            win_rate: column(outcome),
        }
    };
    let mut rows: Vec<PromptRow> = by_prompt.into_iter().map(row).collect();
    rows.sort_by(|a, b| (b.mean - b.baseline).total_cmp(&(a.mean - a.baseline)));
    rows
}

/// Spearman's ρ of two metrics over the images that both have scored.
pub fn agreement(left: &[Option<f64>], right: &[Option<f64>]) -> Option<f64> {
    let both = left.iter().zip(right).filter_map(|(left, right)| Some(((*left)?, (*right)?)));
    let (left, right): (Vec<f64>, Vec<f64>) = both.unzip();
    spearman(&left, &right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_by_gain() {
        let pair = |prompt, score, baseline| Pair { prompt, score, baseline };
        let rows = per_prompt(&[pair("a", 1.0, 2.0), pair("b", 2.0, 1.0), pair("a", 2.0, 2.0)]);
        let row = |prompt: &str, pairs, mean, baseline, win_rate| PromptRow {
            prompt: prompt.to_owned(),
            pairs,
            mean,
            baseline,
            win_rate,
        };
        assert_eq!(rows, [row("b", 1, 2.0, 1.0, 1.0), row("a", 2, 1.5, 2.0, 0.25)]);
    }

    #[test]
    fn json_keeps_the_order_of_metrics() {
        let metric = |scored: &[(&str, f64)], sha| MetricSummary::of(scored, "c", sha, 0);
        let metrics = vec![("z".to_owned(), metric(&[("p", 1.0), ("p", 3.0)], "f")), ("a".to_owned(), metric(&[], ""))];
        let set = SetSummary { name: "s".to_owned(), n_images: 2, n_prompts: 1, metrics };
        assert_eq!(
            serde_json::to_string(&Summary { sets: vec![set], comparisons: vec![], slices: None }).unwrap(),
            r#"{"sets":[{"name":"s","n_images":2,"n_prompts":1,"metrics":{"z":{"mean":2.0,"std":1.4142135623730951,"interval_low":2.0,"interval_high":2.0,"convention":"c","checkpoint_sha256":"f"},"a":{"mean":null,"std":null,"interval_low":null,"interval_high":null,"convention":"c","checkpoint_sha256":null}}}],"comparisons":[]}"#
        );
    }

    #[test]
    fn agreement_skips_what_one_side_lacks() {
        assert_eq!(
            agreement(&[Some(1.0), None, Some(2.0), Some(3.0)], &[Some(5.0), Some(0.0), Some(6.0), None]),
            Some(1.0)
        );
    }
}
