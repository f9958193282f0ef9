//! [`Goal`]: a ratio within one run, what it should be, and whether it is.

use crate::engine::Engine::{self, *};
use crate::metric::{Metric, Side, shown};
use crate::sweep::Cell;

/// A figure of a run, and the goal for it.
#[derive(Debug, Clone)]
pub struct Goal {
    /// What is compared with what.
    pub what: String,
    /// What it should be.
    pub limit: Limit,
    /// The median over rounds.
    pub value: f64,
    /// The least and the most of any round.
    pub spread: (f64, f64),
    /// What `value` is in.
    pub unit: &'static str,
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
    /// Shown, not judged.
    None,
}

impl Goal {
    /// Whether it is met.
    pub fn is_met(&self) -> bool {
        match self.limit {
            Limit::AtMost(most) => self.value <= most,
            Limit::AtLeast(least) => self.value >= least,
            Limit::None => true,
        }
    }

    /// The goal, as people say it.
    pub fn wanted(&self) -> String {
        match self.limit {
            Limit::AtMost(most) => format!("at most {most}{}", self.unit),
            Limit::AtLeast(least) => format!("at least {least}{}", self.unit),
            Limit::None => String::new(),
        }
    }

    /// The figure and its spread, as people say it.
    pub fn found(&self) -> String {
        let (least, most) = self.spread;
        let unit = self.unit;
        let value = format!("{}{unit}", shown(Some(self.value)));
        if least == most {
            return value;
        }
        format!("{value} ({} to {})", shown(Some(least)), shown(Some(most)))
    }

    /// One word.
    pub fn verdict(&self) -> &'static str {
        match (self.limit, self.is_met()) {
            (Limit::None, _) => "",
            (_, true) => "met",
            (_, false) => "MISSED",
        }
    }
}

/// All goals that the measured cells say something about.
pub fn all(cells: &[Cell]) -> Vec<Goal> {
    let judge = Judge { cells, goals: Vec::new() };
    judge.latency().throughput().flatness().idleness().rate().requests().kv().others().goals
}

/// Sizes in bytes, as the sweep has them.
const MIB_64: u64 = 64 << 20;
const GIB: u64 = 1 << 30;

/// A cell: sweep, place on its axis, engine.
type Spot = (&'static str, u64, Engine);

struct Judge<'a> {
    cells: &'a [Cell],
    goals: Vec<Goal>,
}

impl Judge<'_> {
    fn latency(mut self) -> Self {
        let page = |engine| ("small", 4096, engine);
        let name = "4 KiB read over NIXL";
        self.ratio(
            format!("{name}, blocking, to nixl-sys"),
            Limit::AtMost(1.5),
            Metric::P50,
            page(Nixl),
            page(Bare),
        );
        self.ratio(
            format!("{name}, async, to nixl-sys"),
            Limit::AtMost(2.0),
            Metric::P50,
            page(NixlAsync),
            page(Bare),
        );
        self.ratio(
            format!("{name}: the original to this"),
            Limit::AtLeast(150.0),
            Metric::P50,
            page(Original),
            page(Nixl),
        );
        self.ratio(
            "whole round with 4 KiB over NIXL: the original to this".to_owned(),
            Limit::AtLeast(100.0),
            Metric::Whole,
            page(Original),
            page(Nixl),
        );
        self
    }

    fn throughput(mut self) -> Self {
        let pairs = [
            (Nixl, Bare, Limit::AtLeast(0.97)),
            (NixlTcp, BareTcp, Limit::AtLeast(0.97)),
            (Local, Attach, Limit::AtLeast(0.95)),
        ];
        for (ours, bare, limit) in pairs {
            for (size, name) in [(MIB_64, "64 MiB"), (GIB, "1 GiB")] {
                let what = format!("GB/s at {name}, {} to {}", ours.label(), bare.label());
                self.ratio(what, limit, Metric::Bandwidth, ("size", size, ours), ("size", size, bare));
            }
        }
        // Not the passive side by itself: that of nixl-sys never sleeps, and what it gets of a busy machine is the
        // scheduler's choice.
        for (ours, bare) in [(Nixl, Bare), (NixlTcp, BareTcp)] {
            for (side, name) in [(Side::Active, "active side"), (Side::Both, "both sides")] {
                let what = format!("CPU per GB at 64 MiB, {name}, {} to {}", ours.label(), bare.label());
                let metric = Metric::CpuPerGigabyte(side);
                self.ratio(what, Limit::AtMost(1.1), metric, ("size", MIB_64, ours), ("size", MIB_64, bare));
            }
        }
        self
    }

    fn flatness(mut self) -> Self {
        let axes = [
            ("open", "open offers", Metric::P50, 10, 10_000),
            ("open", "open offers, whole round", Metric::Whole, 10, 10_000),
            ("in-flight", "outstanding reads", Metric::PerOperation, 10, 1000),
            ("regions", "registered regions", Metric::P50, 10, 10_000),
            ("regions", "registered regions, whole round", Metric::Whole, 10, 10_000),
            ("peers", "peers", Metric::P50, 1, 64),
        ];
        for (sweep, name, metric, few, many) in axes {
            for engine in [Nixl, Local] {
                let what = format!("cost with {many} to {few} {name}, {}", engine.label());
                let limit = Limit::AtMost(1.3);
                self.ratio(what, limit, metric, (sweep, many, engine), (sweep, few, engine));
            }
        }
        self
    }

    fn idleness(mut self) -> Self {
        for (engine, share, micros) in
            [(Nixl, 3.0, 1000.0), (NixlEfficient, 1.0, 10_000.0), (Local, 3.0, 1000.0)]
        {
            let spot = ("idle", 100, engine);
            for side in [Side::Active, Side::Passive] {
                let what = format!("idle, {} side, {}", side.name(), engine.label());
                self.value(what, Limit::AtMost(share), " %", Metric::IdleShare(side), spot);
            }
            let what = format!("completion after silence, p99, {}", engine.label());
            self.value(what, Limit::AtMost(micros), " us", Metric::Learned99, spot);
        }
        self
    }

    fn rate(mut self) -> Self {
        for engine in [Nixl, Local] {
            for side in [Side::Active, Side::Passive] {
                let what = format!("1,000 operations a second, {} side, {}", side.name(), engine.label());
                self.value(what, Limit::AtMost(5.0), " %", Metric::Share(side), ("rate", 1000, engine));
            }
        }
        self
    }

    /// What a request costs beyond its bytes, which take as long as one request that is posted again.
    fn requests(mut self) -> Self {
        let at = |engine| self.cell(("requests", 4096, engine)).map(|cell| cell.each(Metric::P50));
        if let (Some(anew), Some(by_ticket), Some(bytes)) = (at(Nixl), at(NixlBlocks), at(BareRepost)) {
            let rounds = anew.iter().zip(&by_ticket).zip(&bytes);
            let each = rounds
                .map(|((anew, ticket), bytes)| (ticket - bytes).max(0.0) / (anew - bytes).max(f64::EPSILON));
            let what = "4,096 descriptors, a request beyond its bytes, by ticket to by document".to_owned();
            self.add(what, Limit::AtMost(0.2), "", each.collect(), None);
        }
        self
    }

    /// A KV cache in blocks against the same bytes as one transfer, over the same transport.
    fn kv(mut self) -> Self {
        for engine in [LocalBlocks, NixlBlocks, NixlTcpBlocks] {
            let at = |pieces| ("kv", pieces, engine);
            let what = format!("GB/s of 134 MB of KV, block-major to flat, {}", engine.label());
            self.ratio(what, Limit::AtLeast(0.9), Metric::Bandwidth, at(64), at(1));
            for (pieces, layout) in [(4096, "layer-major"), (32_768, "head by head")] {
                let what = format!("GB/s of 134 MB of KV, {layout} to flat, {}", engine.label());
                self.ratio(what, Limit::None, Metric::Bandwidth, at(pieces), at(1));
            }
        }
        self
    }

    /// What has no goal of its own, and is there to be seen.
    fn others(mut self) -> Self {
        let at = |engine| ("requests", 4096, engine);
        for engine in [BarePrepared, BareRepost, NixlBlocks] {
            let what = format!("4,096 descriptors, {} to lists and request anew", engine.label());
            self.ratio(what, Limit::None, Metric::P50, at(engine), at(BareLists));
        }
        let what = "4,096 descriptors over local, by ticket to by document".to_owned();
        self.ratio(what, Limit::None, Metric::P50, at(LocalBlocks), at(Local));
        for engine in [Nixl, Original] {
            let what = format!("metadata with 1,000 to 1 regions, {}", engine.label());
            let at = |regions| ("regions", regions, engine);
            self.ratio(what, Limit::None, Metric::Document, at(1000), at(1));
            let what = format!("whole round with 10,000 to 1 foreign notifications, {}", engine.label());
            let at = |strangers| ("strangers", strangers, engine);
            self.ratio(what, Limit::None, Metric::Whole, at(10_000), at(1));
        }
        for (push, pull) in [(NixlTcpPush, NixlTcp), (NixlPush, Nixl), (LocalPush, Local)] {
            let what = format!("GB/s at 64 MiB, {} to pull", push.label());
            let at = |engine| ("direction", MIB_64, engine);
            self.ratio(what, Limit::None, Metric::Bandwidth, at(push), at(pull));
        }
        let at = |engine| ("offers", 1 << 20, engine);
        let what = "making an offer of 1 MiB: the original to this".to_owned();
        self.ratio(what, Limit::None, Metric::Offer, at(Original), at(Nixl));
        let at = |engine| ("idle", 100, engine);
        let what = "idle CPU, passive side: the original to this".to_owned();
        let metric = Metric::IdleShare(Side::Passive);
        self.ratio(what, Limit::None, metric, at(Original), at(Nixl));
        self
    }

    /// One cell's metric to another's, round by round: what disturbed one round disturbed both.
    fn ratio(&mut self, what: String, limit: Limit, metric: Metric, of: Spot, to: Spot) {
        let (Some(of), Some(to)) = (self.cell(of), self.cell(to)) else { return };
        let ratios =
            of.each(metric).into_iter().zip(to.each(metric)).map(|(of, to)| of / to.max(f64::EPSILON));
        self.add(what, limit, "", ratios.collect(), None);
    }

    /// A metric by itself, over all rounds: percentiles need their samples together.
    fn value(&mut self, what: String, limit: Limit, unit: &'static str, metric: Metric, of: Spot) {
        let Some(cell) = self.cell(of) else { return };
        let (each, pooled) = (cell.each(metric), cell.pooled(metric));
        self.add(what, limit, unit, each, pooled);
    }

    fn cell(&self, (sweep, at, engine): Spot) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.sweep == sweep && cell.at == at && cell.engine == engine)
    }

    fn add(
        &mut self,
        what: String,
        limit: Limit,
        unit: &'static str,
        mut each: Vec<f64>,
        pooled: Option<f64>,
    ) {
        each.sort_by(f64::total_cmp);
        let Some(value) = pooled.or_else(|| median(&each)) else { return };
        let spread = (each.first().copied().unwrap_or(value), each.last().copied().unwrap_or(value));
        self.goals.push(Goal { what, limit, value, spread, unit });
    }
}

/// The middle of sorted values; between the two in the middle of an even number.
fn median(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sweep;
    use crate::{Round, Samples};

    /// Rounds in which every operation took so long.
    fn rounds(micros: &[u64]) -> Vec<Round> {
        let samples = |micros: u64| {
            let mut samples = Samples::default();
            (0..60).for_each(|_| samples.push(Duration::from_micros(micros)));
            samples
        };
        let round = |micros: &u64| Round {
            reads: samples(*micros),
            bursts: samples(*micros),
            wholes: samples(*micros),
            learned: samples(*micros),
            offers: samples(*micros),
            bytes: 1,
            idle: Duration::from_secs(1),
            elapsed: Duration::from_secs(1),
            document: 1,
            ..Round::default()
        };
        micros.iter().map(round).collect()
    }

    /// What a full run measures, all of it equally fast.
    fn cells() -> Vec<Cell> {
        let mut cells: Vec<Cell> = sweep::all(false).iter().flat_map(|sweep| sweep.cells()).collect();
        cells.iter_mut().for_each(|cell| cell.rounds = rounds(&[10]));
        cells
    }

    #[test]
    fn a_full_run_says_something_about_every_goal() {
        let judged = |goal: &&Goal| goal.limit != Limit::None;
        let goals = all(&cells());
        assert_eq!(goals.iter().filter(judged).count(), 4 + 10 + 12 + 9 + 4 + 1 + 3);
        assert_eq!(goals.len(), 43 + 19);
    }

    #[test]
    fn a_ratio_is_the_median_of_the_ratios_of_each_round() {
        let mut cells = cells();
        for cell in &mut cells {
            match (cell.sweep, cell.engine) {
                // The machine was ten times as slow in the second round, and once for one engine alone.
                ("small", Nixl) => cell.rounds = rounds(&[20, 200, 900]),
                ("small", Bare) => cell.rounds = rounds(&[10, 100, 10]),
                _ => {}
            }
        }
        let first = all(&cells).into_iter().next().unwrap();
        assert_eq!((first.value, first.spread), (2.0, (2.0, 90.0)));
        assert_eq!(first.verdict(), "MISSED");
    }

    #[test]
    fn the_median_of_two_is_between_them() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0]), Some(1.0));
        assert_eq!(median(&[1.0, 2.0]), Some(1.5));
        assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
    }

    #[test]
    fn a_run_of_one_sweep_is_judged_by_its_own_goals() {
        let mut cells = cells();
        cells.retain(|cell| cell.sweep == "peers");
        let goals = all(&cells);
        assert_eq!(goals.len(), 2);
        assert!(goals.iter().all(Goal::is_met));
    }
}
