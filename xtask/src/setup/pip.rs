//! Calls pip.

use std::io::{IsTerminal, stdout};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::pins::{Group, Pin};
use super::venv;
use crate::process;

/// What pip does about a package that it has records of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing.
    Missing,
    /// Fetch it again.
    Afresh,
}

/// Installs a group into the virtual environment.
pub(crate) fn install(group: Group, mode: Mode) -> Result<()> {
    // pip decides about dependencies per call, so those that bring theirs and those that don't are two calls.
    for dependencies in [true, false] {
        let pins: Vec<&str> = group
            .pins()
            .iter()
            .filter(|pin| pin.dependencies == dependencies)
            .map(|pin| pin.requirement)
            .collect();
        if pins.is_empty() {
            continue;
        }
        let mut pip = pip();
        if !dependencies {
            pip.arg("--no-deps");
        }
        if mode == Mode::Afresh {
            pip.arg("--force-reinstall");
        }
        call(pip.args(pins))?;
    }
    Ok(())
}

/// Installs one wheel into a folder of its own.
pub(crate) fn install_into(folder: &Path, pin: &Pin) -> Result<()> {
    call(pip().arg("--no-deps").arg("--target").arg(folder).arg(pin.requirement))
}

fn pip() -> Command {
    let mut pip = venv::python();
    // Wheels only: a source archive would want compilers and run its author's code. Two retries: who is offline should
    // not wait a minute to hear it.
    pip.args([
        "-m",
        "pip",
        "install",
        "--only-binary=:all:",
        "--retries=2",
        "--disable-pip-version-check",
        "--no-input",
    ]);
    if !stdout().is_terminal() {
        pip.args(["--quiet", "--progress-bar=off"]);
    }
    // A person's own defaults would send the wheels elsewhere.
    for name in
        ["PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_NO_DEPS", "PIP_REQUIREMENT", "PIP_DRY_RUN"]
    {
        pip.env_remove(name);
    }
    pip
}

fn call(pip: &mut Command) -> Result<()> {
    process::run(pip).context(
        "pip could not fetch the packages; its own message is above.\n\
         Remedy: it needs https://pypi.org, or a mirror named by PIP_INDEX_URL, or PIP_NO_INDEX=1 with \
         PIP_FIND_LINKS=<folder of wheels>. The wheels are for Linux (glibc) and Python 3.10 to 3.13; name another \
         interpreter by PYTHON=<path>. Then run the same command again: it goes on where it stopped.\n\
         Building and testing without NIXL, Python and libtorch needs none of this: cargo test",
    )
}
