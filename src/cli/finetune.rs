//! The command `social-reward diffusion finetune`.

use std::path::PathBuf;

use clap::{Args, builder::PossibleValuesParser};
#[cfg(feature = "torch")]
use diffusion::algorithm::{ALL, Method};
use serde::Serialize;

use super::common::{ComputeArgs, WorldArgs};

/// The names of all methods.
#[cfg(feature = "torch")]
fn methods() -> PossibleValuesParser {
    PossibleValuesParser::new(ALL.map(|method| method.name))
}

/// What each method does, in one line of help.
#[cfg(feature = "torch")]
fn method_help() -> String {
    let each: Vec<String> = ALL.iter().map(|method| format!("{method}, {}", method.title)).collect();
    format!("The method: {}", each.join("; "))
}

/// Any name: the portable build does not fine-tune.
#[cfg(not(feature = "torch"))]
fn methods() -> clap::builder::StringValueParser {
    clap::builder::StringValueParser::new()
}

/// Help of a setting whose default depends on the method: `what` it is, and the default `of` each method.
#[cfg(feature = "torch")]
fn published(what: &str, of: impl Fn(&Method) -> f64) -> String {
    let defaults: Vec<String> = ALL.iter().map(|method| format!("{method} {}", of(method))).collect();
    format!("{what} [default: as published: {}]", defaults.join(", "))
}

/// Help of the gradient through the unconditional pass, with the methods that have none.
#[cfg(feature = "torch")]
fn negative_branch_help() -> String {
    let without = ALL.iter().filter(|method| !method.negative_branch_gradient).map(|method| method.name);
    let without = without.collect::<Vec<_>>().join(", ");
    format!("Gradients flow through the unconditional pass [default: as published: all but {without}]")
}

#[cfg(not(feature = "torch"))]
fn negative_branch_help() -> &'static str {
    "Gradients flow through the unconditional pass"
}

/// Help of a setting `name` that some methods read: `what` it is, and the default `of` each of those.
#[cfg(feature = "torch")]
fn of_readers(name: &str, what: &str, of: impl Fn(&Method) -> f64) -> String {
    let readers = ALL.iter().filter(|method| method.reads.contains(&name));
    let defaults: Vec<String> = readers.map(|method| format!("{method} {}", of(method))).collect();
    format!("{what} [default: {}]", defaults.join(", "))
}

#[cfg(not(feature = "torch"))]
struct Method {
    guidance_scale: f64,
    eta: f64,
    kl: f64,
    beta: f64,
}

#[cfg(not(feature = "torch"))]
fn of_readers(_: &str, what: &str, _: impl Fn(&Method) -> f64) -> String {
    what.to_owned()
}

#[cfg(not(feature = "torch"))]
fn method_help() -> &'static str {
    "The method"
}

#[cfg(not(feature = "torch"))]
fn published(what: &str, _: impl Fn(&Method) -> f64) -> String {
    what.to_owned()
}

/// Flags of `diffusion finetune`; every one but the last three is also a key of the `--config` file, with underscores.
#[derive(Args, Serialize)]
#[command(after_help = "Examples:
  What would it take? Trainable parameters, memory, seconds a step, measured on one:
    social-reward diffusion finetune --config configs/finetune/social-reward-sd21.toml --reward clip_model/final \\
      --prompts prompts.txt --held-out-prompts held-out.txt --output tuned --dry-run
  The run, and going on where it stopped:
    social-reward diffusion finetune --config configs/finetune/social-reward-sd21.toml --reward clip_model/final \\
      --prompts prompts.txt --held-out-prompts held-out.txt --output tuned [--resume]
  Without any download, to see that all works:
    social-reward diffusion finetune --algorithm draft-k --model random:sd-tiny --reward random:tiny \\
      --prompts prompts.txt --sample-steps 5 --train-steps 5 --scale-images 4 --output try

--output receives lora/ (pytorch_lora_weights.safetensors for diffusers, kohya.safetensors) or model/ (a diffusers folder),
best/, checkpoints/, samples/, metrics.jsonl, TensorBoard events and config.toml.")]
pub(crate) struct FinetuneArgs {
    #[arg(long, value_name = "NAME", help = method_help(), value_parser = methods())]
    algorithm: Option<String>,
    /// Stable Diffusion 1.x or 2.x: diffusers folder, single file (.safetensors, .ckpt), hub id or random:NAME
    #[arg(long, value_name = "SD")]
    model: Option<String>,
    /// What is to rise: PATH, NAME=PATH or PATH@WEIGHT; may be given several times. NAME is social-reward if none is given, or
    /// clip-score, aesthetic, pick-score, hps-v2, hps-v2.1 or image-reward. Or a program, command:LABEL=CMD, or a server,
    /// http:LABEL=URL. At weight 0 a reward is only watched
    #[arg(long, value_name = "REWARD")]
    reward: Option<Vec<String>>,
    /// The CLIP ViT-L/14 that the reward `aesthetic` stands on
    #[arg(long, value_name = "PATH")]
    clip: Option<String>,
    /// Overrides the activation of the CLIPs of social-reward, clip-score and --clip
    #[arg(long, value_parser = PossibleValuesParser::new(["quick-gelu", "gelu"]))]
    activation: Option<String>,
    /// For command: and http: rewards: the longest silence while an answer is due [default: 120]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    reward_timeout: Option<f64>,
    /// For command: and http: rewards: how often to start the program, or send the request, again [default: 0]
    #[arg(long, value_name = "N")]
    reward_restarts: Option<u32>,
    /// Unit of rewards: of the base model's images, or none [default: standardised]
    #[arg(long, value_parser = PossibleValuesParser::new(["standardised", "raw"]))]
    reward_scale: Option<String>,
    /// Images of the base model that give the unit [default: 64]
    #[arg(long, value_name = "N")]
    scale_images: Option<u32>,
    /// Training prompts, one per line, or a table with a column `prompt` (.parquet, .csv, .tsv, .json, .jsonl)
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Prompts that are never trained on, to watch the run by
    #[arg(long, value_name = "FILE")]
    held_out_prompts: Option<PathBuf>,
    /// Images (of denoising: rows) of each evaluation [default: 16]
    #[arg(long, value_name = "N")]
    held_out_images: Option<u32>,
    /// For denoising: table with columns `prompt` and `path` (.parquet, .csv, .tsv, .json, .jsonl)
    #[arg(long, value_name = "FILE")]
    images: Option<PathBuf>,
    /// For dpo and kto: triplets as reward training takes them (parquet files, globs or folders)
    #[arg(long, value_name = "FILE", num_args = 1..)]
    training_file: Option<Vec<String>>,
    /// For kto: table with columns `prompt`, `path`, `liked` and, if rows count differently, `weight`
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Where relative paths of --training-file and --labels start [default: each table's folder]
    #[arg(long, value_name = "DIR")]
    image_root: Option<PathBuf>,
    /// Folder for the run
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Optimizer steps [default: 200]
    #[arg(long, value_name = "N")]
    train_steps: Option<u32>,
    /// Sampling steps of an image [default: 50]
    #[arg(long, value_name = "N")]
    sample_steps: Option<u32>,
    #[arg(long, value_name = "X", allow_hyphen_values = true, help = published("Classifier-free guidance; 1 is none", |method| method.guidance_scale))]
    guidance_scale: Option<f64>,
    #[arg(long, value_name = "X", allow_hyphen_values = true, help = published("Noise of DDIM's steps, 0 to 1", |method| method.eta))]
    eta: Option<f64>,
    /// Sampler of roll-outs; others than ddim for nft, rwr, best-of-n and dpo [default: ddim]
    #[arg(long, value_parser = PossibleValuesParser::new(["ddim", "dpmpp-2m", "euler", "euler-a"]))]
    scheduler: Option<String>,
    /// Takes the place of the empty prompt in guidance
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Height of images [default: the model's]
    #[arg(long, value_name = "PIXELS")]
    height: Option<u32>,
    /// Width of images [default: the model's]
    #[arg(long, value_name = "PIXELS")]
    width: Option<u32>,
    /// Images of one optimizer step [default: 4]
    #[arg(long, value_name = "N")]
    batch_size: Option<u32>,
    /// How many of them share a prompt [default: 1; of grpo, nft, best-of-n and dpo the largest divisor of the batch up to 8]
    #[arg(long, value_name = "N")]
    images_per_prompt: Option<u32>,
    /// Micro-batches that a batch is split into [default: as few as fit into memory]
    #[arg(long, value_name = "N")]
    gradient_accumulation: Option<u32>,
    /// Learning rate of AdamW [default: 1e-4]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    learning_rate: Option<f64>,
    /// AdamW's weight decay [default: 0]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    weight_decay: Option<f64>,
    /// Scale larger gradients down to this norm; 0 never [default: 1]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    clip_norm: Option<f64>,
    /// Learning rate after the warm-up [default: constant]
    #[arg(long, value_parser = PossibleValuesParser::new(["constant", "cosine"]))]
    schedule: Option<String>,
    /// Steps of linear warm-up [default: 0]
    #[arg(long, value_name = "N")]
    warmup_steps: Option<u32>,
    /// What trains: adapters, or every weight of the UNet [default: lora]
    #[arg(long, value_parser = PossibleValuesParser::new(["lora", "full"]))]
    train: Option<String>,
    /// Rank of new adapters [default: 8]
    #[arg(long, value_name = "N")]
    lora_rank: Option<u32>,
    /// Alpha of new adapters [default: the rank]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    lora_alpha: Option<f64>,
    /// Ends of the names of layers that get one [default: to_q to_k to_v to_out.0]
    #[arg(long, value_name = "LAYER", num_args = 1..)]
    lora_targets: Option<Vec<String>>,
    /// LoRA to start from (of diffusers, PEFT, kohya, ComfyUI or OneTrainer); of several, their sum trains
    #[arg(long, value_name = "PATH[@SCALE]")]
    lora: Option<Vec<String>>,
    /// Steps that train [default: draft-k 1, drtune 3]
    #[arg(long, value_name = "K")]
    truncation_steps: Option<u32>,
    /// For draft-lv: noised copies of each image [default: 2]
    #[arg(long, value_name = "N")]
    copies: Option<u32>,
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true, help = negative_branch_help())]
    negative_branch_gradient: Option<bool>,
    /// Factor on the squared distance of ε from the base model's [default: 0]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    anchor: Option<f64>,
    /// Loss of a reward r: -r, or relu(margin - r) [default: negative]
    #[arg(long, value_parser = PossibleValuesParser::new(["negative", "relu"]))]
    shaping: Option<String>,
    /// Margin of the relu [default: 2]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    margin: Option<f64>,
    /// Factor on the reward's part of the loss [default: 1]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    loss_scale: Option<f64>,
    /// Deviation of noise on the pixels that the reward sees [default: 0]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pixel_noise: Option<f64>,
    /// Noise on the reward's weights, as a share of each tensor's deviation [default: 0]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    weight_noise: Option<f64>,
    /// For denoising: γ of min-SNR weighting [default: none]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    snr_gamma: Option<f64>,
    /// For denoising: steps that train the VAE first [default: 0]
    #[arg(long, value_name = "N")]
    vae_steps: Option<u32>,
    /// Learning rate of those [default: 1e-3]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    vae_learning_rate: Option<f64>,
    /// For denoising, dpo, kto: share of images whose prompt is left out [default: 0.1]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    prompt_dropout: Option<f64>,
    /// Passes over a roll-out: ddpo, grpo, nft, rwr, best-of-n [default: 1]
    #[arg(long, value_name = "N")]
    inner_epochs: Option<u32>,
    /// Optimizer steps of a pass: ddpo, grpo, rwr, best-of-n [default: 1]
    #[arg(long, value_name = "N")]
    minibatches: Option<u32>,
    /// For ddpo, grpo: how far from 1 a probability ratio counts [default: 1e-4]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    clip_range: Option<f64>,
    /// For ddpo, grpo, nft: how far an advantage counts [default: 5]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    advantage_clip: Option<f64>,
    #[arg(long, value_name = "X", allow_hyphen_values = true, help = of_readers("kl", "Factor on the distance from the base model", |method| method.kl))]
    kl: Option<f64>,
    /// For ddpo: rewards that are remembered of each prompt [default: 32]
    #[arg(long, value_name = "N")]
    buffer_size: Option<u32>,
    /// For ddpo: the fewest of them that an image is judged by [default: 16]
    #[arg(long, value_name = "N")]
    buffer_min_count: Option<u32>,
    /// For grpo: images of a group begin with the same noise [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    same_noise: Option<bool>,
    /// For ddpo, grpo, nft: share of the sampling steps that train [default: 1]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    timestep_fraction: Option<f64>,
    /// For grpo, nft: whose deviation advantages are divided by [default: batch]
    #[arg(long, value_parser = PossibleValuesParser::new(["group", "batch"]))]
    deviation: Option<String>,
    /// For grpo, nft: several rewards are summed, or normalised one by one within groups [default: sum]
    #[arg(long, value_parser = PossibleValuesParser::new(["sum", "group"]))]
    reward_combination: Option<String>,
    #[arg(long, value_name = "X", allow_hyphen_values = true, help = of_readers("beta", "Strength of the comparison with a reference", |method| method.beta))]
    beta: Option<f64>,
    /// For rwr: temperature of the weights [default: 0.2]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    temperature: Option<f64>,
    /// For dpo: how a preference becomes a loss [default: sigmoid]
    #[arg(long, value_parser = PossibleValuesParser::new(["sigmoid", "hinge", "ipo"]))]
    preference_loss: Option<String>,
    /// For kto: how a like becomes a loss [default: sigmoid]
    #[arg(long, value_parser = PossibleValuesParser::new(["sigmoid", "log-sigmoid"]))]
    utility: Option<String>,
    /// For kto: share of a batch that people liked [default: 0.8]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    liked_share: Option<f64>,
    /// For dpo: steps after which the reference becomes the model; 0 never [default: 0]
    #[arg(long, value_name = "N")]
    reference_every: Option<u32>,
    /// Decay of a running mean of what trains, which is evaluated and saved [default: none]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    ema_decay: Option<f64>,
    /// Compute activations again in the backward pass [default: auto, where memory needs it]
    #[arg(long, value_parser = PossibleValuesParser::new(["auto", "on", "off"]))]
    gradient_checkpointing: Option<String>,
    /// Kind of frozen weights and activations [default: fp32; bf16 on CUDA]
    #[arg(long, value_parser = PossibleValuesParser::new(["fp32", "bf16"]))]
    precision: Option<String>,
    /// What the model predicts, over what its files say [default: what they say; epsilon where they do not]
    #[arg(long, value_parser = PossibleValuesParser::new(["epsilon", "v_prediction"]))]
    prediction_type: Option<String>,
    /// Evaluate every N steps besides before the first and after the last [default: 50]
    #[arg(long, value_name = "N")]
    evaluate_every: Option<u32>,
    /// Stop, back to the best, once the reward rose while N other measures fell [default: only report]
    #[arg(long, value_name = "N")]
    stop_after_falls: Option<u32>,
    /// Checkpoint every N steps besides after the last [default: 100]
    #[arg(long, value_name = "N")]
    checkpoint_every: Option<u32>,
    /// Checkpoints that stay on disk; 0 keeps all [default: 3]
    #[arg(long, value_name = "N")]
    keep_checkpoints: Option<u32>,
    #[command(flatten)]
    #[serde(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) world: WorldArgs,
    /// TOML file with any of these settings; a flag beats the file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
    /// Load everything, measure one step, print the plan and stop
    #[arg(long)]
    #[serde(skip)]
    pub(crate) dry_run: bool,
    /// Go on with the run in --output
    #[arg(long, conflicts_with = "dry_run")]
    #[serde(skip)]
    pub(crate) resume: bool,
}
