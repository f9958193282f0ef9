//! Named steps, run one after another, with a table at the end: what `test` and `verify` are made of.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::process;
use crate::setup::{self, Group};

/// Which steps.
#[derive(Clone, clap::Args)]
pub(crate) struct Choice {
    /// Only these steps, by name
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Go on after a step that failed
    #[arg(long)]
    keep_going: bool,
    /// Only show the steps
    #[arg(long)]
    list: bool,
}

/// One step.
pub(crate) struct Step {
    /// For `--only`.
    pub(crate) name: &'static str,
    /// What it shows.
    pub(crate) what: &'static str,
    /// What must be set up for it.
    pub(crate) needs: &'static [Group],
    /// Runs it; an error fails it.
    pub(crate) run: fn(&mut Outcome) -> Result<()>,
}

/// What became of a step.
enum End {
    Passed(Outcome),
    Failed(Outcome, anyhow::Error),
    NotRun,
}

/// Runs steps, or those of them that were asked for.
pub(crate) fn run(steps: &'static [Step], args: &Choice) -> Result<()> {
    let chosen = choose(steps, &args.only)?;
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

fn choose(steps: &'static [Step], only: &[String]) -> Result<Vec<&'static Step>> {
    if let Some(unknown) = only.iter().find(|name| !steps.iter().any(|step| step.name == **name)) {
        let names: Vec<&str> = steps.iter().map(|step| step.name).collect();
        bail!("there is no step {unknown}; there are {}", names.join(", "));
    }
    Ok(steps.iter().filter(|step| only.is_empty() || only.iter().any(|name| name == step.name)).collect())
}

fn run_step(step: &Step) -> End {
    let mut outcome = Outcome::default();
    match setup::ensure(step.needs).and_then(|_| (step.run)(&mut outcome)) {
        Ok(()) => End::Passed(outcome),
        Err(error) => {
            eprintln!("\n{} failed: {error:#}", step.name);
            End::Failed(outcome, error)
        }
    }
}

/// Prints what failed once more, below everything else that was printed, and the closing table; fails if any step
/// failed.
fn report(ends: &[(&Step, End, Duration)]) -> Result<()> {
    for (step, end, _) in ends {
        if let End::Failed(outcome, error) = end {
            println!("\n=== {} failed: {error:#} ===", step.name);
            outcome.failures.iter().for_each(|line| println!("{line}"));
        }
    }
    println!("\n{:<12} {:<8} {:>9}  tests", "step", "result", "time");
    let (mut passed, mut failed) = (0, 0);
    for (step, end, time) in ends {
        let (word, outcome) = match end {
            End::Passed(outcome) => ("passed", outcome),
            End::Failed(outcome, _) => ("FAILED", outcome),
            End::NotRun => ("not run", &Outcome::default()),
        };
        // A step without tests of its own counts as one check; one that failed counts even if all its tests passed.
        match end {
            End::Passed(outcome) => passed += outcome.passed.max(1),
            End::Failed(outcome, _) => {
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

/// What the test programs of a step reported.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
    /// Tests that are marked to be ignored.
    ignored: u64,
    /// What libtest printed of failing tests, up to [`FAILURE_LINES`].
    failures: Vec<String>,
    /// The lines that come now belong to `failures`.
    failing: bool,
}

/// Of what failing tests printed, so many lines are shown again at the end.
const FAILURE_LINES: usize = 400;

impl Outcome {
    /// Adds what one of libtest's closing lines says, and keeps what it says of failures before.
    fn count(&mut self, line: &str) {
        self.failing = (self.failing || line == "failures:") && !line.starts_with("test result: ");
        if self.failing && self.failures.len() < FAILURE_LINES {
            self.failures.push(line.to_owned());
        }
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in counts.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    /// For the closing table; empty for a step without tests.
    pub(crate) fn summary(&self) -> String {
        let counts = [(self.passed, "passed"), (self.failed, "failed"), (self.ignored, "ignored")];
        let words =
            counts.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{number} {what}"));
        words.collect::<Vec<_>>().join(", ")
    }
}

/// Runs test programs and counts what they report; that none ran is a failure.
pub(crate) fn counted(command: &mut Command, outcome: &mut Outcome) -> Result<()> {
    process::run_seen(command, |line| outcome.count(line))?;
    ensure!(outcome.passed > 0, "no test ran");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_lines_of_all_test_programs_add_up() {
        let mut outcome = Outcome::default();
        outcome.count("running 3 tests");
        outcome.count(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
        );
        outcome.count("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s");
        assert_eq!((outcome.passed, outcome.failed, outcome.ignored), (4, 2, 1));
        assert_eq!(outcome.summary(), "4 passed, 2 failed, 1 ignored");
    }

    #[test]
    fn what_failing_tests_printed_is_kept_for_the_end() {
        let mut outcome = Outcome::default();
        let lines = [
            "test a ... FAILED",
            "failures:",
            "---- a stdout ----",
            "assertion failed",
            "test result: FAILED. 0 passed; 1 failed",
            "more",
        ];
        lines.iter().for_each(|line| outcome.count(line));
        assert_eq!(outcome.failures, lines[1..4]);
    }

    #[test]
    fn no_two_steps_share_a_name() {
        for steps in [crate::check::STEPS, crate::verify::STEPS] {
            for (index, step) in steps.iter().enumerate() {
                assert!(steps[index + 1..].iter().all(|other| other.name != step.name), "{}", step.name);
            }
        }
    }
}
