//! Shared by tests: a folder to run the program in, and files to run it on.

#[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "the portable build does not train"))]
pub(crate) mod harness;
pub(crate) mod image_sets;
#[cfg(feature = "torch")]
pub(crate) mod tensors;
pub(crate) mod triplets;
pub(crate) mod webdriver;
