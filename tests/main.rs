//! The program as its users run it: every test starts the binary.
#![allow(clippy::unwrap_used, clippy::panic, clippy::integer_division, reason = "a test that cannot go on panics")]
#![cfg_attr(not(feature = "torch"), allow(dead_code, unused_imports, reason = "tests that train need libtorch"))]
#![cfg(unix)]

mod bad_settings;
mod busy_machine;
mod commands;
#[cfg(feature = "torch")]
mod cuda;
#[cfg(feature = "torch")]
mod demo;
#[cfg(feature = "torch")]
mod diffusion;
mod evaluate;
mod help;
#[cfg(feature = "torch")]
mod ranks;
mod reward;
#[cfg(feature = "torch")]
mod shards;
mod support;
