//! `social-reward reward validate`.

use std::{fmt::Write, process::ExitCode, sync::atomic::AtomicBool};

use anyhow::Result;
#[cfg(feature = "torch")]
use reward::run::together::same_settings;
use reward::{
    Error,
    clip::tokenizer::{Tokenizer, Tokens},
    data::triplets::{ReadOptions, Triplets},
    engine::{EmbedOptions, embed_part, engine},
    statistics::{pairwise::Validation, table::Table},
    weights::Checkpoint,
    world::shard::Shard,
};

#[cfg(feature = "torch")]
use crate::together::together;
use crate::{cli::ValidateArgs, commands, progress::Progress, settings::layered, signals};

pub(crate) fn run(arguments: &ValidateArgs) -> Result<ExitCode> {
    let settings: ValidateArgs = layered(arguments, arguments.config.as_deref())?;
    if settings.validation_file.is_empty() {
        return Err(Error::usage("no parquet file to validate on")
            .hint("social-reward reward validate V.parquet --checkout-path CKPT")
            .into());
    }
    let (model, checkpoint_path) = (settings.model.as_deref(), settings.checkout_path.as_deref());
    let checkpoint = Checkpoint::open_base(checkpoint_path, model, settings.common.open_options()?)?;
    let options = settings.images.embed_options(settings.batch_size, &checkpoint.config)?;
    let read = ReadOptions { image_root: settings.images.image_root.clone(), slice_by: settings.slice_by.clone() };
    let triplets = Triplets::read(&settings.validation_file, &read)?;
    let run = Run { settings: &settings, checkpoint: &checkpoint, triplets: &triplets, options: &options };
    let validation = run.dealt(arguments)?;
    // The other ranks have found the same.
    if let Some(validation) = validation {
        let text = if arguments.json { serde_json::to_string_pretty(&validation)? } else { as_text(&validation) };
        commands::print(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is validated, and how.
struct Run<'a> {
    settings: &'a ValidateArgs,
    checkpoint: &'a Checkpoint,
    triplets: &'a Triplets,
    options: &'a EmbedOptions,
}

impl Run<'_> {
    /// The figures. Of several processes each embeds a part, and rank 0 gives them.
    #[cfg(feature = "torch")]
    fn dealt(&self, arguments: &ValidateArgs) -> Result<Option<Validation>> {
        /// What must be alike for all ranks.
        #[derive(serde::Serialize)]
        struct Seen<'a> {
            #[serde(flatten)]
            settings: &'a ValidateArgs,
            images: usize,
            prompts: usize,
            pairs: usize,
        }

        let stop = signals::listen()?;
        let (validation, progress) = together(&arguments.world, |world, progress| {
            let Triplets { images, prompts, rows, .. } = self.triplets;
            let (images, prompts, pairs) = (images.len(), prompts.len(), rows.len());
            same_settings(world, &Seen { settings: self.settings, images, prompts, pairs })?;
            let shard = Shard { index: world.rank(), count: world.size() };
            self.validation(shard, world.local_rank(), |table| table.of_all_ranks(world), progress, &stop)
        })?;
        Ok(Some(validation).filter(|_| progress.leads()))
    }

    /// The figures.
    #[cfg(not(feature = "torch"))]
    fn dealt(&self, _: &ValidateArgs) -> Result<Option<Validation>> {
        if commands::shard(None)?.0.count > 1 {
            let error = Error::usage("the portable build validates in one process, and a launcher has started several");
            return Err(error.hint("start one; or build with default features (`make setup`)").into());
        }
        Ok(Some(self.validation(Shard::WHOLE, 0, |_| Ok(()), &Progress::new(), &*signals::listen()?)?))
    }

    /// The figures, where this process embeds `shard` of the images and prompts and `join` brings what the others have.
    fn validation(
        &self,
        shard: Shard,
        local_rank: usize,
        join: impl FnOnce(&mut Table) -> reward::Result<()>,
        progress: &Progress,
        stop: &AtomicBool,
    ) -> reward::Result<Validation> {
        let Self { settings, checkpoint, triplets, options } = self;
        checkpoint.announce(progress);
        let context = checkpoint.config.context_length;
        let tokens: Vec<Tokens> =
            triplets.prompts.iter().map(|prompt| Tokenizer::openai().encode(prompt, context)).collect();
        commands::warn_of_cut_prompts(&tokens, progress);
        let compute = &settings.common.compute;
        let device = commands::device(compute.device, compute.threads).of_rank(local_rank);
        let engine = engine(checkpoint, device)?;
        let mut table = embed_part(&*engine, &triplets.images, &tokens, shard, options, progress, stop)?;
        join(&mut table)?;
        table.validation(triplets, &tokens, compute.seed.unwrap_or(0))
    }
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
