//! Tells this crate's own tests and examples where libtorch is, and the build scripts of those who depend on it. A
//! link argument does not reach their binaries by itself; the README has the line that passes it on. It does not reach
//! doctests either: each stands alone, so that it is compiled and not started, as merged ones are.

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        // For every binary of this package: the tests beside the code are one, too.
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        println!("cargo:libtorch_lib={folder}");
    }
}
