//! The report of an evaluation: one HTML file that needs nothing else.

mod cards;
mod chart;
mod curves;
mod figures;
mod picture;

use std::{fmt::Write, io::Read, path::Path};

use anyhow::Result;
use reward::{
    evaluate::{
        Evaluation,
        summary::{agreement, per_prompt},
    },
    files::replace_file,
    output,
    statistics::comparison::Comparison,
};

use self::{
    chart::{Series, lines, win_rates},
    picture::escaped,
};
use crate::cli::EvaluateArgs;

const TEMPLATE: &str = include_str!("report.html");

/// Bytes of a file that are looked at to tell whether it is a report.
const HEAD: usize = 256;

/// Refuses a place that cannot be written, or where something is that is no report.
///
/// # Errors
/// As said; or what is there cannot be read.
pub(crate) fn check(path: &Path) -> Result<()> {
    let way_out = "give a --report that you may write to";
    output::check_file(path, way_out)?;
    if !path.is_file() {
        return Ok(());
    }
    let mut head = Vec::new();
    fs_err::File::open(path)?.take(HEAD as u64).read_to_end(&mut head)?;
    // Reports begin alike up to their title.
    let ours = TEMPLATE.split("{{").next().unwrap_or_default();
    let ours = &ours.as_bytes()[..ours.len().min(HEAD)];
    if head.is_empty() || head.starts_with(ours) {
        return Ok(());
    }
    let wrong = format!("{} is there already and is no report of evaluate: it stays as it is", path.display());
    Err(reward::Error::data(wrong).hint("give another --report, or move the file away").into())
}

/// Writes the report and gives the number of pictures in it.
///
/// # Errors
/// An image cannot be read, or the file cannot be written.
pub(crate) fn write(path: &Path, evaluation: &Evaluation, settings: &EvaluateArgs, seed: u64) -> Result<usize> {
    let cards = cards::of(evaluation)?;
    let names: Vec<&str> = evaluation.sets.iter().map(|set| set.name.as_str()).collect();
    let (judged, baseline) = names.split_at(evaluation.judged);
    let judged =
        if judged.len() > 1 { format!("{} to {}", judged[0], judged[judged.len() - 1]) } else { judged.concat() };
    let title: Vec<&str> = std::iter::once(judged.as_str()).chain(baseline.iter().copied()).collect();
    let paired = !evaluation.pairs.is_empty();
    let subtitle = format!("social-reward {}, bootstrap seed {seed}", env!("CARGO_PKG_VERSION"));
    let options: String = (evaluation.columns.iter().enumerate())
        .map(|(index, column)| format!(r#"<option value="{index}">{}</option>"#, escaped(&column.label)))
        .collect();
    let (first, second) =
        if paired { ("largest gain first", "largest loss first") } else { ("best first", "worst first") };
    let parts = [
        ("title", escaped(&title.join(" against "))),
        ("subtitle", escaped(&subtitle)),
        ("headline", figures::headline(evaluation)),
        ("slices", figures::slices(evaluation)),
        ("charts", charts(evaluation)),
        ("cases", cards.cases),
        ("grid_note", escaped(&cards.note)),
        ("metric_options", options),
        ("first_order", first.to_owned()),
        ("second_order", second.to_owned()),
        ("grid", cards.html),
        ("prompts", prompts(evaluation)),
        ("settings", described(evaluation, settings)?),
    ];
    let html = filled(TEMPLATE, &parts);
    replace_file(path, |partial| Ok(fs_err::write(partial, html)?))?;
    Ok(cards.pictures)
}

/// `template` with every `{{name}}` replaced; what is put in is not looked at again.
fn filled(template: &str, parts: &[(&str, String)]) -> String {
    let mut html = String::new();
    for (index, piece) in template.split("{{").enumerate() {
        let found = piece.split_once("}}").filter(|_| index > 0);
        let part = found.and_then(|(name, rest)| Some((&parts.iter().find(|(known, _)| *known == name)?.1, rest)));
        match part {
            Some((part, rest)) => html.extend([part.as_str(), rest]),
            None => html.push_str(piece),
        }
    }
    html
}

/// A table that scrolls on its own where the page is narrow. `rows` are cells' HTML.
fn table(caption: &str, head: &[(&str, bool)], rows: &str) -> String {
    let class = |number: bool| if number { r#" class="number""# } else { "" };
    let head: String = head
        .iter()
        .map(|(name, number)| format!(r#"<th scope="col"{}>{}</th>"#, class(*number), escaped(name)))
        .collect();
    let caption = escaped(caption);
    format!(
        r#"<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"#
    )
}

fn number(value: Option<f64>) -> String {
    value.map_or("unknown".to_owned(), |value| format!("{value:.5}"))
}

fn charts(evaluation: &Evaluation) -> String {
    let last = evaluation.shown_name();
    let of_last = |found: &&Comparison| found.set.as_deref().is_none_or(|set| set == last);
    let comparisons: Vec<&Comparison> = evaluation.summary.comparisons.iter().filter(of_last).collect();
    let of = if evaluation.judged > 1 { format!(" of {last}") } else { String::new() };
    let mut figures = if comparisons.is_empty() { String::new() } else { win_rates(&comparisons, &of) };
    figures += &figures::by_set(&evaluation.summary, evaluation.judged);
    for column in &evaluation.columns {
        let curves = evaluation.sets.iter().zip(evaluation.best_of(column)).skip(evaluation.last());
        let curves: Vec<Series> = (curves.zip(["set", "base"]))
            .map(|((set, curve), class)| {
                let points = (1..).map(f64::from).zip(curve).collect();
                Series { name: &set.name, class, points }
            })
            .collect();
        figures += &lines(&format!("{}, expected best of n images of a prompt", column.label), "n =", &curves);
    }
    figures += &curves::of_run(&evaluation.sets[0].folder);
    if figures.is_empty() {
        return figures;
    }
    format!(
        r#"<section aria-labelledby="plots"><h2 id="plots">Plots</h2><div class="charts">{figures}</div></section>"#
    )
}

fn prompts(evaluation: &Evaluation) -> String {
    let mut rows = String::new();
    for column in &evaluation.columns {
        for row in per_prompt(&evaluation.scored_pairs(column)) {
            let _ = write!(
                rows,
                r#"<tr><td>{}</td><th scope="row">{}</th><td class="number">{:.5}</td><td class="number">{:.5}</td><td class="number">{:+.5}</td><td class="number">{:.3}</td><td class="number">{}</td></tr>"#,
                escaped(&column.label),
                escaped(&row.prompt),
                row.mean,
                row.baseline,
                row.mean - row.baseline,
                row.win_rate,
                row.pairs
            );
        }
    }
    let mut html = String::new();
    if !rows.is_empty() {
        let head = [
            ("metric", false),
            ("prompt", false),
            ("mean", true),
            ("baseline", true),
            ("gain", true),
            ("win rate", true),
            ("pairs", true),
        ];
        let caption = match evaluation.judged {
            1 => "Largest gain first".to_owned(),
            _ => format!("Largest gain of {} first", evaluation.shown_name()),
        };
        html = format!(
            r#"<section aria-labelledby="by-prompt"><h2 id="by-prompt">By prompt</h2>{}</section>"#,
            table(&caption, &head, &rows)
        );
    }
    let mut rows = String::new();
    for (place, left) in evaluation.columns.iter().enumerate() {
        for right in &evaluation.columns[place + 1..] {
            let rho = agreement(&left.scores.concat(), &right.scores.concat());
            let (left, right) = (escaped(&left.label), escaped(&right.label));
            let _ = write!(rows, r#"<tr><td>{left}</td><td>{right}</td><td class="number">{}</td></tr>"#, number(rho));
        }
    }
    if !rows.is_empty() {
        let head = [("metric", false), ("metric", false), ("Spearman", true)];
        let table = table("Rank correlation over all images", &head, &rows);
        html +=
            &format!(r#"<section aria-labelledby="agree"><h2 id="agree">Agreement of metrics</h2>{table}</section>"#);
    }
    html
}

/// Every setting and hash.
fn described(evaluation: &Evaluation, settings: &EvaluateArgs) -> Result<String> {
    let mut rows = String::new();
    let mut add = |name: &str, value: &str| {
        let _ =
            write!(rows, r#"<tr><th scope="row">{}</th><td class="hash">{}</td></tr>"#, escaped(name), escaped(value));
    };
    for (name, value) in toml::Table::try_from(settings)? {
        add(&format!("evaluate: {name}"), &value.to_string());
    }
    for (name, metric) in &evaluation.summary.sets[0].metrics {
        add(&format!("{name}: convention"), &metric.convention);
        if let Some(sha256) = &metric.checkpoint_sha256 {
            add(&format!("{name}: SHA-256 of the weights"), sha256);
        }
    }
    for (set, hashes) in evaluation.sets.iter().zip(&evaluation.hashes) {
        add(&format!("{}: folder", set.name), &set.folder.display().to_string());
        let all = reward::weights::sha256::of_bytes(hashes.concat().as_bytes());
        add(&format!("{}: SHA-256 of its images' SHA-256, in order", set.name), &all);
        for (name, value) in &set.settings {
            add(&format!("{}: {name}", set.name), value);
        }
    }
    for (name, value) in curves::settings_of_run(&evaluation.sets[0].folder) {
        add(&format!("training run: {name}"), &value);
    }
    Ok(table("What it takes to repeat this", &[("setting", false), ("value", false)], &rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_in_is_not_filled_again() {
        let parts = [("a", "{{b}}".to_owned()), ("b", "2".to_owned())];
        assert_eq!(filled("x{{a}}y{{b}}z {{c}} }}", &parts), "x{{b}}y2z c}} }}");
    }

    #[test]
    fn a_page_of_somebody_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.html");
        check(&path).unwrap();
        fs_err::write(&path, TEMPLATE.replace("{{title}}", "base")).unwrap();
        check(&path).unwrap();
        fs_err::write(&path, "").unwrap();
        check(&path).unwrap();
        fs_err::write(&path, "<!doctype html>\n<html lang=\"en\">\n<title>My page</title>").unwrap();
        let error = check(&path).unwrap_err().to_string();
        assert!(error.ends_with("r.html is there already and is no report of evaluate: it stays as it is"), "{error}");
        check(&folder.path().join("new/r.html")).unwrap();
        check(folder.path()).unwrap_err();
    }

    #[test]
    fn the_template_names_nothing_outside_itself() {
        for outside in ["http", "src=", "@import", "url("] {
            assert!(!TEMPLATE.contains(outside), "{outside}");
        }
    }
}
