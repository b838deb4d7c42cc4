//! Pair statistics: accuracy, intervals, slices.

pub mod intervals;
pub mod pairwise;
pub mod slices;
pub mod table;
