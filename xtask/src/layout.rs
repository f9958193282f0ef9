//! Where things lie in the clone.

use std::env;
use std::path::PathBuf;

/// The workspace's root folder.
///
/// Cargo names the package it runs at run time, which is right even where several clones share a target folder and
/// with it this program; without cargo, the folder it was compiled in.
pub(crate) fn root() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let mut root = PathBuf::from(package);
    root.pop();
    root
}

/// The folder that holds all that set-up fetches; ignored by git, safe to delete.
pub(crate) fn home() -> PathBuf {
    root().join(".connect")
}

/// The virtual environment.
pub(crate) fn venv() -> PathBuf {
    home().join("venv")
}

/// The virtual environment's interpreter.
pub(crate) fn python() -> PathBuf {
    venv().join("bin/python")
}

/// A link to the virtual environment's site-packages, so that no path depends on the version of Python.
pub(crate) fn site() -> PathBuf {
    home().join("site")
}

/// The script that answers for clang; see `.cargo/config.toml`.
pub(crate) fn clang() -> PathBuf {
    home().join("clang")
}

/// The NIXL releases of the compatibility test, one folder each.
pub(crate) fn nixl_versions() -> PathBuf {
    home().join("nixl")
}
