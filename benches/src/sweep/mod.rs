//! [`Sweep`]: one axis, the engines that are compared along it, and what came of it.

mod list;
mod run;

use std::time::Duration;

use crate::engine::Engine;
use crate::metric::Metric;
use crate::{Load, Round};

pub use list::{all, names};
pub use run::Bench;

/// Loads that differ in one respect, for several engines.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// For `--only`, records and file names.
    pub name: &'static str,
    /// What a reader sees above its table.
    pub title: &'static str,
    /// What is measured and how, in a sentence or two.
    pub about: &'static str,
    /// What the axis is.
    pub axis: &'static str,
    /// The load at each place of the axis, in its order.
    pub points: Vec<(u64, Load)>,
    /// Who takes part.
    pub engines: Vec<Engine>,
    /// How often each point is measured with each engine, in turns.
    pub rounds: usize,
    /// After so long there are no further rounds, so that a slow or busy machine is done in time, too.
    pub patience: Duration,
    /// Every round has processes of its own.
    pub fresh: bool,
    /// The columns of its table.
    pub columns: &'static [Metric],
    /// Its plots.
    pub plots: &'static [Plot],
}

impl Sweep {
    /// Every engine at every point that it can do, without rounds yet.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for (at, load) in &self.points {
            let engines = self.engines.iter().filter(|engine| engine.can(load));
            let cell = |engine| Cell { sweep: self.name, at: *at, load: *load, engine, rounds: Vec::new() };
            cells.extend(engines.copied().map(cell));
        }
        cells
    }
}

/// A way to draw a sweep.
#[derive(Debug, Clone, Copy)]
pub enum Plot {
    /// This along the axis, a line for each engine.
    Lines(Metric),
    /// This as a bar for each engine, at the first point.
    Bars(Metric),
    /// The first across, the second up, a dot for each engine, at the first point.
    Dots(Metric, Metric),
}

impl Plot {
    /// What is up, or as long as a bar.
    pub fn up(self) -> Metric {
        match self {
            Self::Lines(metric) | Self::Bars(metric) | Self::Dots(_, metric) => metric,
        }
    }
}

/// One engine at one point.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Which sweep.
    pub sweep: &'static str,
    /// The place on its axis.
    pub at: u64,
    /// The load there.
    pub load: Load,
    /// Who.
    pub engine: Engine,
    /// In the order in which they were measured: the first of each engine belong together, and so on.
    pub rounds: Vec<Round>,
}

impl Cell {
    /// A metric over the samples of all rounds.
    pub fn pooled(&self, metric: Metric) -> Option<f64> {
        let mut all = Round::default();
        self.rounds.iter().for_each(|round| all.extend(round));
        metric.of(&self.load, &all)
    }

    /// A metric of each round.
    pub fn each(&self, metric: Metric) -> Vec<f64> {
        self.rounds.iter().filter_map(|round| metric.of(&self.load, round)).collect()
    }
}

/// A place on an axis, short.
pub fn place(at: u64) -> String {
    match at {
        0 => "0".to_owned(),
        _ if at.is_multiple_of(1 << 30) => format!("{} Gi", at >> 30),
        _ if at.is_multiple_of(1 << 20) => format!("{} Mi", at >> 20),
        _ if at.is_multiple_of(1 << 10) => format!("{} Ki", at >> 10),
        _ => at.to_string(),
    }
}
