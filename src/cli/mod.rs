//! The command line as it is typed. Flags are kebab-case and also accept the seed's underscores.

mod common;
mod diffusion;
mod evaluate;
mod finetune;
mod help;
mod numbers;
mod reward;

use std::{ffi::OsString, num::NonZeroUsize, path::PathBuf};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};

#[cfg(feature = "torch")]
pub(crate) use common::WorldArgs;
pub(crate) use common::{CommonArgs, ImageArgs};
pub(crate) use diffusion::{DiffusionCommand, DiffusionExportArgs, GenerateArgs, VerifyArgs};
pub(crate) use evaluate::EvaluateArgs;
pub(crate) use finetune::FinetuneArgs;
pub(crate) use reward::{ExportArgs, ExportFormat, RewardCommand, ScoreArgs, TrainArgs, ValidateArgs};

/// Train the Social Reward CLIP on triplets, tune Stable Diffusion against it, and judge the images that come out.
#[derive(Parser)]
#[command(name = "social-reward", version, subcommand_required = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done; 1 data, files or the run failed; 2 wrong command line or config; 129, 130, 143 interrupted, state saved."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// The preference model: train, validate, score, export
    #[command(subcommand)]
    Reward(Box<RewardCommand>),
    /// Stable Diffusion: fine-tune against a reward, generate images, check a model, export it
    #[command(subcommand)]
    Diffusion(Box<DiffusionCommand>),
    /// Judge generated images by several metrics, alone or against a baseline; write a report
    Evaluate(Box<EvaluateArgs>),
    /// The whole pipeline on generated data, on a CPU, in minutes: reward, text-to-image model, fine-tuning, report
    Demo(DemoArgs),
    /// What this machine has: libtorch, CUDA, memory, decoders; what is missing and how to get it
    Doctor(DoctorArgs),
}

/// Triplets of a full demo.
pub(crate) const TRIPLETS: usize = 24_000;

/// Flags of `demo`.
#[derive(Args)]
#[command(after_help = "Examples:
  social-reward demo                       # about ten minutes; the last line says where the report is
  social-reward demo --triplets 2400 --output quick   # a tenth of everything: a look, no figures to trust
  social-reward demo --truth my-images     # the truth about images of a tuning of your own, beside those of the demo's base
  social-reward demo --data-only toy       # triplets for `reward train`, captions for `diffusion finetune`

What it trains with is in configs/demo/*.toml; every step can be taken by hand with the command that its file names.
A demo replaces what an earlier one left in --output.")]
pub(crate) struct DemoArgs {
    /// Folder for the data and the runs
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    pub(crate) output: PathBuf,
    /// Write just the toy data, here
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    pub(crate) data_only: Option<PathBuf>,
    /// Just print the truth about images of the toy world, such as those of a tuning of your own, beside `base` in --output
    #[arg(long, value_name = "IMAGES", conflicts_with_all = ["data_only", "triplets", "seed"])]
    pub(crate) truth: Option<PathBuf>,
    /// Training triplets, with a tenth as many for validation and a quarter for the test, at most 1200 and 2400; the trainings
    /// grow with them
    #[arg(long, value_name = "N", default_value_t = TRIPLETS)]
    pub(crate) triplets: usize,
    /// Seed of data, weights and shuffling
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// CPU threads to compute with [default: 1, as the models are tiny]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

/// Flags of `doctor`.
#[derive(Args)]
#[command(after_help = "Examples:
  social-reward doctor
  torchrun --nproc-per-node 2 --no-python social-reward doctor   # do the processes find one another, and how fast")]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    #[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "the portable build has no ranks"))]
    pub(crate) world: common::WorldArgs,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// What was typed; ends the process where that is no command, or help is asked for.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Cli {
    tried(arguments).unwrap_or_else(|error| error.exit())
}

fn tried(arguments: impl Iterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut command = help::fitted(numbers::ranged(Cli::command()));
    let arguments: Vec<OsString> = arguments.collect();
    if let Some(argument) = arguments.iter().find(|argument| argument.to_str().is_none()) {
        let named = argument.as_encoded_bytes().escape_ascii();
        let what = format!(
            "`{named}` is not UTF-8, wanted arguments and file names that are\n\nhint: rename the file \
             (`convmv -f latin1 -t utf8 --notest FILE` where its name is Latin-1)"
        );
        return Err(command.error(ErrorKind::InvalidUtf8, what));
    }
    let matches = command.try_get_matches_from_mut(with_kebab_flags(arguments.into_iter()))?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// The seed's spelling of long flags (`--training_file`) in ours (`--training-file`).
fn with_kebab_flags(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut flags = true;
    arguments.map(move |argument| {
        let Some(text) = argument.to_str() else { return argument };
        flags &= text != "--";
        if !flags || !text.starts_with("--") {
            return argument;
        }
        let (flag, value) = text.split_at(text.find('=').unwrap_or(text.len()));
        format!("{}{value}", flag.replace('_', "-")).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[cfg(unix)]
    #[test]
    fn an_argument_in_latin_1_is_named() {
        use std::os::unix::ffi::OsStringExt;
        let file = OsString::from_vec(b"F\xfcchse.csv".to_vec());
        let typed = ["x", "reward", "score", "--manifest"].into_iter().map(OsString::from).chain([file]);
        let error = tried(typed).err().unwrap();
        assert!(error.to_string().starts_with("error: `F\\xfcchse.csv` is not UTF-8"), "{error}");
    }

    #[test]
    fn underscores_in_flags_but_not_in_values() {
        let typed = ["x", "--training_file=a_b", "--save_folder", "c_d", "--", "--e_f"].map(OsString::from);
        let read: Vec<_> = with_kebab_flags(typed.into_iter()).collect();
        assert_eq!(read, ["x", "--training-file=a_b", "--save-folder", "c_d", "--", "--e_f"]);
    }
}
