//! `cargo xtask bench`: this library beside the Python original, on this machine.

use anyhow::Result;

use crate::cargo::{cargo, with_python};
use crate::process;
use crate::setup::{self, Group};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// For the program; `cargo xtask bench -- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(&[Group::Nixl, Group::Python])?;
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
    process::run(with_python(&mut cargo).args(&args.arguments))
}
