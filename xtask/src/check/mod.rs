//! `cargo xtask test`: what CI runs, as named steps, the quick ones first.

mod licences;
mod reasons;
mod spdx;
mod steps;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::setup;
use steps::{Outcome, STEPS, Step};

/// Which steps.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these steps, by name
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    only: Vec<String>,
    /// Go on after a step that failed
    #[arg(long)]
    keep_going: bool,
    /// Only show the steps
    #[arg(long)]
    list: bool,
}

/// What became of a step.
enum End {
    Passed(Outcome),
    Failed(Outcome),
    NotRun,
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let chosen = choose(&args.only)?;
    if args.list {
        for step in chosen {
            println!("{:<12} {}", step.name, step.what);
        }
        return Ok(());
    }
    let mut ends = Vec::new();
    let mut failed = false;
    for (index, step) in chosen.iter().enumerate() {
        if failed && !args.keep_going {
            ends.push((*step, End::NotRun, Duration::ZERO));
            continue;
        }
        println!("\n=== {}/{} {}: {} ===", index + 1, chosen.len(), step.name, step.what);
        let started = Instant::now();
        let end = run_step(step);
        failed |= !matches!(end, End::Passed(_));
        println!("=== {} took {} ===", step.name, seconds(started.elapsed()));
        ends.push((*step, end, started.elapsed()));
    }
    report(&ends)
}

fn choose(only: &[String]) -> Result<Vec<&'static Step>> {
    if let Some(unknown) = only.iter().find(|name| !STEPS.iter().any(|step| step.name == **name)) {
        let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        bail!("there is no step {unknown}; there are {}", names.join(", "));
    }
    Ok(STEPS.iter().filter(|step| only.is_empty() || only.iter().any(|name| name == step.name)).collect())
}

fn run_step(step: &Step) -> End {
    let mut outcome = Outcome::default();
    match setup::ensure(step.needs).and_then(|_| (step.run)(&mut outcome)) {
        Ok(()) => End::Passed(outcome),
        Err(error) => {
            eprintln!("\n{} failed: {error:#}", step.name);
            End::Failed(outcome)
        }
    }
}

/// Prints the closing table; fails if any step failed.
fn report(ends: &[(&Step, End, Duration)]) -> Result<()> {
    println!("\n{:<12} {:<8} {:>9}  tests", "step", "result", "time");
    let (mut passed, mut failed) = (0, 0);
    for (step, end, time) in ends {
        let (word, outcome) = match end {
            End::Passed(outcome) => ("passed", outcome),
            End::Failed(outcome) => ("FAILED", outcome),
            End::NotRun => ("not run", &Outcome::default()),
        };
        // A step without tests of its own counts as one check; one that failed counts even if all its tests passed.
        match end {
            End::Passed(outcome) => passed += outcome.passed.max(1),
            End::Failed(outcome) => {
                passed += outcome.passed;
                failed += outcome.failed.max(1);
            }
            End::NotRun => {}
        }
        println!("{:<12} {word:<8} {:>9}  {}", step.name, seconds(*time), outcome.summary());
    }
    let total: Duration = ends.iter().map(|(_, _, time)| *time).sum();
    println!("{:<12} {:<8} {:>9}\n", "total", "", seconds(total));
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        // The failures are above, each where it happened.
        std::process::exit(1);
    }
    Ok(())
}

fn seconds(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 60.. => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}
