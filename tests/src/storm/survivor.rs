//! [`Survivor`]: the long-lived side, what it counts, and how it shows that it is well.

use std::ops::Range;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connect_core::{Connector, Error, RdmaMetadata};

use super::Way;
use super::plan::{Deed, Op, Plan};
use super::prey::Prey;
use super::round;
use super::tally::Tally;
use super::yard::Yard;
use crate::process::{eventually, open_files, threads};

/// How long everything may take to come to rest after a batch of rounds: parked memory waits for its agent,
/// whose last operation may have a second to go.
const REST: Duration = Duration::from_secs(15);

/// Files that may be open beyond the baseline. `local` closes all; a NIXL agent opens some with its first peers.
const FILES: usize = 0;

/// A round that takes longer than this hangs: no deadline in it is longer than a second.
const HANGS: Duration = Duration::from_secs(60);

/// The survivor.
pub struct Survivor {
    /// What its operations go through.
    pub connector: Connector,
    /// The transport.
    pub way: Way,
    /// What has happened.
    pub tally: Mutex<Tally>,
    /// Memory that was not back when its round was over.
    late: Mutex<Vec<(u64, Instant, Yard)>>,
    seed: u64,
    deeds: &'static [Deed],
}

impl Survivor {
    /// A survivor that has met nobody yet.
    ///
    /// # Errors
    /// Its connector can't be built.
    pub fn new(way: Way, seed: u64, deeds: &'static [Deed]) -> Result<Self> {
        let connector = Connector::builder().worker_id("survivor").transport(way.factory()?).build()?;
        let (tally, late) = (Mutex::default(), Mutex::default());
        Ok(Self { connector, way, tally, late, seed, deeds })
    }

    /// Goes through rounds `first..first + count`, so many at a time, and rests after each `batch`. `report` is told
    /// the next round then.
    ///
    /// # Errors
    /// What keeps it from going on; what goes wrong with a round is in the [`Tally`].
    pub fn weather(
        &self,
        first: u64,
        count: u64,
        lanes: usize,
        batch: u64,
        report: impl Fn(u64) + Sync,
    ) -> Result<()> {
        let bystander = Bystander::default();
        thread::scope(|scope| {
            let neighbour = scope.spawn(|| bystander.live(self));
            let weathered = self.batches(first..first + count, lanes, batch, &bystander, report);
            bystander.ended.store(true, Ordering::SeqCst);
            let lived = neighbour.join().unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")));
            if let Err(error) = lived {
                self.tally().violation(format!("the bystander: {error:#}"));
            }
            weathered
        })
    }

    fn batches(
        &self,
        rounds: Range<u64>,
        lanes: usize,
        batch: u64,
        bystander: &Bystander,
        report: impl Fn(u64),
    ) -> Result<()> {
        ensure!(
            eventually(REST, || bystander.rounds.load(Ordering::SeqCst) > 0),
            "the bystander does not get a round done"
        );
        self.serve_a_guest()?;
        let baseline = self.resources()?;
        let mut next = rounds.start;
        while next < rounds.end {
            let end = (next + batch).min(rounds.end);
            let number = AtomicU64::new(next);
            thread::scope(|scope| {
                for _ in 0..lanes {
                    scope.spawn(|| {
                        loop {
                            let number = number.fetch_add(1, Ordering::SeqCst);
                            if number >= end {
                                return;
                            }
                            self.play(number);
                        }
                    });
                }
            });
            next = end;
            self.rest(baseline).with_context(|| format!("after round {}", end - 1))?;
            report(next);
        }
        Ok(())
    }

    fn play(&self, number: u64) {
        let plan = Plan::new(self.seed, number, self.way, self.deeds);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let watchdog = scope.spawn(|| {
                let started = Instant::now();
                while !over.load(Ordering::SeqCst) {
                    if started.elapsed() > HANGS {
                        eprintln!("VIOLATION: round {number} hangs: {plan:?}; {:?}", self.connector.stats());
                        process::exit(3);
                    }
                    thread::park_timeout(Duration::from_secs(1));
                }
            });
            let played = round::play(self, &plan);
            over.store(true, Ordering::SeqCst);
            watchdog.thread().unpark();
            self.tally().rounds += 1;
            self.look_for_late_memory();
            if let Err(error) = played {
                self.tally().violation(format!("round {number}: {error:#}; {plan:?}"));
            }
        });
    }

    /// Everything must come to rest: memory, files, threads; and then a fresh peer is served.
    fn rest(&self, (files, threads): (usize, usize)) -> Result<()> {
        let all_back = eventually(REST, || self.look_for_late_memory().is_empty());
        if !all_back {
            let rounds = self.look_for_late_memory();
            self.tally().violation(format!("memory of rounds {rounds:?} does not come back"));
        }
        // The bystander's operations are open at any time, but never parked.
        let calm = eventually(REST, || self.connector.stats().parked_bytes == 0);
        if !calm {
            self.tally().violation(format!("parked for ever: {:?}", self.connector.stats()));
        }
        self.serve_a_guest()?;
        let mut now = (0, 0);
        let back = eventually(REST, || {
            now = self.resources().unwrap_or_default();
            now.0 <= files + FILES && now.1 <= threads
        });
        if !back {
            let (files_now, threads_now) = now;
            self.tally().violation(format!(
                "{files_now} files and {threads_now} threads instead of {files} and {threads}"
            ));
        }
        Ok(())
    }

    /// Checks the memory that has come back since its round was over. Returns the rounds that still lack some.
    fn look_for_late_memory(&self) -> Vec<u64> {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        late.retain(|(number, since, yard)| {
            if !yard.is_complete() {
                return true;
            }
            let mut tally = self.tally();
            tally.longest_parked = tally.longest_parked.max(since.elapsed());
            if let Err(error) = yard.check() {
                tally.violation(format!("round {number}: {error:#}"));
            }
            false
        });
        late.iter().map(|(number, ..)| *number).collect()
    }

    fn resources(&self) -> Result<(usize, usize)> {
        Ok((open_files(process::id())?, threads(process::id())?))
    }

    /// A fresh process must be served at once, in every way and with every byte right.
    fn serve_a_guest(&self) -> Result<()> {
        let mut guest = Prey::spawn(self.way, &[])?;
        guest.ready()?;
        for deed in Deed::ALL {
            let served = self.healthy_transfer(&mut guest, deed, 70_000, 3);
            served.with_context(|| format!("serving a fresh peer: {}", deed.name()))?;
        }
        ensure!(guest.end().context("a guest")?, "a guest's connector does not close");
        Ok(())
    }

    /// A transfer that nobody disturbs.
    ///
    /// # Errors
    /// It fails, or brings wrong bytes.
    pub fn healthy_transfer(&self, peer: &mut Prey, deed: Deed, length: usize, seed: u64) -> Result<()> {
        // On a machine as busy as this one, seconds mean nothing.
        let deadline = Duration::from_secs(20);
        let op = Op { deed, lengths: vec![length], seed, deadline, their_deadline: deadline, cancel: None };
        let connector = self.connector.with_deadline(deadline);
        let yard = Yard::new(false);
        let (id, received) = match deed {
            Deed::WeRead | Deed::WeWrite => {
                let id = peer.begin(&op, None);
                let metadata = peer.metadata(id).context("a healthy peer offers nothing")?;
                let metadata = RdmaMetadata::from_json(&metadata.to_string()).map_err(Error::from)?;
                if deed == Deed::WeRead {
                    let operation = connector.begin_read(&metadata, yard.target(&op.lengths)).wait();
                    let operation = operation.map_err(Error::from)?;
                    (id, Some(operation.wait_for_completion().wait().map_err(Error::from)?.memory))
                } else {
                    let operation =
                        connector.begin_write(yard.source(&op.lengths, seed), &metadata).wait()?;
                    operation.wait_for_completion().wait()?;
                    (id, None)
                }
            }
            Deed::TheyRead => {
                let operation = connector.create_readable(yard.source(&op.lengths, seed)).wait()?;
                let id = peer.begin(&op, Some(&serde_json::to_value(operation.metadata())?));
                operation.wait_for_completion().wait()?;
                (id, None)
            }
            Deed::TheyWrite => {
                let operation = connector.create_writable(yard.target(&op.lengths)).wait();
                let operation = operation.map_err(Error::from)?;
                let id = peer.begin(&op, Some(&serde_json::to_value(operation.metadata())?));
                (id, Some(operation.wait_for_completion().wait().map_err(Error::from)?.memory))
            }
        };
        let wrong = received.and_then(|memory| memory.first_difference(seed));
        ensure!(wrong.is_none(), "wrong bytes at {wrong:?}");
        let outcome = peer.outcome(id, deadline)?;
        ensure!(outcome["done"] == true && outcome["wrong"].is_null(), "the peer says {outcome}");
        self.tally().healthy += 1;
        Ok(())
    }

    /// Takes care of a round's memory once its victim is gone.
    pub fn bury(&self, number: u64, yard: Yard) -> Result<()> {
        if yard.is_complete() {
            return yard.check();
        }
        self.late.lock().unwrap_or_else(PoisonError::into_inner).push((number, Instant::now(), yard));
        Ok(())
    }

    /// What has happened.
    pub fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A peer with which all goes well, whatever happens to the others.
#[derive(Default)]
struct Bystander {
    rounds: AtomicU64,
    ended: AtomicBool,
}

impl Bystander {
    fn live(&self, survivor: &Survivor) -> Result<()> {
        let mut peer = Prey::spawn(survivor.way, &[])?;
        peer.ready()?;
        let mut seed = 0;
        while !self.ended.load(Ordering::SeqCst) {
            for deed in Deed::ALL {
                seed += 1;
                let length = 1000 + (seed as usize * 7919) % 300_000;
                let done = survivor.healthy_transfer(&mut peer, deed, length, seed % 251);
                done.with_context(|| format!("{} number {seed}", deed.name()))?;
                // Leaves the cores to the storm.
                thread::sleep(Duration::from_millis(5));
            }
            self.rounds.fetch_add(1, Ordering::SeqCst);
        }
        ensure!(peer.end()?, "its connector does not close");
        Ok(())
    }
}
