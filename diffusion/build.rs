//! Lets test binaries find libtorch without an environment variable.

use std::path::Path;

include!("../scripts/rpath.rs");

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../scripts/rpath.rs");
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo");
    link_libtorch(Path::new(&manifest).parent().expect("the workspace"));
}
