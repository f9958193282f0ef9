//! Tells the program and the test where libtorch is.

fn main() {
    let libtorch = std::env::var("DEP_CONNECT_TCH_LIBTORCH_LIB").expect("connect-tch is a direct dependency");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}");
}
