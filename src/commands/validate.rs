//! `social-reward reward validate`.

use std::{fmt::Write, process::ExitCode};

use anyhow::Result;
use reward::{
    Error,
    clip::tokenizer::{Tokenizer, Tokens},
    data::triplets::{ReadOptions, Triplets},
    engine::{embed, engine},
    statistics::pairwise::Validation,
    weights::Checkpoint,
};

use crate::{cli::ValidateArgs, commands, progress::Progress, settings::layered, signals};

pub(crate) fn run(arguments: &ValidateArgs) -> Result<ExitCode> {
    let settings: ValidateArgs = layered(arguments, arguments.config.as_deref())?;
    if settings.validation_file.is_empty() {
        return Err(Error::usage("no parquet file to validate on")
            .hint("social-reward reward validate V.parquet --checkout-path CKPT")
            .into());
    }
    let (stop, progress) = (signals::listen()?, Progress::new());
    let (model, checkpoint_path) = (settings.model.as_deref(), settings.checkout_path.as_deref());
    let checkpoint = Checkpoint::open_base(checkpoint_path, model, settings.common.open_options()?)?;
    let options = settings.images.embed_options(settings.batch_size, &checkpoint.config)?;
    let read = ReadOptions { image_root: settings.images.image_root.clone(), slice_by: settings.slice_by.clone() };
    let triplets = Triplets::read(&settings.validation_file, &read)?;
    checkpoint.announce(&progress);
    let tokens: Vec<Tokens> = triplets
        .prompts
        .iter()
        .map(|prompt| Tokenizer::openai().encode(prompt, checkpoint.config.context_length))
        .collect();
    commands::warn_of_cut_prompts(&tokens, &progress);
    let engine =
        engine(&checkpoint, commands::device(settings.common.compute.device, settings.common.compute.threads))?;
    let table = embed(&*engine, &triplets.images, &tokens, &options, &progress, &stop)?;
    let validation = table.validation(&triplets, &tokens, settings.common.compute.seed.unwrap_or(0))?;
    let text = if arguments.json { serde_json::to_string_pretty(&validation)? } else { as_text(&validation) };
    commands::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The figures for people.
pub(crate) fn as_text(validation: &Validation) -> String {
    let Validation { pairs, accuracy, accuracy_ties_as_wins, ties, interval_low, interval_high, .. } = validation;
    let mut text = format!(
        "accuracy      {accuracy:.4}  (ties half; Wilson 95 % [{interval_low:.4}, {interval_high:.4}], prompts resampled [{:.4}, {:.4}])\n\
         ties as wins  {accuracy_ties_as_wins:.4}  (as the original counts)\n\
         pairs         {pairs}, {ties} tied, {} skipped\n\
         mean gap      {:+.5}\n\
         AUC           {:.4}",
        validation.bootstrap_low, validation.bootstrap_high, validation.skipped, validation.mean_gap, validation.auc,
    );
    for row in &validation.slices {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n{:<14}{:<12} {:>7} pairs  {:.4} [{:.4}, {:.4}]",
            row.column, row.value, row.pairs, row.accuracy, row.interval_low, row.interval_high
        );
    }
    text
}
