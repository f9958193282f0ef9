//! Every dependency's licence is on the list.
//!
//! `deny.toml` holds the list, so that cargo-deny and this check, which needs no installation, agree by construction.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::spdx;
use crate::cargo::cargo;
use crate::{layout, process};

/// Checks the whole graph: all features, all platforms, also what only tests and builds use.
pub(crate) fn check() -> Result<()> {
    let path = layout::root().join("deny.toml");
    let allowed =
        allowed(&fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?);
    ensure!(!allowed.is_empty(), "{} has no list `allow`", path.display());
    let metadata =
        process::output(cargo("metadata").args(["--format-version=1", "--all-features", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata printed no JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| {
            !spdx::is_satisfied(licence(package), &|name| allowed.iter().any(|other| other == name))
        })
        .map(|package| {
            format!("{} {}: {:?}", text(package, "name"), text(package, "version"), licence(package))
        })
        .collect();
    if !refused.is_empty() {
        bail!(
            "licences that are not on the list in deny.toml:\n  {}\n\
             Remedy: another crate; or, if we may ship under that licence, add it to the list",
            refused.join("\n  ")
        );
    }
    println!("{} packages, all under the {} licences of deny.toml", packages.len(), allowed.len());
    Ok(())
}

fn licence(package: &Value) -> &str {
    text(package, "license")
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_default()
}

/// The strings of the array `allow`, one a line, as `deny.toml` is written.
fn allowed(deny: &str) -> Vec<String> {
    deny.lines()
        .map(str::trim)
        .skip_while(|line| *line != "allow = [")
        .skip(1)
        .take_while(|line| *line != "]")
        .filter_map(|line| Some(line.strip_prefix('"')?.split_once('"')?.0.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_list_is_read_from_deny_toml() {
        let deny =
            "[licenses]\nallow = [\n    \"MIT\",\n    # why\n    \"ISC\", # why\n]\n[bans]\nx = [\"y\"]\n";
        assert_eq!(super::allowed(deny), ["MIT", "ISC"]);
        assert!(super::allowed(include_str!("../../../deny.toml")).contains(&"MIT".to_owned()));
    }
}
