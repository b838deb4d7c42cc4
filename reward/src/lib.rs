//! The Social Reward: a score of how popular an image will be for its prompt (Isajanyan et al., ICLR 2024,
//! <https://arxiv.org/abs/2402.09872>). It is a CLIP fine-tuned on (prompt, remixed image, image nobody remixed) triplets.
//!
//! A library of events and values: nothing here prints.

pub mod clip;
mod closed_set;
#[cfg(feature = "torch")]
pub mod cuda;
pub mod data;
pub mod device;
pub mod engine;
pub mod error;
pub mod evaluate;
pub mod event;
pub mod files;
pub mod foreign;
pub mod hub;
pub mod json;
pub mod loss;
pub mod measures;
#[cfg(feature = "torch")]
pub mod native;
#[cfg(feature = "torch")]
pub mod optim;
pub mod output;
pub mod rewards;
pub mod run;
pub mod scoring;
pub mod seed;
pub mod statistics;
pub mod text;
pub mod threads;
#[cfg(feature = "torch")]
pub mod train;
pub mod weights;
pub mod world;

pub use error::{Error, ErrorKind, Result};
#[doc(hidden)]
pub use serde;

/// The example of the README, which has to compile and run.
#[cfg(all(doctest, feature = "torch"))]
#[doc = include_str!("../../README.md")]
struct Readme;
