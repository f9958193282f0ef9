//! Checks and measures GPU tensors on a machine that has a GPU: `cargo xtask gpu-bundle` packs it with what it needs.
//!
//! It fails where there is no GPU, and on the fake driver of the tests: nothing it says may come from anywhere else.

mod checks;
mod device;
mod memory;
mod peer;
mod results;

use anyhow::Result;
use clap::{Parser, Subcommand};

use results::Results;

#[derive(Parser)]
#[command(name = "gpu-suite", about = "Checks and measures connect's GPU tensors on this machine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every check, and print the results as rows of docs/gpu.md
    Run {
        /// A Python that has torch with CUDA and the Python original, if there is one
        #[arg(long)]
        python: Option<String>,
    },
    /// The other process of a check; not for people
    #[command(hide = true)]
    Peer {
        /// Which device's memory it uses; none for system memory
        #[arg(long)]
        device: Option<usize>,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Run { python } => {
            let found = device::find()?;
            let mut results = Results::new(&found.description);
            checks::run(&found.device, python.as_deref(), &mut results);
            results.finish()
        }
        Command::Peer { device } => peer::serve(device),
    }
}
