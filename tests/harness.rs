//! Starts the binary in a folder of its own and shows everything when a check fails.
