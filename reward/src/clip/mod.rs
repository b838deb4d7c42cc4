//! CLIP (Radford et al., 2021, <https://arxiv.org/abs/2103.00020>): text clean-up and tokens, preprocessing, both towers.

#[cfg(feature = "torch")]
pub mod block;
pub(crate) mod clean;
pub mod config;
pub mod description;
pub mod filter;
pub mod hugging_face;
#[cfg(feature = "torch")]
pub mod model;
pub mod open_clip;
pub mod preprocess;
#[cfg(feature = "torch")]
pub mod preprocess_tensor;
pub mod preprocessing;
mod side;
pub mod tokenizer;
mod vocabulary;
