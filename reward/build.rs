//! Compiles the C++ shim against the libtorch that torch-sys found, and lets test binaries find that libtorch.

use std::path::Path;

include!("../scripts/rpath.rs");

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../scripts/rpath.rs");
    println!("cargo::rerun-if-changed=native");
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo");
    link_libtorch(Path::new(&manifest).parent().expect("the workspace"));
    #[cfg(all(feature = "torch", not(feature = "doc-only")))]
    compile_shim();
}

#[cfg(all(feature = "torch", not(feature = "doc-only")))]
fn compile_shim() {
    let lib = std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is");
    let include = Path::new(&lib).with_file_name("include");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .flag_if_supported("-Wno-unused-parameter")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .include("native")
        .define("USE_C10D_GLOO", None)
        .opt_level(1)
        .file("native/shim.cpp")
        .file("native/world.cpp")
        .compile("social_reward_shim");
}
