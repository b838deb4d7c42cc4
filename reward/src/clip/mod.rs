//! CLIP (Radford et al., 2021, <https://arxiv.org/abs/2103.00020>): text clean-up and tokens, preprocessing, both towers.

#[cfg(feature = "torch")]
pub mod block;
pub(crate) mod clean;
pub mod config;
#[cfg(feature = "torch")]
pub mod in_graph;
#[cfg(feature = "torch")]
pub mod model;
pub mod preprocess;
pub mod tokenizer;
