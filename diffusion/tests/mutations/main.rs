//! Damaged files over every reader of the crate, in a process that may take 2 GB.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

mod folder;
mod lora;
#[allow(dead_code, unused_imports, reason = "shared with the tests of `reward`; a reader here may use a part of it")]
#[path = "../../../reward/tests/mutations/mutate.rs"]
mod mutate;
mod run;
mod single_file;
