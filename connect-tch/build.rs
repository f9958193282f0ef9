//! Tells this crate's own tests, those beside the code included, where libtorch is. A link argument does not reach the
//! binaries of users: those set an rpath themselves, or `LD_LIBRARY_PATH` (the crate's documentation shows both). It does
//! not reach doctests either: the one in lib.rs stands alone, so that it is compiled and not started, as merged ones are.

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
