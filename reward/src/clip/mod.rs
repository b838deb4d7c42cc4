//! CLIP (Radford et al., 2021, <https://arxiv.org/abs/2103.00020>): text clean-up and tokens, preprocessing, both towers.

mod clean;
pub mod preprocess;
pub mod tokenizer;
