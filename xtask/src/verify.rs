//! `cargo xtask verify`: the same tests, long and often enough to find what is rare.

use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo::{cargo, require_peers};
use crate::fuzz;
use crate::process;
use crate::setup::{self, Group};

/// Random cases for each property, where `cargo test` takes 256. What 256 cases miss has shown within a few
/// thousand.
const CASES: u32 = 20_000;

/// Executions of the fuzz targets: about three minutes.
const EXECUTIONS: u64 = 10_000_000;

/// Which tests.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often the tests that race are run
    #[arg(long, default_value_t = 10)]
    rounds: u32,
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<()> {
    println!("The long checks take 10 min or more on two cores, after the build.");
    setup::ensure(&Group::ALL)?;
    process::run(tests(&["connect-core", "connect-tests"]).env("PROPTEST_CASES", CASES.to_string()))?;
    fuzz::all(EXECUTIONS)?;
    // Operations that are dropped, refused and cut off at every moment, and processes that end: each round
    // meets other interleavings.
    for round in 1..=args.rounds {
        println!("=== round {round} of {} ===", args.rounds);
        let mut racing = tests(&["connect-tests"]);
        racing.args(["--test", "drops", "--test", "hostile_metadata", "--test", "conformance"]);
        process::run(&mut racing).with_context(|| format!("in round {round}"))?;
    }
    Ok(())
}

/// Optimized tests, because what is rare comes with speed and with count.
fn tests(packages: &[&str]) -> Command {
    let mut cargo = cargo("test");
    cargo.args(["--release", "--locked", "--features", "nixl"]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    require_peers(&mut cargo);
    cargo
}
