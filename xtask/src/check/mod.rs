//! `cargo xtask test`: what CI runs.

mod fresh;
mod licences;
mod package;
mod reasons;
mod spdx;

use std::process::Command;

use anyhow::Result;

use crate::bench;
use crate::cargo::{cargo, require_peers};
use crate::demo::Demo;
use crate::fakecuda;
use crate::gpu_bundle;
use crate::matrix;
use crate::process;
use crate::promises;
use crate::setup::Group;
use crate::step::{Outcome, Step, counted};

/// The members that have the feature `nixl`.
const NIXL_MEMBERS: [&str; 4] = ["connect-core", "connect-examples", "connect-tests", "connect-benches"];

/// All steps, the quick ones and those that most often fail first.
pub(crate) const STEPS: &[Step] = &[
    Step { name: "fmt", what: "the code is formatted", needs: &[], run: fmt },
    Step {
        name: "reasons",
        what: "every dependency says why it is there",
        needs: &[],
        run: |_| reasons::check(),
    },
    Step {
        name: "licences",
        what: "every dependency's licence is on deny.toml's list",
        needs: &[],
        run: |_| licences::check(),
    },
    Step {
        name: "promises",
        what: "docs/reliability.md lists the tests there are",
        needs: &[],
        run: |_| promises::check(),
    },
    Step { name: "clippy", what: "no lint fires in what a plain build touches", needs: &[], run: clippy },
    Step {
        name: "cuda",
        what: "connect-candle with CUDA: lints, and stream ordering on a fake driver that is no GPU",
        needs: &[],
        run: cuda,
    },
    Step {
        name: "test",
        what: "the libraries' own tests in a plain build: no NIXL, Python or libtorch",
        needs: &[],
        run: test,
    },
    Step {
        name: "page",
        what: "the demo's page in a headless Chromium, and its metrics",
        needs: &[],
        run: page,
    },
    Step {
        name: "setup",
        what: "everything the registries hold is there and works",
        needs: &Group::ALL,
        run: |_| Ok(()),
    },
    Step { name: "clippy-nixl", what: "no lint fires with NIXL", needs: &[Group::Nixl], run: clippy_nixl },
    Step {
        name: "clippy-tch",
        what: "no lint fires in connect-tch and what uses it",
        needs: &[Group::Nixl, Group::Torch],
        run: clippy_tch,
    },
    Step {
        name: "doc",
        what: "the docs build without warnings",
        needs: &[Group::Nixl, Group::Torch],
        run: doc,
    },
    Step {
        name: "test-nixl",
        what: "all other tests, and those again that NIXL and the Python original change",
        needs: &Group::ALL,
        run: test_nixl,
    },
    Step { name: "test-tch", what: "tests of connect-tch", needs: &[Group::Torch], run: test_tch },
    Step {
        name: "matrix",
        what: "every framework with every other, as docs/matrix.md says",
        needs: matrix::NEEDS,
        run: test_matrix,
    },
    Step {
        name: "fresh-tch",
        what: "a new project builds and runs by connect-tch's README",
        needs: &[Group::Torch],
        run: |_| fresh::check(),
    },
    Step {
        name: "package",
        what: "the library crates package and build from it",
        needs: &[Group::Torch],
        run: |_| package::check(),
    },
    Step {
        name: "gpu",
        what: "the suite for machines with a GPU builds, and refuses this one and the fake driver",
        needs: &[Group::Nixl],
        run: gpu_bundle::check,
    },
    Step {
        name: "demo",
        what: "KV caches from prefill to decode, and all drills, embedded",
        needs: CACHES.needs(),
        run: |_| demo(CACHES),
    },
    Step {
        name: "demo-nixl",
        what: "the same over NIXL but for kills and stops at each step, and into a decode process in Python",
        needs: CACHES_OVER_NIXL.needs(),
        run: |_| demo(CACHES_OVER_NIXL),
    },
    Step {
        name: "demo-python",
        what: "a checkpoint into Python",
        needs: CHECKPOINT_INTO_PYTHON.needs(),
        run: |_| demo(CHECKPOINT_INTO_PYTHON),
    },
    Step {
        name: "bench",
        what: "the comparison with NIXL, the original and the machine runs, and moves the right bytes",
        needs: bench::NEEDS,
        run: bench,
    },
    Step { name: "doctor", what: "the doctor examines this machine", needs: &[Group::Nixl], run: doctor },
];

fn fmt(_: &mut Outcome) -> Result<()> {
    process::run(cargo("fmt").args(["--all", "--check"]))
}

/// The one feature of the default members that needs nothing installed and is not on by itself.
const CANDLE_NN: &str = "connect-candle/nn";

fn clippy(_: &mut Outcome) -> Result<()> {
    lint(&["--features", CANDLE_NN])
}

fn clippy_nixl(_: &mut Outcome) -> Result<()> {
    lint(&with_nixl(&NIXL_MEMBERS))
}

fn clippy_tch(_: &mut Outcome) -> Result<()> {
    lint(&["--package", "connect-tch"])?;
    lint(&["--package", matrix::PACKAGE])
}

fn lint(selection: &[&str]) -> Result<()> {
    // Warnings become errors behind the --, where they don't change how dependencies are compiled.
    process::run(
        cargo("clippy").args(["--locked", "--all-targets"]).args(selection).args(["--", "-D", "warnings"]),
    )
}

fn doc(_: &mut Outcome) -> Result<()> {
    for selection in
        [&["--features", CANDLE_NN][..], &with_nixl(&["connect-core"]), &["--package", "connect-tch"]]
    {
        let mut cargo = cargo("doc");
        process::run(
            cargo.args(["--locked", "--no-deps"]).args(selection).env("RUSTDOCFLAGS", "-D warnings"),
        )?;
    }
    Ok(())
}

fn test(outcome: &mut Outcome) -> Result<()> {
    let mut selection = vec!["--features", CANDLE_NN];
    // Those of connect-tests and connect-examples are run once, with NIXL, which changes nothing for what is without it.
    for member in ["connect-core", "connect-candle", "connect-benches", "xtask"] {
        selection.extend(["--package", member]);
    }
    counted(&mut tests(&selection), outcome)
}

/// Without a Chromium it says that nobody looked, unless one is required, as in CI. So its output is shown.
fn page(outcome: &mut Outcome) -> Result<()> {
    let selection = ["--features", CANDLE_NN, "--test", "page"];
    process::run(cargo("clippy").arg("--locked").args(selection).args(["--", "-D", "warnings"]))?;
    counted(tests(&selection).args(["--", "--nocapture"]), outcome)
}

fn cuda(outcome: &mut Outcome) -> Result<()> {
    let selection = ["--locked", "--package", "connect-candle", "--features", "cuda"];
    let mut clippy = cargo("clippy");
    clippy.args(selection).args(["--all-targets", "--", "-D", "warnings"]);
    process::run(fakecuda::with(&mut clippy)?)?;
    let mut tests = cargo("test");
    tests.args(selection).args(["--no-fail-fast", "--lib", "--tests"]);
    counted(fakecuda::with(&mut tests)?, outcome)
}

fn test_nixl(outcome: &mut Outcome) -> Result<()> {
    // Criterion's benches have nothing that NIXL changes.
    let members = ["connect-core", "connect-examples", "connect-tests"];
    counted(require_peers(&mut tests(&with_nixl(&members))), outcome)
}

fn test_tch(outcome: &mut Outcome) -> Result<()> {
    counted(&mut tests(&["--package", "connect-tch"]), outcome)?;
    process::run(cargo("run").args(["--locked", "--package", "connect-tch", "--example", "11_tch_tensor"]))
}

fn test_matrix(outcome: &mut Outcome) -> Result<()> {
    counted(require_peers(&mut tests(&["--package", matrix::PACKAGE])), outcome)
}

fn tests(selection: &[&str]) -> Command {
    let mut cargo = cargo("test");
    cargo.args(["--locked", "--no-fail-fast"]).args(selection);
    cargo
}

const CACHES: Demo = Demo::Caches { nixl: false, python: false };
const CACHES_OVER_NIXL: Demo = Demo::Caches { nixl: true, python: true };
const CHECKPOINT_INTO_PYTHON: Demo = Demo::Checkpoint { nixl: true, python: true };

fn demo(demo: Demo) -> Result<()> {
    let arguments: &[&str] = match demo {
        // Large enough to be cut into slices, small enough for a slow machine.
        Demo::Checkpoint { .. } => &["--size-mb", "32"],
        Demo::Caches { nixl: false, .. } => &[],
        // Without the two minutes in which either side is killed and stopped at each step, which `demo` has.
        Demo::Caches { .. } => &[
            "--drill=given-up",
            "--drill=lengths",
            "--drill=warm-prefix",
            "--drill=full-pool",
            "--drill=restarts",
            "--drill=mismatches",
            "--drill=recompute",
        ],
    };
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    process::run(&mut demo.command(&arguments))
}

fn bench(_: &mut Outcome) -> Result<()> {
    // How fast anything is depends on what else this machine does; `cargo xtask bench` judges that.
    process::run(&mut bench::command(&["--quick".to_owned()]))
}

fn doctor(_: &mut Outcome) -> Result<()> {
    process::run(cargo("run").args([
        "--release",
        "--package",
        "connect-examples",
        "--features",
        "nixl",
        "--bin",
        "doctor",
    ]))
}

/// Selects these members with the feature `nixl`.
fn with_nixl(members: &[&'static str]) -> Vec<&'static str> {
    let packages = members.iter().flat_map(|name| ["--package", *name]);
    packages.chain(["--features", "nixl"]).collect()
}
