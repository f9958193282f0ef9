//! `cargo xtask fuzz`: every fuzz target under libFuzzer, as many at a time as there are cores.
//!
//! libFuzzer comes as a crate and the compiler's coverage as stable flags, so this needs neither nightly nor
//! cargo-fuzz.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cargo::cargo;
use crate::{layout, process};

/// What libFuzzer's own documentation asks of a compiler: a counter for each edge, and what is compared with what.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// Longest input: documents of a few descriptors and tensors, exchanges of hundreds of frames.
const MAX_LEN: &str = "-max_len=4096";

/// An input that takes longer (seconds) counts as a hang; the slowest takes a millisecond.
const TIMEOUT: &str = "-timeout=20";

/// Targets whose executions take ten times as long, by dozens of system calls or a compressor's tables: the others
/// are executed [`OFTEN`] times as often, so that all take about as long.
const SLOW: [&str; 3] = ["blob_layers", "local_client", "local_server"];

const OFTEN: u64 = 4;

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Executions, over all targets together
    #[arg(long, default_value_t = 10_000_000)]
    executions: u64,
    /// Only these targets, by name
    #[arg(long, value_name = "TARGET", value_delimiter = ',')]
    only: Vec<String>,
    /// With AddressSanitizer, which makes this slower and needs one of the compiler's unstable flags
    #[arg(long)]
    address: bool,
    /// Afterwards reduce fuzz/corpus and what was found to the inputs that reach something no other does
    #[arg(long)]
    keep: bool,
}

/// What became of a target.
struct Outcome {
    name: String,
    executions: u64,
    time: Duration,
    corpus: usize,
    /// What it printed, if it failed.
    failure: Option<String>,
}

/// All targets, for the long checks.
pub(crate) fn all(executions: u64) -> Result<()> {
    run(&Args { executions, only: vec![], address: false, keep: false })
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let names = targets(&args.only)?;
    let program = build(args.address)?;
    let share = |name: &String| if SLOW.contains(&name.as_str()) { 1 } else { OFTEN };
    let one = args.executions.div_ceil(names.iter().map(share).sum());
    let workers = thread::available_parallelism().map_or(1, usize::from).min(names.len());
    println!("{} targets, {} executions, {workers} targets at a time", names.len(), args.executions);
    let started = Instant::now();
    let (waiting, outcomes) = (Mutex::new(names), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().ok().and_then(|mut names| names.pop());
                    let Some(name) = next else { break };
                    let outcome = fuzz(&program, &name, one * share(&name));
                    println!("{name} is done after {:.0} s", started.elapsed().as_secs_f64());
                    outcomes.lock().map(|mut outcomes| outcomes.push(outcome)).unwrap_or_default();
                }
            });
        }
    });
    let mut outcomes: Vec<Outcome> =
        outcomes.into_inner().unwrap_or_default().into_iter().collect::<Result<_>>()?;
    outcomes.sort_by(|a, b| a.name.cmp(&b.name));
    report(&outcomes, started.elapsed())?;
    if args.keep {
        outcomes.iter().try_for_each(|outcome| reduce(&program, &outcome.name))?;
    }
    Ok(())
}

/// A target has a folder of inputs; a test holds the folders and the targets to each other.
fn targets(only: &[String]) -> Result<Vec<String>> {
    let corpus = seeds("");
    let entries = fs::read_dir(&corpus).with_context(|| format!("could not read {}", corpus.display()))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    if let Some(unknown) = only.iter().find(|name| !names.contains(name)) {
        bail!("there is no target {unknown}; there are {}", names.join(", "));
    }
    names.retain(|name| only.is_empty() || only.contains(name));
    Ok(names)
}

/// Builds the one program that all targets are in.
fn build(address: bool) -> Result<PathBuf> {
    println!("Building the targets takes about a minute the first time.");
    let version = process::output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    // With a target named, the flags are for the program alone and not for build scripts.
    let mut cargo = cargo("build");
    cargo.args(["--locked", "--profile", "fuzz", "--package", "connect-fuzz", "--target", host]);
    cargo.arg("--message-format=json-render-diagnostics");
    if address {
        cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", format!("{COVERAGE} -Zsanitizer=address"));
    } else {
        cargo.env("RUSTFLAGS", COVERAGE);
    }
    let messages = process::output(&mut cargo)?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program =
        messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next_back();
    program.context("cargo built no program")
}

fn fuzz(program: &Path, name: &str, executions: u64) -> Result<Outcome> {
    let (corpus, crashes) = (found(program, name), layout::root().join("fuzz/crashes").join(name));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&crashes)?;
    let started = Instant::now();
    let output = target(program, name)
        .arg(format!("-runs={executions}"))
        .args([MAX_LEN, TIMEOUT, "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .args([&corpus, &seeds(name), &crashes])
        .output()
        .with_context(|| format!("could not start {}", program.display()))?;
    // Git keeps no empty folder, and nobody needs one.
    let _ = fs::remove_dir(&crashes);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let count = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    Ok(Outcome {
        name: name.to_owned(),
        executions: count.and_then(|count| count.trim().parse().ok()).unwrap_or_default(),
        time: started.elapsed(),
        corpus: fs::read_dir(corpus)?.count() + fs::read_dir(seeds(name))?.count(),
        failure: (!output.status.success()).then_some(said),
    })
}

/// Prints the table; fails if any target failed.
fn report(outcomes: &[Outcome], time: Duration) -> Result<()> {
    println!("\n{:<14} {:>12} {:>10} {:>8} {:>8}", "target", "executions", "execs/s", "crashes", "corpus");
    for outcome in outcomes {
        let rate = outcome.executions as f64 / outcome.time.as_secs_f64();
        let crashes = u8::from(outcome.failure.is_some());
        let Outcome { name, executions, corpus, .. } = outcome;
        println!("{name:<14} {executions:>12} {rate:>10.0} {crashes:>8} {corpus:>8}");
    }
    let total: u64 = outcomes.iter().map(|outcome| outcome.executions).sum();
    let rate = total as f64 / time.as_secs_f64();
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.failure.is_some()).collect();
    println!("{:<14} {total:>12} {rate:>10.0} {:>8}   in {:.0} s", "all", failed.len(), time.as_secs_f64());
    for outcome in &failed {
        let said = outcome.failure.as_deref().unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        let from = lines.iter().position(|line| line.contains("panicked at") || line.contains("ERROR:"));
        let shown = &lines[from.unwrap_or(lines.len().saturating_sub(20))..];
        eprintln!("\n--- {} ---\n{}", outcome.name, shown[..shown.len().min(40)].join("\n"));
    }
    ensure!(
        failed.is_empty(),
        "{} targets failed; the inputs are in fuzz/crashes, where `cargo test -p connect-core` runs them too",
        failed.len()
    );
    Ok(())
}

/// Makes the smallest set of inputs that reaches as much code the corpus.
fn reduce(program: &Path, name: &str) -> Result<()> {
    let (all, small) = (seeds(name), found(program, &format!("{name}.small")));
    let _ = fs::remove_dir_all(&small);
    fs::create_dir_all(&small)?;
    let mut merge = target(program, name);
    // By what code is reached and not by how often: a tenth of the files.
    merge.args(["-set_cover_merge=1", "-use_counters=0", MAX_LEN]).args([
        &small,
        &all,
        &found(program, name),
    ]);
    process::output(&mut merge)?;
    fs::remove_dir_all(&all)?;
    fs::create_dir_all(&all)?;
    for input in fs::read_dir(&small)? {
        let input = input?;
        fs::copy(input.path(), all.join(input.file_name()))?;
    }
    println!("{name}: {} inputs kept", fs::read_dir(&all)?.count());
    Ok(())
}

fn target(program: &Path, name: &str) -> Command {
    let mut command = Command::new(program);
    command.env("CONNECT_FUZZ", name).current_dir(layout::root());
    command
}

/// The inputs that are committed.
fn seeds(name: &str) -> PathBuf {
    layout::root().join("fuzz/corpus").join(name)
}

/// The inputs that earlier runs here have found.
fn found(program: &Path, name: &str) -> PathBuf {
    program.with_file_name("corpus").join(name)
}
