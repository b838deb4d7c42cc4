//! Accuracy by slice: one row for every value of a label.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::intervals::{Interval, wilson};

/// Accuracy of the pairs that share one value of a column.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SliceRow {
    /// What was sliced by.
    pub column: String,
    /// The value that these pairs share.
    pub value: String,
    /// Number of pairs.
    pub pairs: usize,
    /// Share of pairs won, a tie counting half, in `0..=1`.
    pub accuracy: f64,
    /// Lower end of Wilson's 95 % interval.
    pub interval_low: f64,
    /// Upper end of Wilson's 95 % interval.
    pub interval_high: f64,
}

/// A row for every distinct label, in the order of the labels. `labels[i]` belongs to `outcomes[i]` (0, ½ or 1).
///
/// # Panics
/// If the lengths differ.
pub fn slice_by<L: Ord + fmt::Display>(column: &str, labels: &[L], outcomes: &[f64]) -> Vec<SliceRow> {
    assert_eq!(labels.len(), outcomes.len(), "a label for every outcome");
    let mut slices: BTreeMap<&L, (f64, usize)> = BTreeMap::new();
    for (label, outcome) in labels.iter().zip(outcomes) {
        let (wins, pairs) = slices.entry(label).or_default();
        *wins += outcome;
        *pairs += 1;
    }
    let row = |(label, (wins, pairs)): (&L, (f64, usize))| {
        let Interval { low, high } = wilson(wins, pairs);
        SliceRow {
            column: column.into(),
            value: label.to_string(),
            pairs,
            accuracy: wins / pairs as f64,
            interval_low: low,
            interval_high: high,
        }
    };
    slices.into_iter().map(row).collect()
}

/// The ready slicing: how many tokens the prompt has, start and end token not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PromptLength {
    /// An empty prompt.
    Empty,
    /// 1 to 5 tokens.
    UpTo5,
    /// 6 to 10 tokens.
    UpTo10,
    /// 11 to 20 tokens.
    UpTo20,
    /// 21 to 40 tokens.
    UpTo40,
    /// 41 tokens and more.
    Longer,
}

impl PromptLength {
    /// Name of this slicing in a report.
    pub const COLUMN: &str = "prompt_tokens";

    /// The bin of a prompt with so many tokens between start and end.
    pub fn of(tokens: usize) -> Self {
        match tokens {
            0 => Self::Empty,
            1..=5 => Self::UpTo5,
            6..=10 => Self::UpTo10,
            11..=20 => Self::UpTo20,
            21..=40 => Self::UpTo40,
            41.. => Self::Longer,
        }
    }
}

impl fmt::Display for PromptLength {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Empty => "0",
            Self::UpTo5 => "1-5",
            Self::UpTo10 => "6-10",
            Self::UpTo20 => "11-20",
            Self::UpTo40 => "21-40",
            Self::Longer => "41+",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_per_value() {
        let rows = slice_by("style", &["photo", "art", "photo", "photo"], &[1.0, 0.5, 0.0, 0.5]);
        let summary: Vec<_> = rows.iter().map(|row| (row.value.as_str(), row.pairs, row.accuracy)).collect();
        assert_eq!(summary, [("art", 1, 0.5), ("photo", 3, 0.5)]);
        let Interval { low, high } = wilson(1.5, 3);
        assert_eq!((rows[1].column.as_str(), rows[1].interval_low, rows[1].interval_high), ("style", low, high));
    }

    #[test]
    fn prompt_lengths_come_in_order() {
        let lengths = [75, 41, 40, 21, 20, 11, 10, 6, 5, 1, 0].map(PromptLength::of);
        let rows = slice_by(PromptLength::COLUMN, &lengths, &[1.0; 11]);
        let summary: Vec<_> = rows.iter().map(|row| (row.value.as_str(), row.pairs)).collect();
        assert_eq!(summary, [("0", 1), ("1-5", 2), ("6-10", 2), ("11-20", 2), ("21-40", 2), ("41+", 2)]);
    }
}
