//! `cargo xtask bench`: this library beside NIXL itself and the Python original, on this machine.

use std::process::Command;

use anyhow::Result;

use crate::cargo::{cargo, with_python};
use crate::process;
use crate::setup::{self, Group};

/// What takes part.
pub(crate) const NEEDS: &[Group] = &[Group::Nixl, Group::Python];

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// For the program; `cargo xtask bench -- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(NEEDS)?;
    process::run(&mut command(&args.arguments))
}

/// The cargo that builds and runs it.
pub(crate) fn command(arguments: &[String]) -> Command {
    let mut cargo = cargo("run");
    cargo.args([
        "--release",
        "--package",
        "connect-benches",
        "--features",
        "nixl",
        "--bin",
        "side-by-side",
        "--",
    ]);
    with_python(&mut cargo).args(arguments);
    cargo
}
