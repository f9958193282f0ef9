//! `cargo xtask verify`: long enough to find what is rare.

mod checkers;
mod mutants;
mod mutations;
mod mutations_gpu;

use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo::{cargo, require_peers};
use crate::setup::Group;
use crate::step::{self, Outcome, Step, counted};
use crate::{fuzz, process};

/// Which checks.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also the checks that take longer: about an hour on two cores
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    steps: step::Choice,
}

/// Steps of the model's state machines.
const STEPS_OF_THE_MODEL: u32 = 1_000_000;

/// Survivors that UCX may end (docs/reliability.md): assertions of its own about peers that died, one in 500.
const CRASHES: u32 = 2;

/// Executions of all fuzz targets together.
const EXECUTIONS: u64 = 10_000_000;

/// Random cases for each property, where `cargo test` takes 256. What 256 cases miss has shown within a few
/// thousand.
const CASES: u32 = 20_000;

/// How often the tests that race are run; each round meets other interleavings.
const ROUNDS: u32 = 10;

/// The steps that are not part of `--all` only: ten minutes on two cores, after the build.
const BRIEF: usize = 4;

/// All steps, the brief ones first.
pub(crate) const STEPS: &[Step] = &[
    Step { name: "model", what: "random schedules, a million steps", needs: &[], run: model },
    Step {
        name: "kills-local",
        what: "2,000 peers killed or stopped over local, 500 more over its streams",
        needs: &[],
        run: |_| storm("local", 2000, 0).and_then(|()| storm("local-stream", 500, 0)),
    },
    Step {
        name: "kills-nixl",
        what: "200 peers killed or stopped over NIXL, 100 more over TCP",
        needs: &[Group::Nixl],
        run: |_| storm("nixl", 200, CRASHES).and_then(|()| storm("nixl-tcp", 100, CRASHES)),
    },
    Step {
        name: "fuzz",
        what: "ten million executions of the fuzz targets",
        needs: &[],
        run: |_| fuzz::all(EXECUTIONS),
    },
    Step { name: "loom", what: "every interleaving of the hand-offs", needs: &[], run: checkers::loom },
    Step {
        name: "asan",
        what: "the embedded transport and the adapters under AddressSanitizer",
        needs: &[Group::Torch],
        run: checkers::asan,
    },
    Step { name: "valgrind", what: "what has threads under valgrind", needs: &[], run: checkers::valgrind },
    Step {
        name: "mutants",
        what: "each protection taken out, and its test must fail",
        needs: &Group::ALL,
        run: mutants::run,
    },
    Step { name: "network", what: "two hosts, a bad cable", needs: &[Group::Nixl], run: network },
    Step { name: "properties", what: "every property, 20,000 cases", needs: &Group::ALL, run: properties },
    Step { name: "races", what: "the tests that race, ten times", needs: &Group::ALL, run: races },
    Step {
        name: "soak-local",
        what: "two million operations over local",
        needs: &[],
        run: |_| soak("local", "256"),
    },
    Step {
        name: "soak-nixl",
        what: "two million operations over NIXL",
        needs: &[Group::Nixl],
        run: |_| soak("nixl", "800"),
    },
];

/// The command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut steps = args.steps.clone();
    if !args.all && steps.only.is_empty() {
        println!("The brief checks; --all takes an hour more.");
        steps.only = STEPS[..BRIEF].iter().map(|step| step.name.to_owned()).collect();
    }
    step::run(STEPS, &steps)
}

fn model(outcome: &mut Outcome) -> Result<()> {
    let mut model = cargo("test");
    model.args([
        "--release",
        "--locked",
        "--package",
        "connect-core",
        "--lib",
        "driver::model",
        "--",
        "--nocapture",
    ]);
    counted(model.env("CONNECT_STEPS", STEPS_OF_THE_MODEL.to_string()), outcome)
}

fn storm(transport: &str, rounds: u32, crashes: u32) -> Result<()> {
    let (rounds, crashes) = (rounds.to_string(), crashes.to_string());
    let how = ["--transport", transport, "--rounds", &rounds, "--crashes", &crashes];
    process::run(program("storm").args(how))
}

/// `renew`: operations after which a peer is replaced by a new one, so that thousands come and go.
fn soak(transport: &str, renew: &str) -> Result<()> {
    let how = ["--transport", transport, "--operations", "2000000", "--renew", renew];
    process::run(program("soak").args(how))
}

fn program(name: &str) -> Command {
    let mut cargo = cargo("run");
    cargo.args([
        "--release",
        "--locked",
        "--package",
        "connect-tests",
        "--features",
        "nixl",
        "--bin",
        name,
        "--",
    ]);
    cargo
}

fn network(outcome: &mut Outcome) -> Result<()> {
    let mut network = tests(&["connect-tests"]);
    counted(network.args(["--test", "network"]).env("CONNECT_REQUIRE_NETWORK", "1"), outcome)
}

fn properties(outcome: &mut Outcome) -> Result<()> {
    let mut tests = tests(&["connect-core", "connect-tests"]);
    counted(tests.env("PROPTEST_CASES", CASES.to_string()), outcome)
}

fn races(outcome: &mut Outcome) -> Result<()> {
    for round in 1..=ROUNDS {
        println!("--- round {round} of {ROUNDS} ---");
        let mut racing = tests(&["connect-tests"]);
        racing.args([
            "--test",
            "drops",
            "--test",
            "hostile_metadata",
            "--test",
            "conformance",
            "--test",
            "endings",
        ]);
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
