//! Stable Diffusion 1.x and 2.x on libtorch: the models under diffusers' own key names, the samplers, LoRA, generation.
//!
//! A library of events and values: nothing here prints.

pub mod advantage;
pub mod algorithm;
mod attention;
pub mod conditioning;
pub mod config;
pub mod denoise;
pub mod export;
pub mod finetune;
pub mod folder;
pub mod generate;
mod hub;
mod json;
pub mod layer;
pub mod lora;
mod metadata;
pub mod micro_batches;
pub mod noise;
pub mod objective;
pub mod old_policy;
pub mod pictures;
pub mod pipeline;
pub mod policy;
pub mod preference;
pub mod prompt_encoder;
pub mod prompts;
pub mod remark;
mod residual;
pub mod sample;
pub mod save;
pub mod schedule;
pub mod single_file;
pub mod source;
pub mod text;
pub mod tokenizer;
pub mod trajectory;
pub mod unet;
pub mod vae;
#[cfg(feature = "reference")]
pub mod verify;
pub mod weights;

pub use reward::{Error, ErrorKind, Result};
