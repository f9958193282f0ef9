//! [`Record`]: one round as a line of JSON, for whoever wants to look closer.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::metric::Metric;
use crate::sweep::Cell;
use crate::{Engine, Load, Round};

/// What a line says.
#[derive(Debug, Serialize)]
pub struct Record {
    sweep: &'static str,
    at: u64,
    engine: Engine,
    round: usize,
    load: Load,
    samples: usize,
    #[serde(flatten)]
    metrics: Map<String, Value>,
}

impl Record {
    /// Of the next round of `cell`. Metrics that too few samples stand behind are left out.
    pub fn new(cell: &Cell, number: usize, round: &Round) -> Self {
        let value = |metric: &Metric| {
            let value = metric.of(&cell.load, round)?;
            Some((metric.name(), Value::from(value)))
        };
        Self {
            sweep: cell.sweep,
            at: cell.at,
            engine: cell.engine,
            round: number,
            load: cell.load,
            samples: round.reads.len(),
            metrics: Metric::ALL.iter().filter_map(value).collect(),
        }
    }
}
