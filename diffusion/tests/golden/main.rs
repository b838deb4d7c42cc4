//! This crate against the fixtures of `tests/golden`: what Python's libraries computed from the same files.
#![allow(clippy::unwrap_used, clippy::panic, clippy::integer_division, reason = "a test that cannot go on panics")]

mod finetune;
mod finetune_cases;
mod fixture;
mod folders;
mod lora;
mod lora_training;
mod models;
mod old_folders;
mod pipeline;
mod policy_rules;
mod refused;
mod samplers;
mod single_file;
mod tokenizer;
