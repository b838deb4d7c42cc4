//! This crate against the fixtures of `tests/golden`: what Python's libraries computed from the same files.

mod fixture;
#[cfg(feature = "torch")]
mod forward;
mod forward_candle;
mod models;
#[cfg(feature = "torch")]
mod optimizer;
#[cfg(feature = "torch")]
mod precision;
mod refused;
mod round_trip;
#[cfg(feature = "torch")]
mod trainer;
