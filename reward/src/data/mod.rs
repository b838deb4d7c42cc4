//! From files to triplets: parquet rows, manifests, preflight, image decoding, worker threads.

pub(crate) mod columns;
mod distinct;
pub mod image;
pub mod image_set;
pub mod image_sets;
pub mod loader;
pub mod manifest;
pub mod named;
pub mod preflight;
pub mod prompts;
pub mod source;
pub mod triplets;
