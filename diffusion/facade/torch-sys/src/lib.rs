//! diffusers-rs 0.3.1 asks for torch-sys 0.13; its code compiles unchanged on torch-sys 0.24.
pub use current::*;
