//! `social-reward reward validate`.

use std::{fmt::Write, process::ExitCode, sync::atomic::AtomicBool};

use anyhow::Result;
#[cfg(feature = "torch")]
use reward::run::together::same_settings;
use reward::{
    Error,
    clip::{
        config::ClipConfig,
        tokenizer::{Tokenizer, Tokens},
    },
    data::triplets::{ReadOptions, Triplets},
    engine::{EmbedOptions, embed_part, engine},
    statistics::{pairwise::Validation, table::Table},
    weights::{Checkpoint, OpenOptions},
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
    let stop = signals::listen()?;
    let run = Run {
        settings: &settings,
        open: settings.common.open_options()?,
        options: &|config| settings.images.embed_options(settings.batch_size, config),
        stop: &stop,
    };
    // Rank 0 of several, which have found the same.
    if let Some(validation) = run.dealt(arguments)? {
        let text = if arguments.json { serde_json::to_string_pretty(&validation)? } else { as_text(&validation) };
        commands::print(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is validated, and how.
struct Run<'a> {
    settings: &'a ValidateArgs,
    open: OpenOptions<'a>,
    options: &'a dyn Fn(&ClipConfig) -> reward::Result<EmbedOptions>,
    stop: &'a AtomicBool,
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

        let (validation, progress) = together(&arguments.world, |world, progress| {
            let checkpoint = world.first_here(|| self.checkpoint())?;
            let triplets = self.triplets()?;
            let (images, prompts, pairs) = (triplets.images.len(), triplets.prompts.len(), triplets.rows.len());
            same_settings(world, &Seen { settings: self.settings, images, prompts, pairs })?;
            let shard = Shard { index: world.rank(), count: world.size() };
            let join = |table: &mut Table| table.of_all_ranks(world);
            self.validation(&checkpoint, &triplets, (shard, world.local_rank()), join, progress)
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
        let (checkpoint, triplets) = (self.checkpoint()?, self.triplets()?);
        let whole = (Shard::WHOLE, 0);
        Ok(Some(self.validation(&checkpoint, &triplets, whole, |_| Ok(()), &Progress::new())?))
    }

    fn checkpoint(&self) -> reward::Result<Checkpoint> {
        let ValidateArgs { checkout_path, model, .. } = self.settings;
        let checkpoint = Checkpoint::open_base(checkout_path.as_deref(), model.as_deref(), self.open)?;
        // Bad settings of images before the data is read.
        (self.options)(&checkpoint.config)?;
        Ok(checkpoint)
    }

    fn triplets(&self) -> reward::Result<Triplets> {
        let ValidateArgs { validation_file, images, slice_by, .. } = self.settings;
        let read = ReadOptions { image_root: images.image_root.clone(), slice_by: slice_by.clone() };
        Triplets::read(validation_file, &read)
    }

    /// The figures, where this process embeds its shard on the device of its number on its machine, and `join` brings what the
    /// others have.
    fn validation(
        &self,
        checkpoint: &Checkpoint,
        triplets: &Triplets,
        (shard, local_rank): (Shard, usize),
        join: impl FnOnce(&mut Table) -> reward::Result<()>,
        progress: &Progress,
    ) -> reward::Result<Validation> {
        checkpoint.announce(progress);
        let context = checkpoint.config.context_length;
        let tokens: Vec<Tokens> =
            triplets.prompts.iter().map(|prompt| Tokenizer::openai().encode(prompt, context)).collect();
        commands::warn_of_cut_prompts(&tokens, progress);
        let compute = &self.settings.common.compute;
        let device = commands::device(compute.device, compute.threads).of_rank(local_rank);
        let engine = engine(checkpoint, device)?;
        let options = (self.options)(&checkpoint.config)?;
        let mut table = embed_part(&*engine, &triplets.images, &tokens, shard, &options, progress, self.stop)?;
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
