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
    /// A checkpoint from one process to another instead, byte by byte
    #[arg(long)]
    checkpoint: bool,
    /// With a Python process that uses dynamo.nixl_connect: one more decode process, or, with --checkpoint, the receiver;
    /// implies --nixl and fetches torch first (2 GB)
    #[arg(long)]
    python: bool,
    /// For the demo program; `cargo xtask demo -- --help` lists them
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// `cargo xtask train-fixture`: trains the demo's small model, and writes it into examples/fixtures.
pub(crate) fn train(arguments: &[String]) -> Result<()> {
    let mut cargo = cargo("run");
    cargo.args(["--release", "--package", "connect-examples", "--bin", "disagg", "--", "train"]);
    // It has two threads of its own; matrices this small gain nothing from more.
    process::run(cargo.args(arguments).env("RAYON_NUM_THREADS", "1"))
}

/// Which of the two demos, and who takes part.
#[derive(Clone, Copy)]
pub(crate) enum Demo {
    /// KV caches from a prefill process to a decode process.
    Caches { nixl: bool, python: bool },
    /// A checkpoint from one process to another.
    Checkpoint { nixl: bool, python: bool },
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (nixl, python) = (args.nixl || args.python, args.python);
    let demo =
        if args.checkpoint { Demo::Checkpoint { nixl, python } } else { Demo::Caches { nixl, python } };
    println!("{}", demo.announcement());
    setup::ensure(demo.needs())?;
    process::run(&mut demo.command(&args.arguments))
}

impl Demo {
    fn announcement(self) -> String {
        let (what, took) = match self {
            Self::Caches { .. } => (
                "computes prompts in one process, hands their KV caches to another and goes on there; compares each token \
                 with what one process makes, damages a cache to see that this shows, and kills processes on purpose",
                "about a minute",
            ),
            Self::Checkpoint { .. } => {
                ("moves a checkpoint from one process to another, and checks every byte", "some seconds")
            }
        };
        let over = match self {
            Self::Checkpoint { python: true, .. } => {
                " Over NIXL, into a Python worker that uses the original."
            }
            Self::Caches { python: true, .. } => {
                " Over NIXL, and also into a decode process in Python that uses the original."
            }
            Self::Caches { nixl: true, .. } | Self::Checkpoint { nixl: true, .. } => " Over NIXL.",
            _ => "",
        };
        format!(
            "This builds the demo (about 3 min the first time on two cores), and then {what}.{over}\nIt takes {took}, needs no \
             GPU, no RDMA and no root, and leaves nothing behind but target/ and, with NIXL or Python, .connect/."
        )
    }

    /// What it needs set up.
    pub(crate) const fn needs(self) -> &'static [Group] {
        match self {
            Self::Caches { python: true, .. } | Self::Checkpoint { python: true, .. } => {
                &[Group::Nixl, Group::Python]
            }
            Self::Caches { nixl: true, .. } | Self::Checkpoint { nixl: true, .. } => &[Group::Nixl],
            _ => &[],
        }
    }

    /// The cargo that builds and runs it.
    pub(crate) fn command(self, arguments: &[String]) -> Command {
        let (program, nixl) = match self {
            Self::Caches { nixl, .. } => ("disagg", nixl),
            Self::Checkpoint { nixl, .. } => ("demo", nixl),
        };
        let mut cargo = cargo("run");
        cargo.args(["--release", "--package", "connect-examples", "--bin", program]);
        if nixl {
            cargo.args(["--features", "nixl"]);
        }
        cargo.arg("--");
        match self {
            Self::Caches { nixl, python } => {
                cargo.arg("run-all").args(nixl.then_some(["--transport", "nixl"]).into_iter().flatten());
                if python {
                    with_python(&mut cargo).arg("--python");
                }
            }
            Self::Checkpoint { nixl, python } => {
                cargo.args(nixl.then_some("--nixl"));
                if python {
                    with_python(&mut cargo).arg("--python");
                }
            }
        }
        cargo.args(arguments);
        cargo
    }
}
