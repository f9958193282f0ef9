//! `storm`: kills and stops peers by the thousand, and checks that the survivor stays well.
//!
//! ```text
//! storm --transport local --rounds 2000 --seed 1
//! ```
//! It prints a table, and ends with status 1 after a broken promise, 3 when it hangs. `--first N --rounds 1`
//! plays round N of a seed again. What a round is, is in `connect_tests::storm`.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, exit};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Parser, Subcommand};
use connect_tests::storm::Way;
use connect_tests::storm::plan::Deed;
use connect_tests::storm::survivor::Survivor;
use connect_tests::storm::victim::{self, Doom};

/// Kills and stops peers by the thousand.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// The transport.
    #[arg(long, value_enum, default_value = "local")]
    transport: Way,
    /// What decides about everything; drawn from the clock unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// The number of the first round.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Rounds to play: one victim each.
    #[arg(long, default_value_t = 200)]
    rounds: u64,
    /// Rounds at a time.
    #[arg(long)]
    lanes: Option<usize>,
    /// Rounds after which everything must come to rest.
    #[arg(long)]
    batch: Option<u64>,
    /// Over TCP too, lets victims read from the survivor, which UCX does not always survive.
    #[arg(long)]
    reads: bool,
    /// Seconds after which it is taken to hang.
    #[arg(long, default_value_t = 900)]
    limit: u64,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The other side, started by the storm itself.
    Victim(Doom),
}

fn main() -> Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    let args = Args::parse();
    if let Some(Role::Victim(doom)) = &args.role {
        return victim::run(doom);
    }
    let lacking = args.transport.environment().into_iter().any(|(name, _)| std::env::var_os(name).is_none());
    if lacking {
        // UCX reads it when it is loaded, so it is there from the beginning.
        let mut again = Command::new(std::env::current_exe()?);
        again.args(std::env::args_os().skip(1)).envs(args.transport.environment());
        return Err(again.exec().into());
    }
    let limit = Duration::from_secs(args.limit);
    thread::spawn(move || {
        thread::sleep(limit);
        eprintln!("VIOLATION: the storm is not over after {limit:?}");
        exit(3);
    });
    storm(&args)
}

fn storm(args: &Args) -> Result<ExitCode> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = args.seed.unwrap_or(clock.as_micros() as u64 % 1_000_000);
    let is_nixl = args.transport.is_nixl();
    // Victims mostly wait; a NIXL process needs half a second of a core to start.
    let lanes = args.lanes.unwrap_or(if is_nixl { 4 } else { 8 });
    let batch = args.batch.unwrap_or(if is_nixl { 40 } else { 200 });
    println!("storm over {}, seed {seed}, rounds {} and on", args.transport, args.first);
    let started = Instant::now();
    let survivor = Survivor::new(args.transport, seed, Deed::of(args.transport, args.reads))?;
    let weathered = survivor.weather(args.first, args.rounds, lanes, batch);
    let tally = survivor.tally();
    print!("{tally}");
    println!("  time                 {:.1} s", started.elapsed().as_secs_f64());
    println!("  {:?}", survivor.connector.stats());
    for violation in &tally.violations {
        println!("VIOLATION: {violation}");
    }
    let is_well = tally.violations.is_empty();
    drop(tally);
    weathered?;
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
