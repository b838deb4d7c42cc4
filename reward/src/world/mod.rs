//! The processes of a run as one: who this one is among them, the sums and exchanges they make, and how they end together.

#[cfg(feature = "torch")]
mod c10d;
#[cfg(feature = "torch")]
mod collective;
pub mod launch;
#[cfg(feature = "torch")]
mod nccl;
pub mod shard;
#[cfg(feature = "torch")]
mod watch;

#[cfg(all(test, feature = "torch"))]
pub(crate) use collective::tests;
#[cfg(feature = "torch")]
pub use collective::{Options, World, me};
