//! Compiles the C++ shim against the libtorch that torch-sys found, and lets test binaries find that libtorch.

fn main() {
    println!("cargo:rerun-if-changed=native/shim.cpp");
    #[cfg(all(feature = "torch", not(feature = "doc-only")))]
    {
        let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
            println!("cargo:warning=torch-sys does not say where libtorch is");
            return;
        };
        let root = std::path::Path::new(&lib).parent().map(std::path::Path::to_path_buf).unwrap_or_default();
        cc::Build::new()
            .cpp(true)
            .std("c++20")
            .flag_if_supported("-Wno-unused-parameter")
            .include(root.join("include"))
            .include(root.join("include/torch/csrc/api/include"))
            .opt_level(1)
            .file("native/shim.cpp")
            .compile("social_reward_shim");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
