//! `social-reward diffusion`.

mod bad;
mod finetune;
pub(crate) mod generate;
mod interrupted;
mod methods;
mod models;
