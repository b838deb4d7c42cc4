//! `social-reward evaluate`.

use std::{fmt::Write, process::ExitCode};

use anyhow::Result;
use reward::{
    Error,
    data::{image::DecodeOptions, image_sets::ImageSets, loader, preflight::OnBadImage},
    engine::EmbedOptions,
    evaluate::{
        Column, Evaluation, Options, evaluate, evaluate_part,
        metric::MetricName,
        scores::Store,
        summary::{MetricSummary, Slice, Summary, agreement, per_prompt},
    },
    output,
    statistics::comparison::Comparison,
    weights::OpenOptions,
};

use crate::{cli::EvaluateArgs, commands, progress::Progress, report, settings::layered, signals};

/// Prompts that the table for people shows from either end.
const PROMPTS_SHOWN: usize = 5;

pub(crate) fn run(arguments: &EvaluateArgs) -> Result<ExitCode> {
    let settings: EvaluateArgs = layered(arguments, arguments.config.as_deref())?;
    if settings.images.is_empty() {
        return Err(Error::usage("--images is missing")
            .hint("images.parquet, a CSV or JSONL manifest, or a folder with captions")
            .into());
    }
    let options = options(&settings)?;
    options.check(settings.baseline.is_some())?;
    let (stop, progress) = (signals::listen()?, Progress::new());
    if let Some(path) = &settings.report {
        report::check(path)?;
    }
    let sets = ImageSets::read(&settings.images, settings.baseline.as_deref(), settings.slice_by.as_deref())?;
    let folder = settings.output.as_deref().unwrap_or(&sets.folder);
    let way_out = match settings.output {
        None => "scores go into the folder of the images: --output DIR names another one",
        Some(_) => "give an --output that you may write to",
    };
    output::check_folder(folder, way_out)?;
    let (shard, local_rank) = commands::shard(settings.shard.shard)?;
    let device = commands::device(settings.compute.device, settings.compute.threads).of_rank(local_rank);
    let (options, table) = (Options { device, ..options }, folder.join("scores.parquet"));
    let mut all_parts = None;
    if shard.count > 1 && options.image_by_image().next().is_none() {
        if settings.shard.shard.is_some() {
            return Err(Error::usage(format!("--shard {shard}: there is nothing to share"))
                .hint("diversity and distances of sets need all images at once: leave --shard out")
                .into());
        }
        if shard.index > 0 {
            progress.line("all that is asked needs all images at once: rank 0 does it alone");
            return Ok(ExitCode::SUCCESS);
        }
    } else if shard.count > 1 {
        let identity = options.identity(&sets);
        let mut store = Store::open_part(&table, shard, &identity)?;
        let computed = evaluate_part(&sets, shard, &options, &mut store, &progress, &stop)?;
        all_parts = store.finish_part(shard.count, &identity)?;
        progress.line(&format!("part {shard} is scored, {computed} scores of it new"));
        if all_parts.is_none() {
            progress.line("the last part to end shows what was found; without --shard, so does one process");
            return Ok(ExitCode::SUCCESS);
        }
    }
    let mut store = Store::open(&table)?;
    let evaluation = evaluate(&sets, &options, &mut store, &progress, &stop)?;
    let (scores, table) = (store.rows.len(), store.path().display());
    progress.line(&format!("{scores} scores in {table}, {} of them new", evaluation.computed));
    if let Some(path) = &settings.report {
        let pictures = report::write(path, &evaluation, &settings, options.seed)?;
        progress.line(&format!("report with {pictures} pictures: {}", path.display()));
    }
    let summary = &evaluation.summary;
    let text = if arguments.json { serde_json::to_string_pretty(summary)? } else { as_text(&evaluation) };
    commands::print(&text)?;
    drop(all_parts);
    Ok(ExitCode::SUCCESS)
}

fn options(settings: &EvaluateArgs) -> Result<Options> {
    let EvaluateArgs { clip, activation, batch_size, num_workers, max_pixels, compute, .. } = settings;
    let seed = compute.seed.unwrap_or(0);
    let batch_size = batch_size.unwrap_or(32);
    if batch_size == 0 {
        return Err(Error::usage("batch_size = 0: want at least 1").into());
    }
    let decode = DecodeOptions::default();
    let decode = DecodeOptions { max_pixels: max_pixels.unwrap_or(decode.max_pixels), ..decode };
    let workers = loader::workers(*num_workers);
    Ok(Options {
        metrics: settings.specs()?,
        clip: clip.clone(),
        device: compute.device.unwrap_or(reward::device::DeviceName::Auto),
        open: OpenOptions { activation: commands::activation(activation.as_deref())?, seed, ..OpenOptions::default() },
        embed: EmbedOptions { batch_size, workers, decode, on_bad_image: OnBadImage::Stop },
        seed,
    })
}

/// The figures for people. Writing to a string cannot fail.
fn as_text(evaluation: &Evaluation) -> String {
    let mut text = String::new();
    let Summary { sets, comparisons, slices } = &evaluation.summary;
    for set in sets {
        let _ = writeln!(text, "{}: {} images, {} prompts", set.name, set.n_images, set.n_prompts);
        for (name, metric) in &set.metrics {
            let _ = writeln!(text, "  {name:<16}{}  ({})", mean(metric), metric.convention);
        }
    }
    if let Some(baseline) = sets.get(evaluation.judged).filter(|_| !comparisons.is_empty()) {
        for set in &sets[..evaluation.judged] {
            let _ = writeln!(text, "\n{} against {} (95 % intervals, prompts resampled)", set.name, baseline.name);
            let is_own = |found: &&Comparison| found.set.as_ref().is_none_or(|name| *name == set.name);
            comparisons.iter().filter(is_own).for_each(|found| compared(&mut text, found));
        }
    }
    for Slice { set, column, value, n_images, metrics, comparisons } in slices.iter().flatten() {
        let of_set = set.as_ref().map_or(String::new(), |set| format!("{set}, "));
        let _ = writeln!(text, "\n{of_set}{column} = {value}: {n_images} images");
        for (name, metric) in metrics {
            let _ = writeln!(text, "  {name:<16}{}", mean(metric));
        }
        comparisons.iter().for_each(|found| compared(&mut text, found));
    }
    for column in evaluation.columns.iter().filter(|column| matches!(column.name, MetricName::Reward(_))) {
        prompts_as_text(&mut text, evaluation, column);
    }
    for (place, left) in evaluation.columns.iter().enumerate() {
        for right in &evaluation.columns[place + 1..] {
            if let Some(rho) = agreement(&left.scores.concat(), &right.scores.concat()) {
                let _ = writeln!(text, "agreement of {} and {}: Spearman {rho:+.3}", left.label, right.label);
            }
        }
    }
    text.trim_end().to_owned()
}

fn mean(MetricSummary { mean, std, interval_low, interval_high, .. }: &MetricSummary) -> String {
    match (mean, std, interval_low, interval_high) {
        (Some(mean), Some(std), Some(low), Some(high)) => {
            format!("{mean:>9.5} [{low:.5}, {high:.5}]  std {std:.5}")
        }
        (Some(mean), ..) => format!("{mean:>9.5}"),
        _ => "  unknown".to_owned(),
    }
}

/// Two lines of a comparison.
fn compared(text: &mut String, found: &Comparison) {
    let Comparison { metric, n_pairs, win_rate, ties, interval_low, interval_high, .. } = found;
    let _ = writeln!(
        text,
        "  {metric:<16}win rate {win_rate:.4} [{interval_low:.4}, {interval_high:.4}] of {n_pairs} pairs, {ties} tied"
    );
    let Comparison { mean_difference, mean_difference_low, mean_difference_high, p_value, effect_size, .. } = found;
    let effect = effect_size.map_or(String::new(), |effect| format!(", effect size {effect:+.3}"));
    let _ = writeln!(
        text,
        "{:18}difference {mean_difference:+.5} [{mean_difference_low:+.5}, {mean_difference_high:+.5}]{effect}, \
         sign test p = {p_value:.3e}",
        ""
    );
}

/// The prompts that gain and lose most, and what picking among a prompt's images is worth.
fn prompts_as_text(text: &mut String, evaluation: &Evaluation, column: &Column) {
    let (label, rows) = (&column.label, per_prompt(&evaluation.scored_pairs(column)));
    if rows.len() > 1 {
        let _ =
            writeln!(text, "\n{label} by prompt ({}, baseline, win rate), largest gain first", evaluation.shown_name());
    }
    for (index, row) in rows.iter().enumerate().filter(|_| rows.len() > 1) {
        if index < PROMPTS_SHOWN || index + PROMPTS_SHOWN >= rows.len() {
            let _ = writeln!(text, "  {:+.5}  {:+.5}  {:.3}  {}", row.mean, row.baseline, row.win_rate, row.prompt);
        } else if index == PROMPTS_SHOWN {
            let _ = writeln!(text, "  …");
        }
    }
    for (set, curve) in evaluation.sets.iter().zip(evaluation.best_of(column)).filter(|(_, curve)| curve.len() > 1) {
        let curve: Vec<String> = curve.iter().map(|score| format!("{score:.5}")).collect();
        let _ = writeln!(text, "{label} of {}, best of 1, 2, …: {}", set.name, curve.join(" "));
    }
}
