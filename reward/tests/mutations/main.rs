//! Damaged files over every reader of the crate, in a process that may take 2 GB.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

mod clip_folder;
#[cfg(feature = "torch")]
mod image_reward;
mod images;
mod mutate;
#[cfg(feature = "torch")]
mod run;
mod tables;
mod text;
mod weights;
