//! From files to triplets: parquet rows, manifests, preflight, image decoding, worker threads.

pub mod image;
pub mod manifest;
pub mod preflight;
pub mod triplets;
