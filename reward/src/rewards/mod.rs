//! Rewards: learned scores of a picture for a prompt. Each is a file that implements [`Reward`]; [`load`] makes one from its
//! [name](name::RewardName) and its weights.

#[cfg(feature = "torch")]
pub mod aesthetic;
#[cfg(feature = "torch")]
mod affine;
#[cfg(feature = "torch")]
pub mod clip;
#[cfg(feature = "torch")]
pub mod hps;
#[cfg(feature = "torch")]
pub mod image_reward;
#[cfg(feature = "torch")]
pub mod load;
pub mod name;
#[cfg(feature = "torch")]
pub mod pick_score;
#[cfg(feature = "torch")]
mod reward;
pub mod spec;

#[cfg(feature = "torch")]
pub use reward::Reward;
