//! [`Tally`]: what has happened so far, and what should not have.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use connect_core::ErrorCategory;

use super::plan::{Deed, End};

/// How an operation of the survivor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// With every byte right, where that can be seen.
    Completed,
    /// With this kind of error.
    Failed(ErrorCategory),
}

/// Times at which the survivor learned that a peer was gone, counted from the signal.
#[derive(Debug, Default, Clone)]
struct Noticed {
    times: Vec<Duration>,
}

/// Counts of a storm.
#[derive(Debug, Default)]
pub struct Tally {
    /// Rounds played.
    pub rounds: u64,
    /// Victims killed.
    pub kills: u64,
    /// Victims stopped, and killed then.
    pub stopped_and_killed: u64,
    /// Victims stopped and continued.
    pub continued: u64,
    /// Of these, those whose moment never came, so that the signal came when all was over.
    pub missed: u64,
    /// Verified transfers with fresh peers and the bystander.
    pub healthy: u64,
    /// Operations of the survivor with victims.
    pub operations: u64,
    /// Those that completed.
    pub completed: u64,
    /// Those that failed, by the kind of error.
    pub failed: BTreeMap<String, u64>,
    /// Operations whose memory was parked when they ended.
    pub parked: u64,
    /// The longest that memory was parked beyond the end of its round.
    pub longest_parked: Duration,
    /// The latest that an operation ended after its deadline.
    pub latest: Duration,
    /// What a victim reported of its own operations after it was continued.
    pub theirs: BTreeMap<String, u64>,
    /// Victims that could not close their connector in time after they were continued.
    pub not_closed: u64,
    /// Broken promises.
    pub violations: Vec<String>,
    noticed: BTreeMap<(Deed, &'static str, &'static str), Noticed>,
}

/// Violations that are kept; a storm that has more is as bad with these.
const MOST_VIOLATIONS: usize = 50;

impl Tally {
    /// Counts an operation of the survivor.
    pub fn ended(&mut self, verdict: &Verdict) {
        self.operations += 1;
        match verdict {
            Verdict::Completed => self.completed += 1,
            Verdict::Failed(category) => *self.failed.entry(category.to_string()).or_default() += 1,
        }
    }

    /// Counts a victim's end.
    pub fn struck(&mut self, end: End, missed: bool) {
        self.missed += u64::from(missed);
        *match end {
            End::Kill => &mut self.kills,
            End::StopKill(_) => &mut self.stopped_and_killed,
            End::StopContinue(_) => &mut self.continued,
        } += 1;
    }

    /// Notes when an operation learned that its peer was gone.
    pub fn noticed(&mut self, deed: Deed, death: &'static str, category: ErrorCategory, after: Duration) {
        let how = if category == ErrorCategory::Deadline { "by its deadline" } else { "before" };
        self.noticed.entry((deed, death, how)).or_default().times.push(after);
    }

    /// Notes a broken promise.
    pub fn violation(&mut self, what: String) {
        eprintln!("VIOLATION: {what}");
        if self.violations.len() < MOST_VIOLATIONS {
            self.violations.push(what);
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |counts: &BTreeMap<String, u64>| {
            let mut text = String::new();
            for (name, count) in counts {
                let _ = write!(text, "  {name} {count}");
            }
            text
        };
        writeln!(f, "  rounds               {}", self.rounds)?;
        writeln!(f, "  killed               {}", self.kills)?;
        writeln!(f, "  stopped and killed   {}", self.stopped_and_killed)?;
        writeln!(f, "  stopped, continued   {}", self.continued)?;
        writeln!(f, "  signal when over     {}", self.missed)?;
        writeln!(f, "  operations           {}", self.operations)?;
        writeln!(f, "    completed          {}", self.completed)?;
        writeln!(f, "    failed           {}", list(&self.failed))?;
        writeln!(f, "    memory parked      {}", self.parked)?;
        writeln!(f, "    latest             {:.0?} after its deadline", self.latest)?;
        writeln!(f, "  parked at the most   {:.0?} beyond the round", self.longest_parked)?;
        writeln!(f, "  healthy transfers    {}", self.healthy)?;
        writeln!(f, "  victims' own ends  {}", list(&self.theirs))?;
        writeln!(f, "    could not close    {}", self.not_closed)?;
        writeln!(f, "  violations           {}", self.violations.len())?;
        writeln!(f, "  the survivor learned of its peer's end (from the signal; count, median, slowest):")?;
        for ((deed, death, how), noticed) in &self.noticed {
            let mut times = noticed.times.clone();
            times.sort();
            let median = times.get(times.len() / 2).copied().unwrap_or_default();
            let slowest = times.last().copied().unwrap_or_default();
            let (deed, count) = (deed.name(), times.len());
            writeln!(f, "    {deed:<9} {death:<8} {how:<16} {count:>6} {median:>10.1?} {slowest:>10.1?}")?;
        }
        Ok(())
    }
}
