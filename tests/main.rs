//! The program as its users run it: every test starts the binary.

mod harness;
