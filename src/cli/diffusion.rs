//! The commands of `social-reward diffusion`.

use std::path::PathBuf;

use clap::{Args, Subcommand, builder::PossibleValuesParser};
use serde::{Deserialize, Serialize};

use super::{
    common::{ComputeArgs, ShardArgs},
    finetune::FinetuneArgs,
};

#[derive(Subcommand)]
pub(crate) enum DiffusionCommand {
    /// Images for prompts: PNG files and a table of them
    Generate(Box<GenerateArgs>),
    /// Fine-tune a model so that a reward of its images rises
    Finetune(Box<FinetuneArgs>),
    /// Write a model as a diffusers folder, or a LoRA in the other layout
    Export(DiffusionExportArgs),
    /// Compare our models with diffusers-rs on the same weights and input
    Verify(VerifyArgs),
}

/// Flags of `diffusion generate`; every one is also a key of the `--config` file, with underscores.
#[derive(Args, Serialize)]
#[command(after_help = "Examples:
  social-reward diffusion generate --model stable-diffusion-2-1-base --prompt \"a red fox in snow\" --output fox
  social-reward diffusion generate --model sd15.safetensors --prompts prompts.txt --images-per-prompt 4 --steps 25 \\
    --scheduler dpmpp-2m --negative-prompt blurry --batch-size 8 --contact-sheet --output images
  With a LoRA, at half its strength:
    social-reward diffusion generate --model SD --lora pytorch_lora_weights.safetensors --lora-scale 0.5 \\
      --prompts prompts.parquet --output tuned
  With the base model's diversity: it makes the first 30 of 50 steps, the LoRA the others:
    social-reward diffusion generate --model SD --lora pytorch_lora_weights.safetensors --base-steps 30 \\
      --prompts prompts.parquet --output combined
  Two LoRAs at once:
    social-reward diffusion generate --model SD --lora style.safetensors@0.7 --lora fox.safetensors@0.4 \\
      --prompts prompts.parquet --output both
  Without any download, to see that all works:
    social-reward diffusion generate --model random:sd-tiny --prompt \"a red fox\" --steps 4 --output try

--output receives images/PROMPT-K.png, images.parquet (prompt, path, seed and the settings of every image) and
config.toml. The same command goes on where it stopped. Image K of every prompt has the seed --seed + K.")]
pub(crate) struct GenerateArgs {
    /// Stable Diffusion 1.x or 2.x: diffusers folder, single file (.safetensors, .ckpt), hub id or random:NAME
    #[arg(long, value_name = "SD")]
    model: Option<String>,
    /// Prompt; may be given several times
    #[arg(long, value_name = "TEXT", conflicts_with = "prompts")]
    prompt: Option<Vec<String>>,
    /// Prompts, one per line, or a table with a column `prompt` (.parquet, .csv, .tsv, .json, .jsonl)
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Folder for the images
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Images of every prompt [default: 1]
    #[arg(long, value_name = "N")]
    images_per_prompt: Option<u32>,
    /// Denoising steps [default: 50]
    #[arg(long, value_name = "N")]
    steps: Option<u32>,
    /// How strongly the prompt counts; 1 switches guidance off and halves the time [default: 7.5]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    guidance_scale: Option<f64>,
    /// What the images should not show
    #[arg(long, value_name = "TEXT")]
    negative_prompt: Option<String>,
    /// Sampler [default: ddim]
    #[arg(long, value_parser = PossibleValuesParser::new(["ddim", "dpmpp-2m", "euler", "euler-a"]))]
    scheduler: Option<String>,
    /// Noise of DDIM's steps, from 0 (none) to 1 (as DDPM) [default: 0]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    eta: Option<f64>,
    /// Height in pixels, a multiple of 8 [default: the model's]
    #[arg(long, value_name = "PIXELS")]
    height: Option<u32>,
    /// Width in pixels, a multiple of 8 [default: the model's]
    #[arg(long, value_name = "PIXELS")]
    width: Option<u32>,
    /// Images made at a time, of the same or of several prompts [default: 4]
    #[arg(long, value_name = "N")]
    batch_size: Option<u32>,
    /// Kind of weights and activations [default: fp32; bf16 on CUDA]
    #[arg(long, value_parser = PossibleValuesParser::new(["fp32", "bf16"]))]
    precision: Option<String>,
    /// LoRA to apply (of diffusers, PEFT, kohya, ComfyUI or OneTrainer), at a scale of 1 or what is said; may be given several times
    #[arg(long, value_name = "PATH[@SCALE]")]
    lora: Option<Vec<String>>,
    /// Factor on all LoRAs [default: 1]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    lora_scale: Option<f64>,
    /// Steps that the base model makes before the LoRAs join, up to --steps; some bring back diversity (ImageReFL) [default: 0]
    #[arg(long, value_name = "N")]
    base_steps: Option<u32>,
    /// What the model predicts, over what its files say [default: what they say; epsilon where they do not]
    #[arg(long, value_parser = PossibleValuesParser::new(["epsilon", "v_prediction"]))]
    prediction_type: Option<String>,
    /// Decode larger images in tiles of this side: less memory, slightly other pixels [default: whole images]
    #[arg(long, value_name = "PIXELS")]
    vae_tile: Option<u32>,
    /// Also write contact-sheet.png, a row of images for every prompt
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    contact_sheet: Option<bool>,
    /// Initial noise: tensor `latents` [prompts x images, 4, height/8, width/8] in a .safetensors file
    #[arg(long, value_name = "FILE")]
    latents: Option<PathBuf>,
    /// Write the initial noise, as --latents reads it
    #[arg(long, value_name = "FILE")]
    save_latents: Option<PathBuf>,
    /// Write the denoised latents, before the division by the VAE's scaling factor
    #[arg(long, value_name = "FILE")]
    save_final_latents: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    shard: ShardArgs,
    #[command(flatten)]
    #[serde(flatten)]
    compute: ComputeArgs,
    /// TOML file with any of these settings; a flag beats the file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
}

/// Flags of `diffusion export`.
#[derive(Args, Serialize, Deserialize, Default)]
#[serde(default)]
#[command(after_help = "Examples:
  A single file as a folder for StableDiffusionPipeline.from_pretrained:
    social-reward diffusion export --model sd15.safetensors --output sd15
  A LoRA merged into its base:
    social-reward diffusion export --model sd15 --lora lora.safetensors --lora-scale 0.8 --output sd15-tuned
  A LoRA for a web UI (an --output that ends in .safetensors converts, and merges nothing):
    social-reward diffusion export --lora pytorch_lora_weights.safetensors --format kohya --output kohya.safetensors")]
pub(crate) struct DiffusionExportArgs {
    /// Stable Diffusion 1.x or 2.x: diffusers folder, single file (.safetensors, .ckpt), hub id or random:NAME
    #[arg(long, value_name = "SD")]
    pub(crate) model: Option<String>,
    /// LoRA to merge or, if --output is a .safetensors file, to convert; may be given several times, then their sum is
    #[arg(long, value_name = "PATH[@SCALE]")]
    pub(crate) lora: Option<Vec<String>>,
    /// Factor on all LoRAs when they are merged [default: 1]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub(crate) lora_scale: Option<f64>,
    /// Layout that a LoRA is converted to
    #[arg(long, value_parser = PossibleValuesParser::new(["diffusers", "kohya"]))]
    pub(crate) format: Option<String>,
    /// What the model predicts, over what its files say [default: what they say; epsilon where they do not]
    #[arg(long, value_parser = PossibleValuesParser::new(["epsilon", "v_prediction"]), requires = "model")]
    pub(crate) prediction_type: Option<String>,
    /// Kind of the written weights [default: fp32]
    #[arg(long, value_parser = PossibleValuesParser::new(["fp32", "fp16"]))]
    pub(crate) precision: Option<String>,
    /// Folder or, for a LoRA, .safetensors file to write
    #[arg(long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) compute: ComputeArgs,
    /// TOML file with any of these settings; a flag beats the file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
}

/// Flags of `diffusion verify`.
#[derive(Args, Serialize, Deserialize, Default)]
#[serde(default)]
#[command(after_help = "Examples:
  social-reward diffusion verify --model stable-diffusion-2-1-base
  social-reward diffusion verify --model sd15.safetensors --lora lora.safetensors --device cuda --precision bf16 --json

The model is loaded strictly; text encoder, UNet and VAE run once on the same input in our code and in diffusers-rs (in
fp32). Exit code 0: they match; 1: they do not, or the model does not load.")]
pub(crate) struct VerifyArgs {
    /// Stable Diffusion 1.x or 2.x: diffusers folder, single file (.safetensors, .ckpt), hub id or random:NAME
    #[arg(long, value_name = "SD")]
    pub(crate) model: Option<String>,
    /// LoRA to apply; the reference gets it merged into its weights; may be given several times
    #[arg(long, value_name = "PATH[@SCALE]")]
    pub(crate) lora: Option<Vec<String>>,
    /// Factor on all LoRAs [default: 1]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub(crate) lora_scale: Option<f64>,
    /// Prompt to encode [default: a photo of a red fox in the snow]
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// Kind of our weights and activations; the reference computes in fp32 [default: fp32]
    #[arg(long, value_parser = PossibleValuesParser::new(["fp32", "bf16"]))]
    pub(crate) precision: Option<String>,
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
