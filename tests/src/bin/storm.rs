//! `storm`: kills and stops peers by the thousand, and checks that the survivor stays well.
//!
//! ```text
//! storm --transport local --rounds 2000 --seed 1
//! ```
//! It prints a table, and ends with status 1 after a broken promise, 3 when it hangs. `--first N --rounds 1`
//! plays round N of a seed again. What a round is, is in `connect_tests::storm`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode, ExitStatus, Stdio, exit};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
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
    #[command(flatten)]
    rounds: Rounds,
    /// Seconds after which it is taken to hang.
    #[arg(long, default_value_t = 900)]
    limit: u64,
    /// How often the engine may end the survivor, which is then replaced. UCX does so at times when a peer dies in
    /// a moment that it did not think of; what was seen is in `ARCHITECTURE.md`.
    #[arg(long, default_value_t = 0)]
    crashes: u32,
}

#[derive(Debug, Clone, clap::Args)]
struct Rounds {
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
}

impl Rounds {
    /// The same, as arguments.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let numbers = [
            ("--seed", self.seed),
            ("--first", Some(self.first)),
            ("--rounds", Some(self.rounds)),
            ("--lanes", self.lanes.map(|lanes| lanes as u64)),
            ("--batch", self.batch),
        ];
        for (name, number) in numbers {
            arguments.extend(number.into_iter().flat_map(|number| [name.to_owned(), number.to_string()]));
        }
        arguments.extend(["--transport".to_owned(), self.transport.to_string()]);
        arguments.extend(self.reads.then(|| "--reads".to_owned()));
        arguments
    }
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The long-lived side, started by the storm itself.
    Survivor(Rounds),
    /// The other side, started by the survivor.
    Victim(Doom),
}

fn main() -> Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    let args = Args::parse();
    match &args.role {
        Some(Role::Victim(doom)) => return victim::run(doom),
        Some(Role::Survivor(rounds)) => return survive(rounds),
        None => {}
    }
    let limit = Duration::from_secs(args.limit);
    thread::spawn(move || {
        thread::sleep(limit);
        eprintln!("VIOLATION: the storm is not over after {limit:?}");
        exit(3);
    });
    storm(&args)
}

/// Goes on with another survivor when the engine has ended one, if that is allowed.
fn storm(args: &Args) -> Result<ExitCode> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let mut rounds = args.rounds.clone();
    let seed = *rounds.seed.get_or_insert(clock.as_micros() as u64 % 1_000_000);
    println!(
        "storm over {}, seed {seed}, {} rounds from {} on",
        rounds.transport, rounds.rounds, rounds.first
    );
    let (started, mut crashes) = (Instant::now(), 0);
    loop {
        let (status, next) = run_survivor(&rounds)?;
        rounds.rounds -= next - rounds.first;
        rounds.first = next;
        if let Some(signal) = status.signal() {
            crashes += 1;
            println!(
                "  THE SURVIVOR WAS ENDED BY SIGNAL {signal}, after round {next} and the rest that followed it"
            );
        }
        let goes_on = status.signal().is_some() && crashes <= args.crashes && rounds.rounds > 0;
        if !goes_on {
            println!("  time                 {:.1} s", started.elapsed().as_secs_f64());
            println!("  survivors crashed    {crashes} ({} allowed)", args.crashes);
            let is_well = status.success() || status.signal().is_some() && crashes <= args.crashes;
            return Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
}

/// What precedes the table that a survivor prints whenever it has come to rest, with the number of the next round.
const REST: &str = "@rest ";

/// Runs a survivor to its end, and prints the last table it gave. Returns how it ended, and the round behind that.
fn run_survivor(rounds: &Rounds) -> Result<(ExitStatus, u64)> {
    let mut command = Command::new(std::env::current_exe()?);
    // UCX reads the environment when it is loaded, so all of it is there from the beginning.
    command.arg("survivor").args(rounds.arguments()).envs(rounds.transport.environment());
    // A survivor that is killed takes its victims with it, and one whose storm is killed ends with its input.
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (mut table, mut next) = (Vec::new(), rounds.first);
    for line in BufReader::new(child.stdout.take().context("stdout is piped")?).lines() {
        let line = line?;
        if let Some(number) = line.strip_prefix(REST) {
            table.clear();
            next = number.parse()?;
        } else {
            table.push(line);
        }
    }
    table.iter().for_each(|line| println!("{line}"));
    Ok((child.wait()?, next))
}

fn survive(rounds: &Rounds) -> Result<ExitCode> {
    thread::spawn(|| {
        // Ends when the storm does.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        exit(3);
    });
    let is_nixl = rounds.transport.is_nixl();
    // Victims mostly wait; a NIXL process needs half a second of a core to start.
    let lanes = rounds.lanes.unwrap_or(if is_nixl { 4 } else { 8 });
    let batch = rounds.batch.unwrap_or(if is_nixl { 40 } else { 200 });
    let deeds = Deed::of(rounds.transport, rounds.reads);
    let survivor = Survivor::new(rounds.transport, rounds.seed.unwrap_or_default(), deeds)?;
    let report = |next: u64| {
        print!("{REST}{next}\n{}", survivor.tally());
        println!("  {:?}", survivor.connector.stats());
        // The storm can't see it otherwise, should this process be ended.
        let _ = std::io::stdout().flush();
    };
    survivor.weather(rounds.first, rounds.rounds, lanes, batch, report)?;
    let is_well = survivor.tally().violations.is_empty();
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
