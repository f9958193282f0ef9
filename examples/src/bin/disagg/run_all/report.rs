//! What came of a run, and where the time went.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;

use super::{Answer, Options, Request};
use crate::drill::Drill;
use crate::wire::{Done, Mode, Status, Timings};

#[derive(Default)]
pub(crate) struct Report {
    done: Vec<(Mode, Done)>,
    /// Requests that went wrong on purpose, by how they ended.
    disturbed: BTreeMap<String, usize>,
    tokens: usize,
    bitwise: usize,
    diverged: BTreeMap<Mode, usize>,
}

impl Report {
    /// Compares an answer with what one process made of the same prompt.
    ///
    /// # Errors
    /// It is not what it should be.
    pub(crate) fn judge(&mut self, request: &Request, answer: &Answer, expected: &Done) -> Result<()> {
        let done = match (request.drill, answer) {
            (None | Some(Drill::Slow), Ok(done)) => done,
            (Some(Drill::Abort), Err(failure)) if failure.kind == "aborted" => {
                return self.count("given up: the client is told so");
            }
            (Some(Drill::Expire), Err(failure)) if super::drills::EXPIRED.contains(&&*failure.kind) => {
                return self.count("lease expired: the client is told so");
            }
            (drill, answer) => {
                let mode = request.mode;
                anyhow::bail!("{mode:?} with {drill:?}: {answer:?}")
            }
        };
        if request.drill.is_some() {
            self.count("slow: right all the same")?;
        }
        ensure!(
            done.tokens == expected.tokens,
            "{:?}: the tokens are {:?}, and one process makes {:?}",
            request.mode,
            done.tokens,
            expected.tokens
        );
        ensure!(
            done.logits == expected.logits,
            "{:?}: the tokens are equal, and the logits are not",
            request.mode
        );
        self.tokens += done.tokens.len();
        self.bitwise += 1;
        self.done.push((request.mode, done.clone()));
        Ok(())
    }

    fn count(&mut self, what: &str) -> Result<()> {
        *self.disturbed.entry(what.to_owned()).or_default() += 1;
        Ok(())
    }

    /// At which token a damaged cache was noticed, for each way.
    ///
    /// # Errors
    /// It was not.
    pub(crate) fn control(&mut self, diverged: BTreeMap<Mode, usize>) -> Result<()> {
        self.diverged = diverged;
        Ok(())
    }

    pub(crate) fn print(&self, statuses: &[Status], options: &Options, took: Duration) {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED);
        table.set_header(["", "p50", "p90", "p99"]);
        let mut row = |name: &str, pick: &dyn Fn(&Timings) -> Duration| {
            let mut all: Vec<Duration> = self.done.iter().map(|(_, done)| pick(&done.timings)).collect();
            all.sort_unstable();
            let at = |q: f64| all.get(((all.len() as f64 * q) as usize).min(all.len().saturating_sub(1)));
            let shown = |q| at(q).map_or("-".to_owned(), |it| format!("{:.2} ms", it.as_secs_f64() * 1e3));
            table.add_row([name.to_owned(), shown(0.5), shown(0.9), shown(0.99)]);
        };
        row("time to first token", &|t| t.ttft);
        row("  queue: blocks and a turn", &|t| t.queue);
        row("  prefill, as far as decode waited", &|t| t.prefill);
        row("  ticket: asking prefill", &|t| t.ticket);
        row("  transfer, prefill still at work included", &|t| t.transfer);
        row("  commit: may I use it?", &|t| t.commit);
        row("  first decode step", &|t| t.first_step);
        println!("{table}");
        for mode in Mode::ALL {
            let of: Vec<&Done> = self.done.iter().filter(|(m, _)| *m == mode).map(|(_, done)| done).collect();
            if of.is_empty() {
                continue;
            }
            let bytes: u64 = of.iter().map(|done| done.bytes).sum();
            let pieces: usize = of.iter().map(|done| done.descriptors).sum();
            let mut firsts: Vec<Duration> = of.iter().map(|done| done.timings.ttft).collect();
            firsts.sort_unstable();
            println!(
                "{:<10} {} requests, {:.1} MB of KV in {} descriptors, first token after {:.1} ms (p50)",
                mode.name(),
                of.len(),
                bytes as f64 / 1e6,
                pieces,
                firsts[firsts.len() / 2].as_secs_f64() * 1e3,
            );
        }
        for status in statuses {
            if let Some(moved) = status.moved.filter(|moved| moved.transfers > 0) {
                println!(
                    "speed      {:.2} GB/s per transfer, {:.2} GB/s aggregate: {} transfers that {} made, p90 {:.2} ms",
                    moved.per_transfer,
                    moved.aggregate,
                    moved.transfers,
                    status.role,
                    moved.p90.as_secs_f64() * 1e3,
                );
            }
        }
        let bytes: u64 = self.done.iter().map(|(_, done)| done.bytes).sum();
        println!(
            "in all     {:.1} MB in {:.1} s of wall-clock time, prefill and decode included",
            bytes as f64 / 1e6,
            took.as_secs_f64()
        );
        println!(
            "tokens     {} of {} requests, all identical to one process; logits bitwise identical in {} of {}",
            self.tokens,
            self.done.len(),
            self.bitwise,
            self.done.len()
        );
        for (what, count) in &self.disturbed {
            println!("disturbed  {count} {what}");
        }
        for (mode, at) in &self.diverged {
            let noticed =
                if *at < options.max_tokens { format!("token {at}") } else { "the logits".to_owned() };
            println!("control    {}: a damaged block shows at {noticed}", mode.name());
        }
        for status in statuses {
            let quarantined =
                status.states.map_or(String::new(), |it| format!(", {} quarantined", it.quarantined));
            println!("blocks     {}: {} of {} free{quarantined}", status.role, status.free, status.blocks);
        }
    }
}
