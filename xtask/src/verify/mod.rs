//! `cargo xtask verify`: long enough to find what is rare.

mod checkers;
mod mutants;
mod mutations;

use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo::{cargo, require_peers};
use crate::setup::Group;
use crate::step::{Outcome, Step, counted};

/// Random cases for each property, where `cargo test` takes 256. What 256 cases miss has shown within a few
/// thousand.
const CASES: u32 = 20_000;

/// How often the tests that race are run; each round meets other interleavings.
const ROUNDS: u32 = 10;

/// All steps.
pub(crate) const STEPS: &[Step] = &[
    Step { name: "properties", what: "every property, 20,000 cases", needs: &Group::ALL, run: properties },
    Step { name: "races", what: "the tests that race, ten times", needs: &Group::ALL, run: races },
    Step {
        name: "asan",
        what: "the embedded transport under AddressSanitizer",
        needs: &[],
        run: checkers::asan,
    },
    Step { name: "valgrind", what: "what has threads under valgrind", needs: &[], run: checkers::valgrind },
    Step {
        name: "mutants",
        what: "each protection taken out, and its test must fail",
        needs: &Group::ALL,
        run: mutants::run,
    },
];

fn properties(outcome: &mut Outcome) -> Result<()> {
    let mut tests = tests(&["connect-core", "connect-tests"]);
    counted(tests.env("PROPTEST_CASES", CASES.to_string()), outcome)
}

fn races(outcome: &mut Outcome) -> Result<()> {
    for round in 1..=ROUNDS {
        println!("--- round {round} of {ROUNDS} ---");
        let mut racing = tests(&["connect-tests"]);
        racing.args(["--test", "drops", "--test", "hostile_metadata", "--test", "conformance"]);
        counted(&mut racing, outcome).with_context(|| format!("in round {round}"))?;
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
