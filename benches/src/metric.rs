//! [`Metric`]: what is read off a round.

use std::time::Duration;

use crate::{Load, Round, Usage};

/// One column of a table, one axis of a plot, one field of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Microseconds from `begin_read` to completion: the median.
    P50,
    /// The same: what one in a hundred exceeds.
    P99,
    /// The same: what one in a thousand exceeds.
    P999,
    /// Microseconds of a burst for each of its operations, the median over bursts.
    PerOperation,
    /// Operations a second, from the same.
    Rate,
    /// Bytes a second, from the same, in units of 10^9.
    Bandwidth,
    /// Microseconds of processor time for each operation, in bursts.
    CpuPerOperation(Side),
    /// Milliseconds of processor time for each 10^9 bytes, in bursts.
    CpuPerGigabyte(Side),
    /// Resident memory in units of 10^6 bytes.
    Resident(Side),
    /// Percent of a core used while nothing happens.
    IdleShare(Side),
    /// Percent of a core used over the whole round.
    Share(Side),
    /// Microseconds of a whole round: offer, JSON, read, and both sides know.
    Whole,
    /// Microseconds from `begin_read` until the passive side's caller knows: the median.
    Learned,
    /// The same: what one in a hundred exceeds.
    Learned99,
    /// Microseconds to make an offer, up to its metadata.
    Offer,
    /// Bytes of the metadata as JSON.
    Document,
}

/// Which process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that reads.
    Active,
    /// The one that offers.
    Passive,
    /// The two together.
    Both,
}

impl Metric {
    /// All of them, as a record lists them.
    pub const ALL: [Self; 21] = [
        Self::P50,
        Self::P99,
        Self::P999,
        Self::PerOperation,
        Self::Rate,
        Self::Bandwidth,
        Self::CpuPerOperation(Side::Active),
        Self::CpuPerOperation(Side::Passive),
        Self::CpuPerGigabyte(Side::Active),
        Self::CpuPerGigabyte(Side::Passive),
        Self::Resident(Side::Active),
        Self::Resident(Side::Passive),
        Self::IdleShare(Side::Active),
        Self::IdleShare(Side::Passive),
        Self::Share(Side::Active),
        Self::Share(Side::Passive),
        Self::Whole,
        Self::Learned,
        Self::Learned99,
        Self::Offer,
        Self::Document,
    ];

    /// Its value in `round`; `None` where that has too few samples, or none.
    pub fn of(self, load: &Load, round: &Round) -> Option<f64> {
        let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
        // A burst of one is its read, and what surrounds that is the Python worker's own affair.
        let bursts = if load.in_flight == 1 { &round.reads } else { &round.bursts };
        let burst = || bursts.percentile(0.5).map(|burst| burst.as_secs_f64());
        let operations = load.in_flight as f64;
        let share = |used: Duration, of: Duration| {
            (!of.is_zero()).then(|| used.as_secs_f64() / of.as_secs_f64() * 100.0)
        };
        match self {
            Self::P50 => round.reads.percentile(0.5).map(micros),
            Self::P99 => round.reads.percentile(0.99).map(micros),
            Self::P999 => round.reads.percentile(0.999).map(micros),
            Self::PerOperation => Some(burst()? * 1e6 / operations),
            Self::Rate => Some(operations / burst()?),
            Self::Bandwidth => Some(load.bytes() as f64 * operations / burst()? / 1e9),
            Self::CpuPerOperation(side) => {
                let used = micros(side.of(round).bursts);
                (!round.reads.is_empty()).then(|| used / round.reads.len() as f64)
            }
            Self::CpuPerGigabyte(side) => {
                let used = side.of(round).bursts.as_secs_f64() * 1e3;
                (round.bytes > 0).then(|| used / (round.bytes as f64 / 1e9))
            }
            Self::Resident(side) => Some(side.of(round).resident as f64 / 1e6),
            Self::IdleShare(side) => share(side.of(round).idle, round.idle),
            Self::Share(side) => share(side.of(round).whole, round.elapsed),
            Self::Whole => round.wholes.percentile(0.5).map(micros),
            Self::Learned => round.learned.percentile(0.5).map(micros),
            Self::Learned99 => round.learned.percentile(0.99).map(micros),
            Self::Offer => round.offers.percentile(0.5).map(micros),
            Self::Document => (round.document > 0).then_some(round.document as f64),
        }
    }

    /// Its name in records.
    pub fn name(self) -> String {
        let name = match self {
            Self::P50 => "read_p50_us",
            Self::P99 => "read_p99_us",
            Self::P999 => "read_p999_us",
            Self::PerOperation => "per_operation_us",
            Self::Rate => "operations_per_s",
            Self::Bandwidth => "gb_per_s",
            Self::CpuPerOperation(side) => return format!("cpu_per_operation_{}_us", side.name()),
            Self::CpuPerGigabyte(side) => return format!("cpu_per_gb_{}_ms", side.name()),
            Self::Resident(side) => return format!("resident_{}_mb", side.name()),
            Self::IdleShare(side) => return format!("idle_{}_percent", side.name()),
            Self::Share(side) => return format!("core_{}_percent", side.name()),
            Self::Whole => "whole_p50_us",
            Self::Learned => "learned_p50_us",
            Self::Learned99 => "learned_p99_us",
            Self::Offer => "offer_p50_us",
            Self::Document => "document_bytes",
        };
        name.to_owned()
    }

    /// Its heading in tables and plots, with the unit.
    pub fn heading(self) -> String {
        let heading = match self {
            Self::P50 => "p50, us",
            Self::P99 => "p99, us",
            Self::P999 => "p99.9, us",
            Self::PerOperation => "us per operation",
            Self::Rate => "operations/s",
            Self::Bandwidth => "GB/s",
            Self::CpuPerOperation(side) => return format!("CPU us/op, {}", side.name()),
            Self::CpuPerGigabyte(side) => return format!("CPU ms/GB, {}", side.name()),
            Self::Resident(side) => return format!("MB, {}", side.name()),
            Self::IdleShare(side) => return format!("idle, % of a core, {}", side.name()),
            Self::Share(side) => return format!("% of a core, {}", side.name()),
            Self::Whole => "whole round p50, us",
            Self::Learned => "passive side knows p50, us",
            Self::Learned99 => "passive side knows p99, us",
            Self::Offer => "offer p50, us",
            Self::Document => "metadata, bytes",
        };
        heading.to_owned()
    }
}

impl Side {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Passive => "passive",
            Self::Both => "both",
        }
    }

    fn of(self, round: &Round) -> Usage {
        match self {
            Self::Active => round.active,
            Self::Passive => round.passive,
            Self::Both => round.active + round.passive,
        }
    }
}

/// A value with as many digits as mean something.
pub fn shown(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value.abs() >= 1e7 => format!("{value:.1e}"),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) if value == 0.0 || value.abs() >= 0.01 => format!("{value:.2}"),
        Some(value) => format!("{value:.0e}"),
    }
}
