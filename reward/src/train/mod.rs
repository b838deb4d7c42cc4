//! Training the reward: settings, what trains, the frozen prefix's cache, the loop, checkpoints.

pub mod config;
pub mod encoder;
pub mod fit;
mod inputs;
mod plan;
pub mod prefix_cache;
mod prepare;
mod saved;
pub mod step;
pub mod trainable;
mod validate;

pub use inputs::resumed_step;
