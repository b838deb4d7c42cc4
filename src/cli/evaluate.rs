//! The flags of `social-reward evaluate`.

use std::path::PathBuf;

use clap::{Args, builder::PossibleValuesParser};
use reward::evaluate::metric::MetricSpec;
use serde::{Deserialize, Deserializer, Serialize};

use super::common::{ComputeArgs, ShardArgs};

/// Flags of `evaluate`.
#[derive(Args, Serialize, Deserialize, Default)]
#[serde(default)]
#[command(after_help = "Examples:
  social-reward evaluate --images tuned --metrics social-reward=OUT/best,saturation,contrast
  social-reward evaluate --images tuned/images.parquet --baseline base/images.parquet \\
    --metrics social-reward=OUT/best,diversity --report report.html
  social-reward evaluate --images pictures --metrics social-reward=OUT/best --json
  social-reward evaluate --images tuned.csv --metrics social-reward=OUT/best --slice-by style
  social-reward evaluate --images RUN/samples --baseline RUN/samples/step-000000 --metrics social-reward=OUT/best

An image set is an images.parquet, a CSV, TSV, JSON or JSONL manifest with columns prompt, path and perhaps seed, or a folder
that holds images.parquet, captions.csv (prompt, path), metadata.csv (file_name, text) or NAME.txt beside every image. Two sets are compared image by image: pairs have the
same prompt and seed; without seeds, the same place among the images of their prompt. A folder whose subfolders hold
images.parquet or captions.csv means all of these sets, such as the samples of a fine-tuning run, but for the baseline.

scores.parquet is written after each metric, and with what is known when a run is stopped or fails; what it has is not
computed again, and evaluations at the same time add to one table. A file of that name that evaluate did not write stays: --output
names another folder. With --shard, parts score image by image; the last to end measures what needs all images at once
(diversity, distances), and prints and reports as one process would.

Metrics with weights, NAME=PATH: social-reward and clip-score (a CLIP: folder, state dict, hub id or random:tiny), pick-score,
hps-v2, hps-v2.1, image-reward (a folder), and aesthetic (a head; needs --clip).

Metrics of pixels: saturation, contrast, edge-density, colour-entropy.

Metrics by embeddings of --clip, else of the first metric that has a CLIP: diversity and, against a baseline, fid-clip and
kid-clip.")]
pub(crate) struct EvaluateArgs {
    /// Images to judge: images.parquet, a CSV or JSONL manifest, a folder with captions, or a folder of such folders; several are
    /// each compared with the baseline
    #[arg(long, value_name = "SET", num_args = 1..)]
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_many")]
    pub(crate) images: Vec<PathBuf>,
    /// Images to compare them with, pair by pair
    #[arg(long, value_name = "SET")]
    pub(crate) baseline: Option<PathBuf>,
    /// Also show all figures by the values of this column of --images
    #[arg(long, value_name = "COLUMN")]
    pub(crate) slice_by: Option<String>,
    /// What to measure: NAME or NAME=PATH, separated by commas
    #[arg(long, value_name = "NAME[=PATH],…", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) metrics: Vec<String>,
    /// CLIP that diversity, fid-clip and kid-clip are measured with, and that the head of aesthetic stands on
    #[arg(long, value_name = "CKPT")]
    pub(crate) clip: Option<String>,
    /// Overrides the activation of the CLIPs of social-reward, clip-score and --clip
    #[arg(long, value_parser = PossibleValuesParser::new(["quick-gelu", "gelu"]))]
    pub(crate) activation: Option<String>,
    /// Folder for scores.parquet, which is also the cache [default: the folder of the last of --images]
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Write a report here, one HTML file with everything in it
    #[arg(long, value_name = "HTML")]
    pub(crate) report: Option<PathBuf>,
    /// Images per pass [default: 32]
    #[arg(long, value_name = "N")]
    pub(crate) batch_size: Option<usize>,
    /// Threads that decode [default: as many as this process may use]
    #[arg(long, value_name = "N")]
    pub(crate) num_workers: Option<usize>,
    /// Refuse pictures with more pixels; decoding takes half of the free memory at most [default: 178956970, Pillow's limit]
    #[arg(long, value_name = "N")]
    pub(crate) max_pixels: Option<u64>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) shard: ShardArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) compute: ComputeArgs,
    /// Print one JSON document
    #[arg(long)]
    #[serde(skip)]
    pub(crate) json: bool,
    /// TOML file with any of these settings; a flag beats the file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
}

/// A path, or a list of them.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "images: want a path or a list of paths")]
    enum Paths {
        One(PathBuf),
        Many(Vec<PathBuf>),
    }
    Ok(match Paths::deserialize(deserializer)? {
        Paths::One(path) => vec![path],
        Paths::Many(paths) => paths,
    })
}

impl EvaluateArgs {
    /// The metrics as typed, or what is wrong with one.
    pub(crate) fn specs(&self) -> reward::Result<Vec<MetricSpec>> {
        self.metrics.iter().map(|text| text.trim().parse()).collect()
    }
}
