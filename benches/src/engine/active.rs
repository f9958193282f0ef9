//! [`Active`], what an engine's active side can do, and the round that is the same for all of them.

use std::process;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Engine;
use crate::clock::{self, CpuClock};
use crate::lines::{answer, questions};
use crate::resident::resident;
use crate::{Load, Pieces, Round, Samples, Usage};

/// How long a warm-up goes on: registrations, connections and first touches are over by then.
const WARM_UP: Duration = Duration::from_millis(50);
/// Bursts in a warm-up at the least.
const FEWEST_WARM: usize = 2;

/// What the passive side offered for one burst.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Offers {
    /// One operation's metadata each, as JSON; none where an engine needs none.
    pub(super) documents: Vec<String>,
    /// How long it took to make all of them.
    pub(super) took: Duration,
}

/// An engine's active side. Only [`burst`](Self::burst) is timed by its parts.
pub(super) trait Active {
    /// Gets everything ready that such operations share: memory, peers, what is held open meanwhile.
    fn prepare(&mut self, load: &Load) -> Result<()>;

    /// Gets the passive side's offers for one burst, ready to be used.
    fn offer(&mut self) -> Result<Offers>;

    /// Begins all operations of the burst, waits for all of them, and adds how long each took.
    fn burst(&mut self, reads: &mut Samples) -> Result<()>;

    /// Waits until the passive side knows of the burst; when that was, on the clock that all processes share.
    fn learned(&mut self) -> Result<Option<Duration>>;

    /// Where the bytes arrive. Empty for an engine that checks by itself.
    fn targets(&mut self) -> &mut [Pieces];

    /// Gives everything back that was prepared.
    fn release(&mut self) -> Result<()>;

    /// The process of the passive side, if there is one.
    fn passive(&self) -> Option<u32>;

    /// The process of the active side.
    fn active(&self) -> u32 {
        process::id()
    }
}

/// What the active side says to the process that measures.
#[derive(Serialize, Deserialize)]
pub enum Answer {
    /// Both sides are there.
    Ready,
    /// A round is over.
    Done(Box<Round>),
    /// It did not work.
    Failed(String),
}

/// Runs as the active side of `engine`: does one round for each load on standard input.
///
/// # Errors
/// The other processes are gone.
pub fn serve(engine: Engine) -> Result<()> {
    let failed = |error: anyhow::Error| Answer::Failed(format!("{error:#}"));
    let mut active = match engine.active() {
        Ok(active) => active,
        Err(error) => return answer(&failed(error)),
    };
    answer(&Answer::Ready)?;
    for load in questions::<Load>() {
        let round = measure(active.as_mut(), &load?);
        answer(&round.map_or_else(failed, |round| Answer::Done(Box::new(round))))?;
    }
    Ok(())
}

/// One round.
fn measure(engine: &mut dyn Active, load: &Load) -> Result<Round> {
    let clocks = Clocks::of(engine)?;
    engine.prepare(load)?;
    if !load.cold {
        warm_up(engine, load, &clocks)?;
    }
    let mut round = Round::default();
    let (before, started) = (clocks.read()?, Instant::now());
    let mut next = started;
    loop {
        if !load.every.is_zero() {
            thread::sleep(next.saturating_duration_since(Instant::now()));
            next += load.every;
        }
        one(engine, load, &clocks, &mut round)?;
        if started.elapsed() >= load.lasts && round.bursts.len() >= load.fewest {
            break;
        }
    }
    round.elapsed = started.elapsed();
    clocks.add(before, &mut round, |usage| &mut usage.whole)?;
    engine.targets().iter().try_for_each(Pieces::check)?;
    round.active.resident = resident(engine.active())?;
    round.passive.resident = engine.passive().map(resident).transpose()?.unwrap_or_default();
    engine.release()?;
    Ok(round)
}

fn warm_up(engine: &mut dyn Active, load: &Load, clocks: &Clocks) -> Result<()> {
    let load = Load { idle: Duration::ZERO, ..*load };
    let (mut ignored, started) = (Round::default(), Instant::now());
    let fewest = FEWEST_WARM.max(load.peers);
    while ignored.bursts.len() < fewest || started.elapsed() < WARM_UP.min(load.lasts / 4) {
        one(engine, &load, clocks, &mut ignored)?;
    }
    Ok(())
}

/// One burst, with all that belongs to it.
fn one(engine: &mut dyn Active, load: &Load, clocks: &Clocks, round: &mut Round) -> Result<()> {
    engine.targets().iter_mut().for_each(Pieces::stamp);
    let whole = Instant::now();
    let offers = engine.offer()?;
    if !load.idle.is_zero() {
        let (before, paused) = (clocks.read()?, Instant::now());
        thread::sleep(load.idle);
        round.idle += paused.elapsed();
        clocks.add(before, round, |usage| &mut usage.idle)?;
    }

    let before = clocks.read()?;
    let (begun, burst) = (clock::now()?, Instant::now());
    engine.burst(&mut round.reads)?;
    round.bursts.push(burst.elapsed());
    clocks.add(before, round, |usage| &mut usage.bursts)?;

    if let Some(learned) = engine.learned()? {
        round.wholes.push(whole.elapsed());
        if load.in_flight == 1 {
            round.learned.push(learned.saturating_sub(begun));
        }
    }
    if let Some(document) = offers.documents.first() {
        round.document = document.len();
        round.offers.push(offers.took / offers.documents.len() as u32);
    }
    round.bytes += (load.bytes() * load.in_flight) as u64;
    engine.targets().iter().try_for_each(Pieces::check_stamps)
}

/// The processor clocks of both sides.
struct Clocks {
    active: CpuClock,
    passive: Option<CpuClock>,
}

impl Clocks {
    fn of(engine: &dyn Active) -> Result<Self> {
        let passive = engine.passive().map(CpuClock::of).transpose()?;
        Ok(Self { active: CpuClock::of(engine.active())?, passive })
    }

    fn read(&self) -> Result<[Duration; 2]> {
        let passive = self.passive.map(CpuClock::used).transpose()?;
        Ok([self.active.used().context("the active side's clock")?, passive.unwrap_or_default()])
    }

    /// Adds what was used since `before`.
    fn add(
        &self,
        before: [Duration; 2],
        round: &mut Round,
        account: fn(&mut Usage) -> &mut Duration,
    ) -> Result<()> {
        let now = self.read()?;
        *account(&mut round.active) += now[0].saturating_sub(before[0]);
        *account(&mut round.passive) += now[1].saturating_sub(before[1]);
        Ok(())
    }
}
