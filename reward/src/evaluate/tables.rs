//! From scores to figures: by set, against the baseline, and by the values of a column.

use std::collections::BTreeMap;

use super::{
    Column, scored_pairs,
    summary::{MetricSummary, SetSummary, Slice, Summary},
};
use crate::{
    data::image_set::{ImageSet, Pairs},
    statistics::comparison::{Comparison, compare},
};

/// What figures are made of.
pub(super) struct Tables<'a> {
    /// The sets that are judged, then the baseline.
    pub(super) sets: &'a [&'a ImageSet],
    /// How many of them are judged.
    pub(super) judged: usize,
    pub(super) columns: &'a [Column],
    /// For each judged set; empty without a baseline.
    pub(super) pairs: &'a [Pairs],
    pub(super) seed: u64,
}

impl Tables<'_> {
    /// All figures; by slices too where the sets are labelled by column `label`.
    pub(super) fn summary(&self, label: Option<&str>) -> Summary {
        let of_set = |(place, set): (usize, &&ImageSet)| SetSummary {
            name: set.name.clone(),
            n_images: set.rows.len(),
            n_prompts: set.prompts.len(),
            metrics: self.metrics(place, &(0..set.rows.len()).collect::<Vec<_>>()),
        };
        let compared = |(place, pairs): (usize, &Pairs)| self.comparisons(place, &pairs.matched);
        Summary {
            sets: self.sets.iter().enumerate().map(of_set).collect(),
            comparisons: self.pairs.iter().enumerate().flat_map(compared).collect(),
            slices: label.map(|label| (0..self.judged).flat_map(|place| self.slices(place, label)).collect()),
        }
    }

    /// A slice for every value, in the order of the values.
    fn slices(&self, place: usize, column: &str) -> Vec<Slice> {
        let labels = &self.sets[place].labels;
        let mut slices: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (row, label) in labels.iter().enumerate() {
            slices.entry(label).or_default().push(row);
        }
        let slice = |(value, rows): (&str, Vec<usize>)| {
            let pairs = self.pairs.get(place).map_or(&[][..], |pairs| &pairs.matched);
            let pairs: Vec<_> = pairs.iter().filter(|(row, _)| labels[*row] == value).copied().collect();
            Slice {
                set: self.name(place),
                column: column.to_owned(),
                value: value.to_owned(),
                n_images: rows.len(),
                metrics: self.metrics(place, &rows),
                comparisons: self.comparisons(place, &pairs),
            }
        };
        slices.into_iter().map(slice).collect()
    }

    /// The name of a set, where there are several to tell apart.
    fn name(&self, place: usize) -> Option<String> {
        (self.judged > 1).then(|| self.sets[place].name.clone())
    }

    /// By each metric over these rows of a set.
    fn metrics(&self, place: usize, rows: &[usize]) -> Vec<(String, MetricSummary)> {
        let set = self.sets[place];
        let of_column = |column: &Column| {
            let scored = rows.iter().filter_map(|row| Some((set.prompt(&set.rows[*row]), column.scores[place][*row]?)));
            let scored: Vec<(&str, f64)> = scored.collect();
            let summary = MetricSummary::of(&scored, &column.conventions[place], &column.checkpoint_sha256, self.seed);
            (column.label.clone(), summary)
        };
        self.columns.iter().map(of_column).collect()
    }

    /// By each metric over these pairs of rows of a set and of the baseline.
    fn comparisons(&self, place: usize, matched: &[(usize, usize)]) -> Vec<Comparison> {
        let of_column = |column: &Column| {
            let pairs = scored_pairs(self.sets, place, column, matched);
            compare(&column.label, &pairs, self.seed).map(|found| Comparison { set: self.name(place), ..found })
        };
        self.columns.iter().filter_map(of_column).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{data::image_set::SetRow, evaluate::metric::MetricName};

    /// Images of the prompts a, a, b, c.
    fn set(name: &str, labels: &[&str]) -> ImageSet {
        let row = |(image, prompt): (u32, u32)| SetRow { prompt, image, path: String::new(), seed: u64::from(image) };
        ImageSet {
            name: name.to_owned(),
            folder: Default::default(),
            prompts: ["a", "b", "c"].map(str::to_owned).to_vec(),
            images: Vec::new(),
            rows: (0..).zip([0, 0, 1, 2]).map(row).collect(),
            settings: BTreeMap::new(),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            notes: Vec::new(),
        }
    }

    /// Photos are rows 0 and 2, art rows 1 and 3, the last without a score.
    #[test]
    fn slices_by_hand() {
        let (tuned, base) = (set("tuned", &["photo", "art", "photo", "art"]), set("base", &[]));
        let other = set("other", &["art"; 4]);
        let column = Column {
            name: MetricName::Diversity,
            label: "m".to_owned(),
            conventions: vec!["c".to_owned(); 3],
            checkpoint_sha256: String::new(),
            scores: vec![
                vec![Some(2.0), Some(1.0), Some(4.0), None],
                vec![Some(0.0); 4],
                vec![Some(1.0), Some(2.0), Some(2.0), Some(7.0)],
            ],
        };
        let matched: Vec<_> = (0..4).map(|row| (row, row)).collect();
        let pairs = vec![Pairs { matched, mismatch: None }; 2];
        let tables = Tables { sets: &[&tuned, &other, &base], judged: 2, columns: &[column], pairs: &pairs, seed: 0 };
        assert!(tables.summary(None).slices.is_none());
        let summary = tables.summary(Some("style"));
        let sets: Vec<_> = summary.comparisons.iter().map(|found| (found.set.as_deref(), found.n_pairs)).collect();
        assert_eq!(sets, [(Some("tuned"), 3), (Some("other"), 4)]);
        let slices = summary.slices.unwrap();
        let seen: Vec<_> = slices
            .iter()
            .map(|slice| {
                let (metric, found) = (&slice.metrics[0].1, &slice.comparisons[0]);
                let figures = (found.n_pairs, found.win_rate, found.mean_difference);
                (slice.set.as_deref().unwrap(), slice.value.as_str(), slice.n_images, metric.mean.unwrap(), figures)
            })
            .collect();
        let wanted = [
            // 1 - 2 in one pair; the other has no score.
            ("tuned", "art", 2, 1.0, (1, 0.0, -1.0)),
            // 2 - 1 and 4 - 2 in two pairs.
            ("tuned", "photo", 2, 3.0, (2, 1.0, 1.5)),
            // 0 - (1 + 2 + 2 + 7) / 4.
            ("other", "art", 4, 0.0, (4, 0.0, -3.0)),
        ];
        assert_eq!(seen, wanted);
        // Prompts a (2) and b (4), drawn twice: 2, 3 or 4.
        let photo = &slices[1].metrics[0].1;
        assert_eq!((photo.interval_low, photo.interval_high), (Some(2.0), Some(4.0)));
    }
}
