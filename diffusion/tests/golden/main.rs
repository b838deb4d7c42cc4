//! This crate against the fixtures of `tests/golden`: what Python's libraries computed from the same files.
#![allow(clippy::unwrap_used, clippy::panic, clippy::integer_division, reason = "a test that cannot go on panics")]

mod fixture;
mod models;
mod pipeline;
mod refused;
mod samplers;
mod tokenizer;
