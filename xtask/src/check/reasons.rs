//! Every dependency says in one line why it is there.
//!
//! The reason stands behind the dependency in the workspace's manifest; members inherit it, and a dependency that a
//! member declares itself needs its own.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::layout;

/// Checks the workspace's manifest and each member's.
pub(crate) fn check() -> Result<()> {
    let root = layout::root();
    let mut manifests = vec![root.join("Cargo.toml")];
    for entry in fs::read_dir(&root)? {
        let manifest = entry?.path().join("Cargo.toml");
        if manifest.is_file() {
            manifests.push(manifest);
        }
    }
    let mut count = 0;
    let mut missing = Vec::new();
    for manifest in manifests {
        let text = fs::read_to_string(&manifest)
            .with_context(|| format!("could not read {}", manifest.display()))?;
        for line in dependencies(&text) {
            count += 1;
            if !explains(line) {
                missing.push(format!("{}: {line}", manifest.display()));
            }
        }
    }
    if !missing.is_empty() {
        bail!(
            "dependencies without a reason:\n  {}\nRemedy: say why behind it in the same line: name = \"1\" # why",
            missing.join("\n  ")
        );
    }
    println!("{count} entries, each with its reason");
    Ok(())
}

/// The lines of a manifest that declare a dependency.
fn dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    manifest.lines().map(str::trim).filter(move |line| {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
            return false;
        }
        inside && !line.starts_with('#') && line.split_once('=').is_some_and(|(name, _)| is_name(name.trim()))
    })
}

/// A key such as `serde` or `serde.workspace`.
fn is_name(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.\"".contains(letter))
}

/// One of our own crates, one that inherits its reason, or one with a comment behind it.
fn explains(line: &str) -> bool {
    let ours = line.contains("path = ");
    let inherits = line.contains("workspace = true");
    ours || inherits || line.rsplit_once(" # ").is_some_and(|(_, reason)| !reason.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unexplained(manifest: &str) -> Vec<&str> {
        dependencies(manifest).filter(|line| !explains(line)).collect()
    }

    #[test]
    fn a_dependency_without_a_reason_is_found_wherever_it_stands() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\na = \"1\" # why\nb = \"1\"\n\
                        [target.'cfg(unix)'.dev-dependencies]\nc = { version = \"1\", features = [\"d\"] }\n";
        assert_eq!(unexplained(manifest), ["b = \"1\"", "c = { version = \"1\", features = [\"d\"] }"]);
    }

    #[test]
    fn our_own_crates_and_inherited_ones_need_none() {
        let manifest = "[workspace.dependencies]\nx = { path = \"x\", version = \"1\" }\n[dependencies]\n\
                        y.workspace = true\nz = { workspace = true, features = [\"f\"] }\n[features]\nf = []\n";
        assert!(unexplained(manifest).is_empty());
    }
}
