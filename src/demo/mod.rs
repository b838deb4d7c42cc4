//! A toy world in which the true popularity of a picture is known, for the demo and for known-answer tests.

pub(crate) mod world;
pub(crate) mod write;
