//! Statistics: pair accuracy, intervals, slices; one set of images against another.

pub mod agreement;
pub mod best_of;
pub mod comparison;
pub mod intervals;
pub mod pairwise;
pub mod sign_test;
pub mod slices;
pub mod table;
