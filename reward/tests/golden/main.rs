//! This crate against the fixtures of `tests/golden`: what Python's libraries computed from the same files.
#![allow(clippy::unwrap_used, clippy::panic, clippy::integer_division, reason = "a test that cannot go on panics")]

mod fixture;
#[cfg(feature = "torch")]
mod forward;
mod forward_candle;
#[cfg(feature = "torch")]
mod in_memory;
#[cfg(feature = "torch")]
mod metrics;
mod models;
#[cfg(feature = "torch")]
mod optimizer;
#[cfg(feature = "torch")]
mod precision;
mod preprocessing;
mod refused;
mod round_trip;
#[cfg(feature = "torch")]
mod trainer;
mod wrapped;
