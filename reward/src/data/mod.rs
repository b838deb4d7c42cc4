//! From files to triplets: parquet rows, manifests, preflight, image decoding, worker threads.

mod cell;
pub(crate) mod columns;
mod content;
mod delimited;
mod distinct;
mod folder;
mod format;
pub mod image;
pub mod image_set;
pub mod image_sets;
mod json;
pub mod liked;
pub mod loader;
pub mod manifest;
pub mod named;
pub mod parquet_writer;
mod parts;
pub mod preflight;
pub mod prompts;
mod rows;
pub mod source;
pub mod triplets;

pub use content::content_hash;
