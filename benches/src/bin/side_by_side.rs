//! `cargo xtask bench`: this library, NIXL with nothing around it, the Python original, and what the machine itself
//! can do, side by side in one run.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use connect_benches::engine::{Engine, serve_active, serve_passive};
use connect_benches::goals::{self, Goal, Limit};
use connect_benches::machine::Machine;
use connect_benches::pair::Pair;
use connect_benches::sweep::{self, Bench, Cell, Sweep};
use connect_benches::{Load, report, table};
use indicatif::{ProgressBar, ProgressStyle};

/// Compares this library with nixl-sys, the Python original, memcpy and cross-memory attach.
#[derive(Debug, Parser)]
struct Args {
    /// A moment for each thing: shows that everything runs and moves the right bytes, not how fast
    #[arg(long)]
    quick: bool,
    /// Only these sweeps, by name
    #[arg(long, value_name = "SWEEP", value_delimiter = ',')]
    only: Vec<String>,
    /// Only the embedded transport, and what the machine itself can do
    #[arg(long)]
    local_only: bool,
    /// Where the page, its plots and its records go; docs/ for a full run, else target/bench
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only show the sweeps
    #[arg(long)]
    list: bool,
    /// Runs as the active side of an engine
    #[arg(long, hide = true)]
    active: Option<Engine>,
    /// Runs as the passive side of an engine
    #[arg(long, hide = true)]
    passive: Option<Engine>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    match (args.active, args.passive) {
        (Some(engine), _) => serve_active(engine),
        (_, Some(engine)) => serve_passive(engine),
        _ => compare(&args),
    }
}

fn compare(args: &Args) -> Result<()> {
    let mut sweeps = chosen(args)?;
    if args.list {
        sweeps.iter().for_each(|sweep| println!("{:<12} {}", sweep.name, sweep.title));
        return Ok(());
    }
    leave_out_attach_if_refused(&mut sweeps);
    let (out, machine, started) = (out(args), Machine::here(), Instant::now());
    println!("{}\n", machine.sentence());
    let folder = out.join(report::FOLDER);
    fs::create_dir_all(&folder)?;
    let records = BufWriter::new(File::create(folder.join("records.jsonl"))?);
    let rounds: usize = sweeps.iter().map(|sweep| sweep.cells().len() * sweep.rounds).sum();
    let bar = ProgressBar::new(rounds as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} rounds, {elapsed}  {wide_msg}")?);

    let mut bench = Bench::new(args.quick, &machine, records, bar.clone())?;
    let mut cells = Vec::new();
    for sweep in &sweeps {
        let begun = Instant::now();
        cells.extend(bench.run(sweep)?);
        if !args.quick {
            let table = table::plain(table::of_sweep(sweep, &cells));
            let seconds = begun.elapsed().as_secs();
            bar.suspend(|| println!("{} ({}, {seconds} s)\n{table}\n", sweep.title, sweep.name));
        }
    }
    bar.finish_and_clear();

    let mut goals = goals::all(&cells);
    if args.quick {
        // Its rounds are too short to say how fast anything is.
        goals.iter_mut().for_each(|goal| goal.limit = Limit::None);
    } else {
        println!("{}\n", table::plain(table::of_goals(&goals)));
    }
    let page = report::write(&out, &machine, &sweeps, &cells, &goals)?;
    println!("{}", moved(&cells));
    println!("{} was written after {} s", page.display(), started.elapsed().as_secs());
    judge(bench.failures(), &goals)
}

/// What was moved and checked.
fn moved(cells: &[Cell]) -> String {
    let rounds = || cells.iter().flat_map(|cell| &cell.rounds);
    let operations: usize = rounds().map(|round| round.reads.len()).sum();
    let bytes: u64 = rounds().map(|round| round.bytes).sum();
    let gigabytes = bytes as f64 / 1e9;
    format!(
        "{operations} operations in {} rounds moved {gigabytes:.1} GB, and all that arrived was compared",
        rounds().count()
    )
}

fn judge(failures: &[String], goals: &[Goal]) -> Result<()> {
    ensure!(failures.is_empty(), "not everything worked:\n{}", failures.join("\n"));
    let missed = goals.iter().filter(|goal| !goal.is_met()).count();
    ensure!(missed == 0, "{missed} goals were missed, see above; was the machine busy with something else?");
    Ok(())
}

/// The sweeps that were asked for, with the engines that were.
fn chosen(args: &Args) -> Result<Vec<Sweep>> {
    let names = sweep::names();
    if let Some(unknown) = args.only.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("there is no sweep {unknown}; there are {}", names.join(", "));
    }
    let mut sweeps = sweep::all(args.quick);
    sweeps.retain(|sweep| args.only.is_empty() || args.only.iter().any(|name| name == sweep.name));
    for sweep in &mut sweeps {
        sweep.engines.retain(|engine| !(args.local_only && engine.needs_nixl()));
    }
    sweeps.retain(|sweep| !sweep.engines.is_empty());
    Ok(sweeps)
}

/// Some machines let no process read another's memory (`doctor` says which and why). The embedded transport streams
/// there, and has nothing to be compared with.
fn leave_out_attach_if_refused(sweeps: &mut [Sweep]) {
    let tried = Pair::start(Engine::Attach).and_then(|mut pair| pair.round(&Load::PAGE));
    if let Err(error) = tried {
        println!("Left out: {} ({error:#})", Engine::Attach.label());
        sweeps.iter_mut().for_each(|sweep| sweep.engines.retain(|engine| *engine != Engine::Attach));
    }
}

/// A part of a run, or a quick one, does not replace the page of a whole one.
fn out(args: &Args) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = package.parent().unwrap_or(package);
    let is_whole = !args.quick && !args.local_only && args.only.is_empty();
    args.out.clone().unwrap_or_else(|| root.join(if is_whole { "docs" } else { "target/bench" }))
}
