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

/// Rounds of a point, however long they take: one could be any.
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
        let mut cells = Vec::new();
        for (at, load) in &sweep.points {
            let engines: Vec<Engine> =
                sweep.engines.iter().copied().filter(|engine| engine.can(load)).collect();
            let mut point: Vec<Cell> = engines
                .iter()
                .map(|engine| Cell {
                    sweep: sweep.name,
                    at: *at,
                    load: *load,
                    engine: *engine,
                    rounds: Vec::new(),
                })
                .collect();
            let begun = Instant::now();
            for round in 0..sweep.rounds {
                if round >= FEWEST_ROUNDS && begun.elapsed() > sweep.patience {
                    self.bar.inc(((sweep.rounds - round) * engines.len()) as u64);
                    break;
                }
                // Each begins in turn: who comes after a noisy one would always come after it.
                for turn in 0..point.len() {
                    let cell = &mut point[(turn + round) % engines.len()];
                    self.bar.set_message(format!("{}: {}", sweep.name, cell.engine.label()));
                    // One that failed is not tried again.
                    if cell.rounds.len() == round {
                        self.measure(sweep, cell)?;
                    }
                    self.bar.inc(1);
                }
            }
            cells.extend(point);
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

/// How many rounds these sweeps have.
pub fn rounds(sweeps: &[Sweep]) -> usize {
    let points = |sweep: &Sweep| {
        let at = |(_, load): &(u64, _)| sweep.engines.iter().filter(|engine| engine.can(load)).count();
        sweep.points.iter().map(at).sum::<usize>() * sweep.rounds
    };
    sweeps.iter().map(points).sum()
}
