//! `cargo xtask env`: the set-up's paths as shell variables.
//!
//! Inside the workspace `.cargo/config.toml` says the same, so nobody needs this to build here. It is for programs
//! elsewhere that shall use the same libraries, and for running built programs without cargo.

use std::path::PathBuf;

use anyhow::Result;

use crate::layout;
use crate::process::quoted;

/// Prints `export` lines, for `eval "$(cargo xtask env)"`.
pub(crate) fn run() -> Result<()> {
    let variables: [(&str, PathBuf); 4] = [
        ("LIBTORCH", layout::site().join("torch")),
        ("LIBCLANG_PATH", layout::site().join("clang/native")),
        ("CLANG_PATH", layout::clang()),
        ("CONNECT_PYTHON", layout::python()),
    ];
    for (name, path) in variables {
        println!("export {name}={}", quoted(&path.to_string_lossy()));
        if !path.exists() {
            eprintln!("# {} is not there yet: cargo xtask setup", path.display());
        }
    }
    Ok(())
}
