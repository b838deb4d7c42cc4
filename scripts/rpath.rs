/// Where the programs and tests of this package find libtorch at run time; `include!`d by the build scripts, since a link
/// argument does not pass from a dependency. Relative for `.libtorch`, so that the checkout may move; absolute for a
/// `LIBTORCH` of the user's own, and last, for a `CARGO_TARGET_DIR` elsewhere.
fn link_libtorch(workspace: &std::path::Path) {
    println!("cargo::rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    // Set by torch-sys; not in portable and `doc-only` builds.
    let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(std::path::PathBuf::from) else { return };
    if lib == workspace.join(".libtorch/lib") {
        // target/debug/ and target/debug/{deps,examples}/
        println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../../.libtorch/lib");
        println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../../../.libtorch/lib");
    }
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
