//! `cargo xtask demo`: the first thing a newcomer runs.

use std::process::Command;

use anyhow::Result;

use crate::cargo::{cargo, with_python};
use crate::process;
use crate::setup::{self, Group};

/// What takes part in the demo.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Over NIXL instead of the embedded transport; fetches it first (83 MB)
    #[arg(long)]
    nixl: bool,
    /// Into a Python worker that uses dynamo.nixl_connect; implies --nixl and fetches torch first (2 GB)
    #[arg(long)]
    python: bool,
    /// For the demo program; `cargo xtask demo -- --help` lists them
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let nixl = args.nixl || args.python;
    println!(
        "This builds the demo (about 2 min the first time on two cores) and moves a checkpoint from one process to \
         another{}{}, and checks every byte.\nIt takes some seconds, needs no GPU, no RDMA and no root, and leaves nothing behind but target/{}.",
        if nixl { " over NIXL" } else { "" },
        if args.python { ", a Python worker that uses the original" } else { "" },
        if nixl { " and .connect/" } else { "" },
    );
    setup::ensure(needs(nixl, args.python))?;
    process::run(&mut command(nixl, args.python, &args.arguments))
}

/// What a demo with these peers needs set up.
pub(crate) const fn needs(nixl: bool, python: bool) -> &'static [Group] {
    match (nixl, python) {
        (_, true) => &[Group::Nixl, Group::Python],
        (true, false) => &[Group::Nixl],
        (false, false) => &[],
    }
}

/// The cargo that builds and runs it.
pub(crate) fn command(nixl: bool, python: bool, arguments: &[String]) -> Command {
    let mut cargo = cargo("run");
    cargo.args(["--release", "--package", "connect-examples", "--bin", "demo"]);
    if nixl {
        cargo.args(["--features", "nixl"]);
    }
    cargo.arg("--");
    if nixl {
        cargo.arg("--nixl");
    }
    if python {
        with_python(&mut cargo).arg("--python");
    }
    cargo.args(arguments);
    cargo
}
