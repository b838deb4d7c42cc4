//! The program as its users run it: every test starts the binary.
#![allow(clippy::unwrap_used, clippy::panic, clippy::integer_division, reason = "a test that cannot go on panics")]
#![cfg_attr(not(feature = "torch"), allow(dead_code, unused_imports, reason = "tests that train need libtorch"))]
#![cfg(unix)]

mod bad_images;
mod bad_models;
mod bad_settings;
mod bad_tables;
mod busy_machine;
mod commands;
#[cfg(feature = "torch")]
mod cuda;
#[cfg(feature = "torch")]
mod demo;
#[cfg(feature = "torch")]
mod demo_figures;
#[cfg(feature = "torch")]
mod diffusion_bad;
#[cfg(feature = "torch")]
mod diffusion_finetune;
#[cfg(feature = "torch")]
mod diffusion_generate;
#[cfg(feature = "torch")]
mod diffusion_interrupted;
#[cfg(feature = "torch")]
mod diffusion_models;
mod evaluate;
mod evaluate_kept;
mod evaluate_sets;
#[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "the portable build does not train"))]
mod harness;
mod help;
mod image_sets;
#[cfg(feature = "torch")]
mod interrupted;
mod model_files;
mod report_browser;
#[cfg(feature = "torch")]
mod same_losses;
mod score_kept;
#[cfg(feature = "torch")]
mod shuffled_labels;
#[cfg(feature = "torch")]
mod tensors;
mod triplets;
mod webdriver;
