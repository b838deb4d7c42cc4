//! The figures of a report: each set, each set against the baseline, slices, and how scores go from set to set.

use std::fmt::Write;

use reward::{
    evaluate::{
        Evaluation,
        summary::{MetricSummary, Slice, Summary},
    },
    statistics::comparison::Comparison,
};

use super::{
    chart::{Series, lines},
    number,
    picture::escaped,
    table,
};

/// A cell with its interval.
fn mean_cell(MetricSummary { mean, interval_low, interval_high, .. }: &MetricSummary) -> String {
    let [mean, low, high] = [mean, interval_low, interval_high].map(|value| number(*value));
    format!(r#"<td class="number">{mean} [{low}, {high}]</td>"#)
}

/// Win rate and mean difference with their intervals.
fn comparison_cells(found: &Comparison) -> String {
    let Comparison { win_rate, interval_low, interval_high, .. } = found;
    let Comparison { mean_difference, mean_difference_low, mean_difference_high, .. } = found;
    format!(
        r#"<td class="number"><strong>{win_rate:.4}</strong> [{interval_low:.4}, {interval_high:.4}]</td><td class="number">{mean_difference:+.5} [{mean_difference_low:+.5}, {mean_difference_high:+.5}]</td>"#
    )
}

/// Writing to a string cannot fail.
pub(super) fn headline(evaluation: &Evaluation) -> String {
    let Summary { sets, comparisons, .. } = &evaluation.summary;
    let mut rows = String::new();
    for found in comparisons {
        let Comparison { set, metric, n_pairs, ties, p_value, effect_size, .. } = found;
        let set = set.as_ref().map_or(String::new(), |set| format!("<td>{}</td>", escaped(set)));
        let effect = effect_size.map_or("none".to_owned(), |effect| format!("{effect:+.3}"));
        let _ = write!(
            rows,
            r#"<tr>{set}<th scope="row">{}</th>{}<td class="number">{effect}</td><td class="number">{p_value:.3e}</td><td class="number">{n_pairs}</td><td class="number">{ties}</td></tr>"#,
            escaped(metric),
            comparison_cells(found),
        );
    }
    let mut parts = String::new();
    if let Some(baseline) = sets.get(evaluation.judged) {
        let several = evaluation.judged > 1;
        let numbers = ["win rate", "mean difference", "effect size", "sign test p", "pairs", "ties"];
        let names = [("set", false), ("metric", false)].into_iter().skip(usize::from(!several));
        let head: Vec<_> = names.chain(numbers.map(|name| (name, true))).collect();
        let caption = format!(
            "{} against {}: pairs of the same prompt and seed; 95 % intervals from resampled prompts; a tie counts half",
            if several { "Each set" } else { &sets[0].name },
            baseline.name
        );
        parts = table(&caption, &head, &rows);
    }
    let mut rows = String::new();
    for set in sets {
        for (name, metric) in &set.metrics {
            let _ = write!(
                rows,
                r#"<tr><th scope="row">{}</th><td>{}</td>{}<td class="number">{}</td><td class="number">{}</td><td class="number">{}</td><td>{}</td></tr>"#,
                escaped(&set.name),
                escaped(name),
                mean_cell(metric),
                number(metric.std),
                set.n_images,
                set.n_prompts,
                escaped(&metric.convention),
            );
        }
    }
    let head = [
        ("set", false),
        ("metric", false),
        ("mean", true),
        ("std", true),
        ("images", true),
        ("prompts", true),
        ("convention", false),
    ];
    parts + &table("Means over the images of each set; 95 % intervals from resampled prompts", &head, &rows)
}

/// A section with a row for every slice and metric; nothing where slices were not asked for.
pub(super) fn slices(evaluation: &Evaluation) -> String {
    let Some(slices) = &evaluation.summary.slices else { return String::new() };
    let (several, paired) = (evaluation.judged > 1, !evaluation.pairs.is_empty());
    let mut rows = String::new();
    for Slice { set, value, n_images, metrics, comparisons, .. } in slices {
        let set = set.as_ref().map_or(String::new(), |set| format!("<td>{}</td>", escaped(set)));
        for (name, metric) in metrics {
            let compared = match comparisons.iter().find(|found| found.metric == *name) {
                Some(found) => format!(r#"{}<td class="number">{}</td>"#, comparison_cells(found), found.n_pairs),
                None if paired => r#"<td class="number">unknown</td>"#.repeat(2) + r#"<td class="number">0</td>"#,
                None => String::new(),
            };
            let _ = write!(
                rows,
                r#"<tr>{set}<th scope="row">{}</th><td>{}</td><td class="number">{n_images}</td>{}{compared}</tr>"#,
                escaped(value),
                escaped(name),
                mean_cell(metric),
            );
        }
    }
    let column = slices.first().map_or("", |slice| &slice.column);
    let mut head = vec![(column, false), ("metric", false), ("images", true), ("mean", true)];
    if several {
        head.insert(0, ("set", false));
    }
    if paired {
        head.extend(["win rate", "mean difference", "pairs"].map(|name| (name, true)));
    }
    let table = table("The figures by slice; 95 % intervals from resampled prompts", &head, &rows);
    format!(r#"<section aria-labelledby="slices"><h2 id="slices">By {}</h2>{table}</section>"#, escaped(column))
}

/// A chart for every metric of how its mean goes over the judged sets, in their order; nothing for a single one.
pub(super) fn by_set(summary: &Summary, judged: usize) -> String {
    let (sets, baseline) = summary.sets.split_at(judged);
    let [first, .., last] = sets else { return String::new() };
    let chart = |(place, (name, _)): (usize, &(String, MetricSummary))| {
        let line = |of: fn(&MetricSummary) -> Option<f64>| {
            let points = (1..).map(f64::from).zip(sets);
            points.filter_map(|(x, set)| Some((x, of(&set.metrics.get(place)?.1)?))).collect::<Vec<_>>()
        };
        let mut series = vec![
            Series { name: "mean", class: "set", points: line(|metric| metric.mean) },
            Series { name: "lower end", class: "bound", points: line(|metric| metric.interval_low) },
            Series {
                name: "upper end of its 95 % interval",
                class: "bound",
                points: line(|metric| metric.interval_high),
            },
        ];
        for set in baseline {
            let mean = set.metrics.iter().find(|(other, _)| other == name).and_then(|(_, metric)| metric.mean);
            let points = mean.into_iter().flat_map(|mean| [(1.0, mean), (judged as f64, mean)]).collect();
            series.push(Series { name: &set.name, class: "base", points });
        }
        lines(&format!("{name} by set, {} to {}", first.name, last.name), "set", &series)
    };
    first.metrics.iter().enumerate().map(chart).collect()
}

#[cfg(test)]
mod tests {
    use reward::evaluate::summary::SetSummary;

    use super::*;

    fn set(name: &str, mean: f64) -> SetSummary {
        let metric = MetricSummary {
            mean: Some(mean),
            std: None,
            interval_low: Some(mean - 1.0),
            interval_high: Some(mean + 1.0),
            convention: String::new(),
            checkpoint_sha256: None,
        };
        SetSummary { name: name.to_owned(), n_images: 1, n_prompts: 1, metrics: vec![("m".to_owned(), metric)] }
    }

    /// From 0 (the lower end of the first) to 4 (the upper end of the last) over 176 pixels: 44 a unit, up from 188.
    #[test]
    fn means_go_from_set_to_set() {
        let sets = vec![set("step-2", 1.0), set("step-<10>", 3.0), set("base", 2.0)];
        let summary = Summary { sets, comparisons: Vec::new(), slices: None };
        let html = by_set(&summary, 2);
        for (class, points) in [
            ("set", "68.0,129.0 328.0,51.0"),
            ("bound", "68.0,168.0 328.0,90.0"),
            ("bound", "68.0,90.0 328.0,12.0"),
            ("base", "68.0,90.0 328.0,90.0"),
        ] {
            assert!(html.contains(&format!(r#"<polyline class="{class}" points="{points}"/>"#)), "{html}");
        }
        assert!(html.contains(
            "m by set, step-2 to step-&lt;10&gt;: mean (dashed: lower end, upper end of its 95 % interval, base)"
        ));
        assert_eq!(by_set(&summary, 1), "");
    }
}
