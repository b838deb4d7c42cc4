//! Damaged files over every reader of the crate, in a process that may take 2 GB.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

mod images;
mod mutate;
mod text;
