//! The Social Reward: a CLIP fine-tuned on (prompt, remixed image, image nobody remixed) triplets into a score of how
//! popular an image will be for its prompt (Isajanyan et al., ICLR 2024, <https://arxiv.org/abs/2402.09872>).
//!
//! A library of events and values: nothing here prints.

pub mod clip;
pub mod data;
pub mod device;
pub mod error;
pub mod eval;
pub mod evaluate;
pub mod event;
pub mod foreign;
pub mod hub;
pub mod json;
#[cfg(feature = "torch")]
pub mod loss;
#[cfg(feature = "torch")]
pub mod metrics;
#[cfg(feature = "torch")]
pub mod native;
#[cfg(feature = "torch")]
pub mod optim;
pub mod output;
pub mod run;
pub mod score;
pub mod seed;
pub mod text;
pub mod threads;
#[cfg(feature = "torch")]
pub mod train;
pub mod weights;

pub use error::{Error, ErrorKind, Result};
