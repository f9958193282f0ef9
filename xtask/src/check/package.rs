//! The library crates package, and build from what they packaged.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cargo::cargo;
use crate::process;

/// What goes to crates.io.
const LIBRARIES: [&str; 3] = ["connect-core", "connect-candle", "connect-tch"];

/// The step.
pub(super) fn check() -> Result<()> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo"))).context("no home directory")?;
    forget_unpacked(&home.join("registry/src"))?;
    let mut cargo = cargo("package");
    // Whoever works on a change has files that are not committed; in CI there are none.
    // A package is built outside the workspace and so without its profiles, and would compile all its dependencies
    // anew. Read as configuration, the manifest gives it the same profiles, and what the tests built is reused.
    cargo.args(["--locked", "--allow-dirty", "--config", "Cargo.toml"]);
    for name in LIBRARIES {
        cargo.args(["--package", name]);
    }
    process::run(&mut cargo)
}

/// Removes what cargo unpacked of these crates the last time.
///
/// To build one package against another that is not published, cargo makes a registry of them, in a folder that is
/// named after its path, and unpacks each version once. So a second run, or another clone in the same place, would
/// build against the sources of the first.
fn forget_unpacked(sources: &Path) -> Result<()> {
    let registries = match fs::read_dir(sources) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        registries => registries?,
    };
    for registry in registries {
        let registry = registry?;
        // Registries with a host begin with it; one that is a folder has none.
        if registry.file_name().to_string_lossy().starts_with('-') {
            for name in LIBRARIES {
                let unpacked = registry.path().join(format!("{name}-{}", env!("CARGO_PKG_VERSION")));
                match fs::remove_dir_all(&unpacked) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(error).with_context(|| format!("removing {}", unpacked.display()));
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cargo_unpacked_of_these_crates_is_forgotten() {
        let sources = env::temp_dir().join(format!("connect-xtask-{}", std::process::id()));
        let version = env!("CARGO_PKG_VERSION");
        let stale = sources.join(format!("-0123/connect-core-{version}"));
        let kept =
            [sources.join(format!("index-0123/connect-core-{version}")), sources.join("-0123/serde-1.0.0")];
        for folder in kept.iter().chain([&stale]) {
            fs::create_dir_all(folder.join("src")).unwrap();
        }
        forget_unpacked(&sources).unwrap();
        assert!(!stale.exists() && kept.iter().all(|folder| folder.exists()));
        forget_unpacked(&sources).unwrap();
        fs::remove_dir_all(&sources).unwrap();
        forget_unpacked(&sources).unwrap();
    }
}
