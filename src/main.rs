//! The `social-reward` binary: glue around the library crates, and the only code that prints.

#[cfg_attr(not(test), expect(dead_code, reason = "no command calls it yet"))]
mod demo;

fn main() {}
