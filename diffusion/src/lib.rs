//! Stable Diffusion 1.x and 2.x on libtorch: the models under diffusers' own key names, the samplers, LoRA, generation.
//!
//! A library of events and values: nothing here prints.

pub mod noise;
pub mod sample;
pub mod schedule;

pub use reward::{Error, ErrorKind, Result};
