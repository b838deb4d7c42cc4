//! The pictures of a report: baseline and last set side by side, or a set alone, with scores.

use std::fmt::Write;

use anyhow::Result;
use reward::evaluate::{Column, Evaluation};

use super::picture::{embedded, escaped};

/// Cards of a report at most: half from either end.
const CARDS: usize = 200;
/// Best and worst cases that are named.
const CASES: usize = 5;

pub(super) struct Cards {
    /// One element a card.
    pub(super) html: String,
    /// The best and the worst, with links.
    pub(super) cases: String,
    /// Which images are shown.
    pub(super) note: String,
    pub(super) pictures: usize,
}

/// A row of the set and, if there is a baseline, its partner; with what they are sorted by.
struct Case {
    row: usize,
    partner: Option<usize>,
    value: Option<f64>,
}

/// A card for every pair, or image, from either end of the order by the first metric.
///
/// # Errors
/// An image cannot be read.
pub(super) fn of(evaluation: &Evaluation) -> Result<Cards> {
    let first = evaluation.columns.first();
    let by_first = |row, partner| first.and_then(|column| value(evaluation, column, row, partner));
    let mut cases: Vec<Case> = match evaluation.pairs.last() {
        Some(pairs) => (pairs.matched.iter())
            .map(|&(row, other)| Case { row, partner: Some(other), value: by_first(row, Some(other)) })
            .collect(),
        None => (0..evaluation.sets[evaluation.last()].rows.len())
            .map(|row| Case { row, partner: None, value: by_first(row, None) })
            .collect(),
    };
    cases.sort_by(|a, b| b.value.unwrap_or(f64::MIN).total_cmp(&a.value.unwrap_or(f64::MIN)));
    let all = cases.len();
    if all > CARDS {
        cases.drain(CARDS >> 1..all - (CARDS >> 1));
    }
    let what = if evaluation.pairs.is_empty() { "images" } else { "pairs" };
    let what = if evaluation.judged > 1 { format!("{what} of {}", evaluation.shown_name()) } else { what.to_owned() };
    let note = if all > CARDS {
        format!("{CARDS} of {all} {what}: the best and the worst by the first metric. scores.parquet has all.")
    } else {
        format!("All {all} {what}.")
    };
    let html = cases.iter().enumerate().map(|(index, case)| card(evaluation, index, case)).collect::<Result<_>>()?;
    let pictures = cases.iter().map(|case| 1 + usize::from(case.partner.is_some())).sum();
    Ok(Cards { html, cases: extremes(evaluation, &cases), note, pictures })
}

/// The gain over the partner, or the score.
fn value(evaluation: &Evaluation, column: &Column, row: usize, partner: Option<usize>) -> Option<f64> {
    let score = column.scores[evaluation.last()][row]?;
    partner.map_or(Some(score), |partner| Some(score - column.scores[evaluation.judged][partner]?))
}

fn shown(value: Option<f64>) -> String {
    value.map_or("unknown".to_owned(), |value| format!("{value:.4}"))
}

/// Writing to a string cannot fail.
fn card(evaluation: &Evaluation, index: usize, case: &Case) -> Result<String> {
    let set = evaluation.sets[evaluation.last()];
    let (row, prompt) = (&set.rows[case.row], set.prompt(&set.rows[case.row]));
    let mut html = format!(
        r#"<article class="card" id="case-{index}" data-prompt="{}" data-seed="{}""#,
        escaped(prompt),
        row.seed
    );
    for (place, column) in evaluation.columns.iter().enumerate() {
        let value = value(evaluation, column, case.row, case.partner).map_or(String::new(), |value| value.to_string());
        let _ = write!(html, r#" data-m{place}="{value}""#);
    }
    let _ = write!(html, r#"><h3>{}</h3><p class="soft">seed {}</p><div class="sides">"#, escaped(prompt), row.seed);
    // The baseline stands left: before and after.
    let sides =
        case.partner.map(|partner| (evaluation.judged, partner)).into_iter().chain([(evaluation.last(), case.row)]);
    for (place, row) in sides {
        html += &side(evaluation, place, row)?;
    }
    html += "</div>";
    if case.partner.is_some() {
        let gain = |column: &Column| {
            let gain = value(evaluation, column, case.row, case.partner);
            let gain = gain.map_or("unknown".to_owned(), |gain| format!("{gain:+.4}"));
            format!("{} {gain}", column.label)
        };
        let gains: Vec<String> = evaluation.columns.iter().map(gain).collect();
        let _ = write!(html, r#"<p class="soft">Gain: {}</p>"#, escaped(&gains.join(", ")));
    }
    Ok(html + "</article>")
}

fn side(evaluation: &Evaluation, place: usize, row: usize) -> Result<String> {
    let (set, hash) = (evaluation.sets[place], &evaluation.hashes[place][row]);
    let set_row = &set.rows[row];
    let (uri, [width, height]) = embedded(&set.images[set_row.image as usize])?;
    let score = |column: &Column| format!("{} {}", column.label, shown(column.scores[place][row]));
    let scores: Vec<String> = evaluation.columns.iter().map(score).collect();
    Ok(format!(
        r#"<figure><img src="{uri}" width="{width}" height="{height}" alt="{name}: {prompt}"><figcaption><strong>{name}</strong><br>{scores}<br><span title="SHA-256 {hash}">{path}</span></figcaption></figure>"#,
        name = escaped(&set.name),
        prompt = escaped(set.prompt(set_row)),
        scores = escaped(&scores.join(", ")),
        path = escaped(&set_row.path),
    ))
}

/// Links to the first and last cards, which are sorted.
fn extremes(evaluation: &Evaluation, cases: &[Case]) -> String {
    let (set, Some(first)) = (evaluation.sets[evaluation.last()], evaluation.columns.first()) else {
        return String::new();
    };
    let item = |(index, case): (usize, &Case)| {
        let row = &set.rows[case.row];
        format!(
            r##"<li><a href="#case-{index}">{}, seed {}</a>: {}</li>"##,
            escaped(set.prompt(row)),
            row.seed,
            shown(case.value)
        )
    };
    let best: String = cases.iter().enumerate().take(CASES).map(item).collect();
    let worst: String = cases.iter().enumerate().rev().take(CASES).map(item).collect();
    let what = if evaluation.pairs.is_empty() { "score" } else { "gain" };
    format!(
        r#"<section aria-labelledby="extremes"><h2 id="extremes">Best and worst by {}</h2><div class="cases"><div><h3>Largest {what}</h3><ol>{best}</ol></div><div><h3>Smallest {what}</h3><ol>{worst}</ol></div></div></section>"#,
        escaped(&first.label)
    )
}
