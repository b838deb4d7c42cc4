//! `social-reward diffusion`.

mod bad;
mod finetune;
pub(crate) mod generate;
mod interrupted;
pub(crate) mod methods;
mod models;
