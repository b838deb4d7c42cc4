//! Damaged files over every reader of the crate, in a process that may take 2 GB.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

mod mutate;
#[cfg(feature = "torch")]
mod run;
mod text;
