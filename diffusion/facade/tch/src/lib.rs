//! diffusers-rs 0.3.1 asks for tch 0.13; its code compiles unchanged on tch 0.24.
pub use current::*;
