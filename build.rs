//! Lets the program find libtorch without an environment variable.

include!("scripts/rpath.rs");

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=scripts/rpath.rs");
    link_libtorch(std::path::Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")));
}
