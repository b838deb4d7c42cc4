//! The `social-reward` binary: glue around the library crates, and the only code that prints.

fn main() {}
