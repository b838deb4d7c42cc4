//! `social-reward reward`.

mod bad_models;
mod images;
#[cfg(feature = "torch")]
mod interrupted;
mod model_files;
#[cfg(feature = "torch")]
mod same_losses;
mod score_kept;
#[cfg(feature = "torch")]
mod shuffled_labels;
mod tables;
