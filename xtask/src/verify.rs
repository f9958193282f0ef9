//! `cargo xtask verify`: the same tests, long enough to find what is rare.

use anyhow::Result;

use crate::cargo::{cargo, require_peers};
use crate::process;
use crate::setup::{self, Group};

/// Which tests.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// For cargo test, e.g. a part of a test's name
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<()> {
    println!("The long checks take 10 min or more on two cores, after the build.");
    setup::ensure(&Group::ALL)?;
    let mut cargo = cargo("test");
    // Optimized, because what is rare comes with speed and with count.
    cargo.args([
        "--release",
        "--locked",
        "--no-fail-fast",
        "--package",
        "connect-tests",
        "--features",
        "nixl",
    ]);
    process::run(require_peers(&mut cargo).env("CONNECT_LONG", "1").args(&args.arguments))
}
