//! Training the reward: settings, what trains, the frozen prefix's cache, the loop, checkpoints.

mod checkpoint;
pub mod config;
pub mod encoder;
pub mod fit;
mod inputs;
pub mod prefix_cache;
mod prepare;
pub mod step;
pub mod trainable;
mod validate;

pub use inputs::resumed_step;
