//! What a test needs beyond Rust. Where it is missing, the test says so on stderr and passes; with
//! `CONNECT_REQUIRE_NIXL` or `CONNECT_REQUIRE_PYTHON` set, as in CI, it fails.

use std::env;
use std::path::{Path, PathBuf};

/// Whether this process can use NIXL.
///
/// # Panics
/// It can't, and `CONNECT_REQUIRE_NIXL` is set.
#[cfg(feature = "nixl")]
pub fn nixl() -> bool {
    match connect_core::transport::nixl::load(None) {
        Ok(_) => true,
        Err(error) => missing("CONNECT_REQUIRE_NIXL", &error.to_string()),
    }
}

/// The folder of an older NIXL release, as `cargo xtask setup` fetches it.
///
/// # Panics
/// It is not there, and `CONNECT_REQUIRE_NIXL` is set.
pub fn nixl_release(version: &str) -> Option<PathBuf> {
    let folder = workspace().join(".connect/nixl").join(version);
    if !folder.is_dir() {
        missing("CONNECT_REQUIRE_NIXL", &format!("NIXL {version} is not at {}", folder.display()));
        return None;
    }
    Some(folder)
}

/// The interpreter that has the Python original: `CONNECT_PYTHON`, else that of `cargo xtask setup`.
///
/// # Panics
/// There is none, and `CONNECT_REQUIRE_PYTHON` is set.
pub fn python() -> Option<PathBuf> {
    let python = match env::var_os("CONNECT_PYTHON") {
        Some(python) => PathBuf::from(python),
        None => workspace().join(".connect/venv/bin/python"),
    };
    if !python.exists() {
        missing("CONNECT_REQUIRE_PYTHON", &format!("there is no {}", python.display()));
        return None;
    }
    Some(python)
}

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

fn missing(required_by: &str, what: &str) -> bool {
    assert!(env::var_os(required_by).is_none(), "{required_by} is set, but {what}");
    eprintln!("skipped: {what} (`cargo xtask setup` gets it)");
    false
}
