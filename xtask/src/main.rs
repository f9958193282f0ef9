//! Set-up and test driver of the workspace: `cargo xtask <command>`.
//!
//! It runs pip and cargo in the right order with the right environment and holds no logic of the library.

mod bench;
mod cargo;
mod check;
mod demo;
mod env;
mod fakecuda;
mod fuzz;
mod gpu_bundle;
mod layout;
mod matrix;
mod process;
mod promises;
mod setup;
mod step;
mod verify;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

/// Times are those of two cores and a fast line, from a clean clone; later runs reuse what was built.
const TIMES: &str = "\
How long they take (two cores, fast line; first run, then later runs):
  (any)    half a minute to build xtask itself
  setup    75 s for all, 4 s for --nixl; then under 1 s
  demo     2 min to build; then seconds
  train-fixture  10 min, for another small model than the committed one
  test     about 30 min; then 15
  verify   10 min, by design; an hour more with --all
  matrix   3 min to build; then 45 s
  fuzz     1 min to build; then 15 s for each million executions
  gpu-bundle  12 min, and 104 MB of NVIDIA's compiler
  bench    3 min to build; then 25 to 30 min, 1 to 5 for one sweep (--only), 40 s with --quick

Start with `cargo xtask demo`. It needs neither NIXL nor Python.";

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Set-up and test driver of connect", after_help = TIMES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch what the registries hold into .connect/ (nothing is installed outside the clone)
    Setup(setup::Args),
    /// Print the variables a program outside this workspace needs to use what set-up fetched
    Env,
    /// Compute prompts in one process, go on in another, and check every token
    Demo(demo::Args),
    /// Train the demo's small model on this repository's own text, and write it into examples/fixtures
    TrainFixture {
        /// For the training; `cargo xtask train-fixture -- --help` lists them
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Run everything CI runs, each step with its time
    Test(step::Choice),
    /// Run the long checks: kills by the thousand, a million steps of the model, ten million fuzzed inputs
    Verify(verify::Args),
    /// Write the list of the promises' tests into docs/reliability.md
    Promises,
    /// Exchange tensors between all frameworks, and write what was run into docs/matrix.md
    Matrix,
    /// Feed damaged input to everything that reads what a peer wrote, guided by coverage
    Fuzz(fuzz::Args),
    /// Compare with NIXL itself, the Python original and what the machine can do, side by side
    Bench(bench::Args),
    /// Pack the checks for a machine with a GPU, which needs neither Rust nor a network there
    GpuBundle(gpu_bundle::Args),
}

fn main() -> Result<()> {
    let Some(command) = Cli::parse().command else {
        Cli::command().print_help()?;
        return Ok(());
    };
    match command {
        Command::Setup(args) => setup::run(&args),
        Command::Env => env::run(),
        Command::Demo(args) => demo::run(&args),
        Command::TrainFixture { arguments } => demo::train(&arguments),
        Command::Test(args) => step::run(check::STEPS, &args),
        Command::Verify(args) => verify::run(&args),
        Command::Promises => promises::write(),
        Command::Matrix => matrix::write(),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::GpuBundle(args) => gpu_bundle::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
