//! Flags that several commands share.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{Args, builder::PossibleValuesParser};
use reward::world::shard::Shard;
use serde::{Deserialize, Serialize};

/// How images are read.
#[derive(Args, Serialize, Deserialize, Default)]
pub(crate) struct ImageArgs {
    /// Refuse pictures with more pixels; decoding takes half of the free memory at most [default: 178956970, Pillow's limit]
    #[arg(long, value_name = "N")]
    pub(crate) max_pixels: Option<u64>,
    /// Apply the EXIF orientation (the original does not)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub(crate) exif_rotate: Option<bool>,
    /// Decode large JPEGs at 1/2, 1/4 or 1/8 of their size: 1.5 times as fast at 1024 x 1024, where scores move by 0.02 of
    /// their standard deviation on average, 0.07 at most (ViT-L/14, 40 pictures)
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub(crate) fast_decode: Option<bool>,
    /// Relative image paths start here instead of at the table's folder
    #[arg(long, value_name = "DIR")]
    pub(crate) image_root: Option<PathBuf>,
    /// What an unreadable image does [default: stop]
    #[arg(long, value_parser = PossibleValuesParser::new(["stop", "skip"]))]
    pub(crate) on_bad_image: Option<String>,
    /// Threads that decode [default: as many as this process may use]
    #[arg(long, value_name = "N")]
    pub(crate) num_workers: Option<usize>,
}

/// Device, seed, threads, and how a CLIP is opened.
#[derive(Args, Serialize, Deserialize, Default)]
pub(crate) struct CommonArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) compute: ComputeArgs,
    /// Overrides the model's activation
    #[arg(long, value_parser = PossibleValuesParser::new(["quick-gelu", "gelu"]))]
    pub(crate) activation: Option<String>,
    /// Which model of a checkpoint that holds several (ema, state_dict.model, …), as the error lists them
    #[arg(long, value_name = "NAME")]
    pub(crate) weights: Option<String>,
}

/// How the processes of one run find one another; they are started by torchrun, srun, mpirun or a loop that sets RANK,
/// WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
#[derive(Args, Default)]
pub(crate) struct WorldArgs {
    /// How long one of several processes may be silent before the others end, in seconds, 3 at least
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    pub(crate) rank_timeout: u64,
    /// How long several processes wait for one another at the start, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) join_timeout: u64,
}

/// Which part of the work is this process's.
#[derive(Args, Serialize, Deserialize, Default)]
pub(crate) struct ShardArgs {
    /// Do part I of N only, I from 0; `auto/N` or `auto` in a Slurm array or an indexed Kubernetes job. Parts share --output,
    /// and the last to end writes what is of all of them [default: all, or the part of this rank]
    #[arg(long, value_name = "I/N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shard: Option<Shard>,
}

/// Device, seed and threads.
#[derive(Args, Serialize, Deserialize, Default)]
pub(crate) struct ComputeArgs {
    /// auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<reward::device::DeviceName>,
    /// Seed of every random choice [default: 0]
    #[arg(long, value_name = "N")]
    #[serde(default, with = "reward::seed::optional", skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<u64>,
    /// CPU threads to compute with [default: as many as this process may use; 1 for tiny models]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}
