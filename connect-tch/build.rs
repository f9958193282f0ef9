//! Tells this crate's own tests and examples where libtorch is, and the build scripts of those who depend on it. A
//! link argument does not reach their binaries by itself; the README has the line that passes it on. It does not reach
//! doctests either: the one in lib.rs stands alone, so that it is compiled and not started, as merged ones are.

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg-tests=-Wl,-rpath,{folder}");
        println!("cargo:rustc-link-arg-examples=-Wl,-rpath,{folder}");
        println!("cargo:libtorch_lib={folder}");
    }
}
