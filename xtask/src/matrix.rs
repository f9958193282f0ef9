//! `cargo xtask matrix`: exchanges tensors between all frameworks, and writes down what was run.

use anyhow::Result;

use crate::cargo::{cargo, require_peers};
use crate::process;
use crate::setup::{self, Group};

/// What runs it.
pub(crate) const PACKAGE: &str = "connect-matrix";

/// What that needs.
pub(crate) const NEEDS: &[Group] = &[Group::Nixl, Group::Torch, Group::Python];

/// Writes docs/matrix.md.
pub(crate) fn write() -> Result<()> {
    setup::ensure(NEEDS)?;
    let mut cargo = cargo("test");
    cargo.args(["--locked", "--package", PACKAGE, "--test", "matrix"]).env("CONNECT_WRITE_MATRIX", "1");
    process::run(require_peers(&mut cargo))?;
    println!("docs/matrix.md shows what was run");
    Ok(())
}
