//! The Social Reward: a CLIP fine-tuned on (prompt, remixed image, image nobody remixed) triplets into a score of how
//! popular an image will be for its prompt (Isajanyan et al., ICLR 2024, <https://arxiv.org/abs/2402.09872>).
//!
//! A library of events and values: nothing here prints.

pub mod clip;
pub mod data;
pub mod error;
pub mod eval;

pub use error::{Error, ErrorKind, Result};
