//! [`Bench`]: runs sweeps, engine by engine within a round, so that what else the machine does hits all of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Write;
use std::time::Instant;

use anyhow::Result;
use indicatif::ProgressBar;
use serde::Serialize;

use super::{Cell, Sweep};
use crate::Round;
use crate::engine::Engine;
use crate::machine::Machine;
use crate::pair::Pair;
use crate::record::Record;

/// Rounds of a sweep, however long they take: one could be any.
const FEWEST_ROUNDS: usize = 2;

/// Where the rounds of a run are measured and written down.
pub struct Bench<W> {
    pairs: HashMap<Engine, Pair>,
    /// Pairs are used by one sweep after another.
    keeps_pairs: bool,
    records: W,
    bar: ProgressBar,
    failures: Vec<String>,
}

impl<W: Write> Bench<W> {
    /// `keeps_pairs` has all sweeps share their processes: starting the original's takes ten seconds.
    ///
    /// # Errors
    /// The first record, which is of the machine, can't be written.
    pub fn new(keeps_pairs: bool, machine: &Machine, mut records: W, bar: ProgressBar) -> Result<Self> {
        write_line(&mut records, machine)?;
        Ok(Self { pairs: HashMap::new(), keeps_pairs, records, bar, failures: Vec::new() })
    }

    /// What did not work so far: an engine that does not start, an operation that failed or moved wrong bytes. The
    /// run goes on without that engine at that point.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Measures a sweep.
    ///
    /// # Errors
    /// The records can't be written.
    pub fn run(&mut self, sweep: &Sweep) -> Result<Vec<Cell>> {
        let mut cells = sweep.cells();
        let begun = Instant::now();
        // All points of a round come before any of the next: ratios are formed between points, too.
        for round in 0..sweep.rounds {
            if round >= FEWEST_ROUNDS && begun.elapsed() > sweep.patience {
                self.bar.inc(((sweep.rounds - round) * cells.len()) as u64);
                break;
            }
            for turn in 0..cells.len() {
                // Each begins in turn: who comes after a noisy one would always come after it.
                let index = (turn + round) % cells.len();
                let cell = &mut cells[index];
                self.bar.set_message(format!("{}: {}", sweep.name, cell.engine.label()));
                // One that failed is not tried again.
                if cell.rounds.len() == round {
                    self.measure(sweep, cell)?;
                }
                self.bar.inc(1);
            }
        }
        if !self.keeps_pairs {
            self.pairs.clear();
        }
        Ok(cells)
    }

    /// One round of one engine at one point.
    fn measure(&mut self, sweep: &Sweep, cell: &mut Cell) -> Result<()> {
        if sweep.fresh {
            self.pairs.remove(&cell.engine);
        }
        match self.round(cell) {
            Ok(round) => {
                write_line(&mut self.records, &Record::new(cell, cell.rounds.len(), &round))?;
                cell.rounds.push(round);
            }
            Err(error) => {
                self.pairs.remove(&cell.engine);
                let failure = format!("{}, {} at {}: {error:#}", cell.engine.label(), sweep.name, cell.at);
                self.bar.suspend(|| eprintln!("{failure}"));
                self.failures.push(failure);
            }
        }
        Ok(())
    }

    fn round(&mut self, cell: &Cell) -> Result<Round> {
        let pair = match self.pairs.entry(cell.engine) {
            Entry::Occupied(pair) => pair.into_mut(),
            Entry::Vacant(place) => place.insert(Pair::start(cell.engine)?),
        };
        pair.round(&cell.load)
    }
}

fn write_line(to: &mut impl Write, record: &impl Serialize) -> Result<()> {
    serde_json::to_writer(&mut *to, record)?;
    Ok(writeln!(to)?)
}
