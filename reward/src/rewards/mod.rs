//! Rewards: learned scores of a picture for a prompt. Each is a file that implements [`Reward`]; [`load`] makes one from its
//! [name](name::RewardName) and its weights, or from a [program or server](external) of the user.

#[cfg(feature = "torch")]
pub mod aesthetic;
#[cfg(feature = "torch")]
mod affine;
#[cfg(feature = "torch")]
pub mod clip;
#[cfg(feature = "torch")]
pub mod external;
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
#[cfg(feature = "torch")]
mod self_test;
pub mod spec;

#[cfg(feature = "torch")]
pub use reward::{Pending, Reward};
#[cfg(feature = "torch")]
pub use self_test::self_test;
