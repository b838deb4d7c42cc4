//! The commands of `social-reward reward`.

use std::path::PathBuf;

use clap::{Args, Subcommand, builder::PossibleValuesParser};
use serde::{Deserialize, Serialize};

use super::common::{CommonArgs, ImageArgs, ShardArgs, WorldArgs};

#[derive(Subcommand)]
pub(crate) enum RewardCommand {
    /// Fine-tune CLIP on (prompt, remixed image, image nobody remixed) triplets
    Train(Box<TrainArgs>),
    /// Pair accuracy of a model on held-out triplets, with intervals
    Validate(ValidateArgs),
    /// Score images for prompts
    Score(ScoreArgs),
    /// Write a model in another layout
    Export(ExportArgs),
}

const MODES: [&str; 6] = [
    "all",
    "visual",
    "visual_upper_layers",
    "visual_upper_layers_textual_upper_layers",
    "visual_upper_layers_textual_upper_layers_deeper",
    "visual_last_layer",
];

/// Flags of `reward train`; every one is also a key of the `--config` file, with underscores.
#[derive(Args, Serialize)]
#[command(after_help = "Examples:
  The paper's setting:
    social-reward reward train --config configs/reward/paper.toml --training-file T.parquet --save-folder OUT
  With validation, going on where a run stopped:
    social-reward reward train --training-file T.parquet --validation-file V.parquet --save-folder OUT \\
      --training-mode visual_upper_layers_textual_upper_layers --resume

T.parquet has columns prompt, pos_path, neg_path (or pos_image, neg_image with the bytes).")]
pub(crate) struct TrainArgs {
    /// Parquet file(s), glob(s) or folder(s) of training triplets
    #[arg(long, num_args = 1.., value_name = "PARQUET")]
    training_file: Option<Vec<String>>,
    /// What trains
    #[arg(long, value_parser = PossibleValuesParser::new(MODES))]
    training_mode: Option<String>,
    /// Triplets of one optimizer step [default: 32]
    #[arg(long, value_name = "N")]
    batch_size: Option<u32>,
    /// Passes over the data [default: 10]
    #[arg(long, value_name = "N")]
    n_epochs: Option<u32>,
    /// Folder for checkpoints, metrics and the final model
    #[arg(long, value_name = "DIR")]
    save_folder: Option<PathBuf>,
    /// Loss [default: triplet]
    #[arg(long, value_parser = PossibleValuesParser::new(reward::loss::LossName::NAMES))]
    loss_name: Option<String>,
    /// Checkpoint to start from instead of the base model
    #[arg(long, value_name = "CKPT")]
    checkout_path: Option<String>,
    /// Learning rate [default: 3e-5]
    #[arg(long, value_name = "RATE", allow_hyphen_values = true)]
    learning_rate: Option<f64>,
    /// Base model: CLIP folder, state dict, hub id or random:NAME [default: openai/clip-vit-large-patch14]
    #[arg(long, value_name = "BASE")]
    model: Option<String>,
    /// Parquet file(s), glob(s) or folder(s) of held-out triplets
    #[arg(long, num_args = 1.., value_name = "PARQUET")]
    validation_file: Option<Vec<String>>,
    /// Validate every N steps besides once per epoch
    #[arg(long, value_name = "N")]
    validate_every: Option<u32>,
    /// Checkpoint every N steps besides once per epoch [default: 800]
    #[arg(long, value_name = "N")]
    checkpoint_every: Option<u32>,
    /// Checkpoints that stay on disk; 0 keeps all [default: 3]
    #[arg(long, value_name = "N")]
    keep_checkpoints: Option<u32>,
    /// Micro-batches that a batch is split into [default: 1; on a CPU, as many as keep them at 16 triplets or fewer]
    #[arg(long, value_name = "N")]
    gradient_accumulation: Option<u32>,
    /// Scale larger gradients down to this norm
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    clip_norm: Option<f64>,
    /// Learning rate after the warm-up [default: constant]
    #[arg(long, value_parser = PossibleValuesParser::new(["constant", "cosine"]))]
    schedule: Option<String>,
    /// Steps of linear warm-up [default: 0]
    #[arg(long, value_name = "N")]
    warmup_steps: Option<u32>,
    /// Stop after N steps
    #[arg(long, value_name = "N")]
    max_steps: Option<u32>,
    /// Margin of the triplet loss [default: 0.3]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    margin: Option<f64>,
    #[command(flatten)]
    #[serde(flatten)]
    images: ImageArgs,
    /// Recompute activations in the backward pass: less memory, more time
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    gradient_checkpointing: Option<bool>,
    /// Kind of activations and frozen weights [default: fp32]
    #[arg(long, value_parser = PossibleValuesParser::new(["fp32", "bf16"]))]
    precision: Option<String>,
    /// Where the frozen part's activations are kept: off, ram or a folder [default: ram]
    #[arg(long, value_name = "off|ram|DIR")]
    cache: Option<String>,
    /// Budget of the cache in GB [default: a quarter of the free memory; 100 on disk]
    #[arg(long, value_name = "GB", allow_hyphen_values = true)]
    cache_gb: Option<f64>,
    /// How much is checked before training [default: headers]
    #[arg(long, value_parser = PossibleValuesParser::new(["headers", "full", "off"]))]
    preflight: Option<String>,
    /// Treat the preflight's warnings as errors
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    strict: Option<bool>,
    #[command(flatten)]
    #[serde(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) world: WorldArgs,
    /// Go on from the newest checkpoint in the save folder
    #[arg(long)]
    #[serde(skip)]
    pub(crate) resume: bool,
    /// TOML file with any of these settings; a flag beats the file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
}

/// Flags of `reward validate`.
#[derive(Args, Serialize, Deserialize, Default)]
#[serde(default)]
#[command(after_help = "Examples:
  social-reward reward validate V.parquet --checkout-path classifier_checkpoint.pth --device cuda --batch-size 1024 --num-workers 9
  social-reward reward validate V.parquet --checkout-path OUT/best --slice-by style --json")]
pub(crate) struct ValidateArgs {
    /// Parquet file(s), glob(s) or folder(s) of triplets
    #[arg(value_name = "PARQUET")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) validation_file: Vec<String>,
    /// Checkpoint to validate
    #[arg(long, value_name = "CKPT")]
    pub(crate) checkout_path: Option<String>,
    /// Model; with --checkout-path, only its architecture counts [default: openai/clip-vit-large-patch14]
    #[arg(long, value_name = "BASE")]
    pub(crate) model: Option<String>,
    /// Images per pass [default: 32]
    #[arg(long, value_name = "N")]
    pub(crate) batch_size: Option<usize>,
    /// Also break accuracy down by this column
    #[arg(long, value_name = "COLUMN")]
    pub(crate) slice_by: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) images: ImageArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) common: CommonArgs,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) world: WorldArgs,
    /// Print one JSON document
    #[arg(long)]
    #[serde(skip)]
    pub(crate) json: bool,
    /// TOML file with any of these settings; a flag beats the file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
}

/// Flags of `reward score`.
#[derive(Args, Serialize, Deserialize, Default)]
#[serde(default)]
#[command(after_help = "Examples:
  social-reward reward score --model OUT/best --prompt \"a red fox in snow\" fox.png other.jpg
  social-reward reward score --model OUT/best --manifest images.parquet --output scores.parquet

A manifest (parquet, CSV, TSV, JSON or JSONL, or a glob or folder of them) has columns prompt and path; paths are relative
to the folder of each file, or to --image-root. Its other columns are in --output too. Where --output is the manifest itself,
the column score is added to it.

What is scored is kept in OUTPUT.parts on the way, however the run ends: the same command goes on from there. A file that score
did not write is not written over.")]
pub(crate) struct ScoreArgs {
    /// Model: CLIP folder, state dict, hub id or random:NAME
    #[arg(long, value_name = "CKPT")]
    pub(crate) model: Option<String>,
    /// Prompt to score the images for
    #[arg(long, value_name = "TEXT", conflicts_with = "manifest", requires = "image")]
    pub(crate) prompt: Option<String>,
    /// Images to score for --prompt
    #[arg(value_name = "IMAGE", requires = "prompt")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) image: Vec<String>,
    /// Table of prompts and images to score
    #[arg(long, value_name = "FILE")]
    pub(crate) manifest: Option<PathBuf>,
    /// Write path, prompt, score and the other columns of --manifest here (.parquet, .csv or .jsonl)
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Images per pass [default: 32]
    #[arg(long, value_name = "N")]
    pub(crate) batch_size: Option<usize>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) shard: ShardArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) images: ImageArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) common: CommonArgs,
    /// Print one JSON document
    #[arg(long)]
    #[serde(skip)]
    pub(crate) json: bool,
    /// TOML file with any of these settings; a flag beats the file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
}

/// Flags of `reward export`.
#[derive(Args)]
#[command(after_help = "Examples:
  social-reward reward export --model classifier_checkpoint.pth --format hf --output clip-folder
  social-reward reward export --model OUT/best --format openai --output social-reward.safetensors

Nothing is written over: --output is a new file or a new or empty folder.")]
pub(crate) struct ExportArgs {
    /// Model: CLIP folder, state dict, hub id or random:NAME
    #[arg(long, value_name = "CKPT")]
    pub(crate) model: String,
    /// hf writes a folder; openai and open_clip a .safetensors state dict
    #[arg(long, value_enum)]
    pub(crate) format: ExportFormat,
    /// Where to write
    #[arg(long, value_name = "PATH")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum ExportFormat {
    /// A folder for transformers.CLIPModel.from_pretrained
    Hf,
    /// OpenAI's keys, as the seed saves
    Openai,
    /// open_clip's keys (the same as OpenAI's)
    #[value(name = "open_clip", alias = "open-clip")]
    OpenClip,
}
