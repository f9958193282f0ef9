//! Tells this crate's own tests where libtorch is. A link argument does not reach the binaries of users: those
//! set an rpath themselves, or `LD_LIBRARY_PATH` (the crate's documentation shows both).

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(folder) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg-tests=-Wl,-rpath,{folder}");
    }
}
