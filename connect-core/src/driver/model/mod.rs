//! A model of everybody around the driver, and random schedules of what they do.
//!
//! The state machine, the driver and the callers' handles are the real ones. Time is virtual, the transport is
//! simulated ([`sim`]), memory reports when it is freed ([`memory`]), and all of it runs on one thread: callers
//! start, cancel, drop and look, peers come late, twice or never, calls fail and block, connectors end. After
//! each step the promises are checked.
//!
//! `CONNECT_SEED` runs the world of one seed, `CONNECT_STEPS` runs worlds until the state machine has taken so
//! many steps:
//! ```text
//! CONNECT_STEPS=1000000 cargo test --release -p connect-core --lib model -- --nocapture
//! ```

mod caller;
mod memory;
mod probe;
mod sim;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use caller::{Caller, Ended};
use memory::Ledger;
use probe::Probe;
use sim::{Net, Sim};

use super::{CANCEL_GRACE, Deadlines, Driver, PARKED_INTERVAL, Polling, WATCH_INTERVAL, channel};
use crate::clock::Clock;
use crate::op::state::{self, Phase};
use crate::stats::Counters;
use crate::transport::fault::{Control, Plan};
use crate::transport::{Transport, TransportError};
use crate::{
    Cancellation, Connector, Deadline, Device, Error, OperationKind, OperationName, Pending, RdmaMetadata,
    Recovered, Region,
};

/// What callers and peers do before a world is brought to rest.
const ACTIONS: u64 = 300;
/// Turns within which a world that was healed comes to rest. A turn takes a millisecond then; the longest wait
/// is the grace of a cancel, and then the interval at which parked memory is looked at.
const TURNS_TO_REST: u32 = 2_000;
/// Worlds in a run of no given length, however slow the machine: what is rarest comes once in some forty.
const LEAST_WORLDS: u64 = 200;
/// Lengths of memory, and half of them the limit on what is parked.
const LENGTHS: [u64; 4] = [1, 64, 1000, 4096];

/// One connector, its callers, its peers.
struct World {
    random: fastrand::Rng,
    clock: Clock,
    ledger: Ledger,
    net: Rc<RefCell<Net>>,
    /// In half of all worlds the transport is made faulty on top.
    faults: Option<Control>,
    deadlines: Arc<Deadlines>,
    /// `None` once the last handle is dropped.
    connector: Option<Connector>,
    /// `None` once it has ended.
    driver: Option<Driver>,
    callers: Vec<Caller>,
    shutting_down: Option<Pending<()>>,
    ended: bool,
    /// Notification keys that there have been.
    keys: Vec<String>,
    remotes: Vec<RdmaMetadata>,
    limit: u64,
    started: u64,
    refused: u64,
}

/// How often each end was met. A model that never meets one proves nothing about it.
type Seen = BTreeMap<&'static str, u64>;

/// Every end there is.
const ENDS: [&str; 12] = [
    "completed offer",
    "completed transfer",
    "failed",
    "contradicted",
    "never started",
    "drained",
    "parked",
    "deadline",
    "watchdog",
    "shut down",
    "refused",
    "stray",
];

impl World {
    fn new(seed: u64, remotes: &[RdmaMetadata]) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let clock = Clock::virtual_time();
        let ledger = Ledger::default();
        let deadlines = Arc::new(Deadlines::default());
        let net = Net::new(random.u64(..), clock.clone(), ledger.clone(), Arc::clone(&deadlines));
        let net = Rc::new(RefCell::new(net));
        let (port, inbox) = channel();
        let limit = [0, 64, 5000, 20_000, u64::MAX][random.u64(..5) as usize];
        let counters = Arc::new(Counters::new(limit));
        let connector =
            Connector::stepped(port, Arc::clone(&deadlines), Arc::clone(&counters), clock.clone());
        let mut transport: Box<dyn Transport> = Box::new(Sim(Rc::clone(&net)));
        let mut faults = None;
        if random.u64(..2) == 0 {
            let (faulty, control) = Plan::random(random.u64(..)).around(transport, &clock);
            transport = faulty;
            faults = Some(control);
        }
        let transport = Box::new(Probe::new(transport, Rc::clone(&net)));
        let driver = Driver::new(
            transport,
            Polling::default(),
            inbox,
            Arc::clone(&deadlines),
            counters,
            clock.clone(),
        );
        Self {
            random,
            clock,
            ledger,
            net,
            faults,
            deadlines,
            connector: Some(connector),
            driver: Some(driver),
            callers: Vec::new(),
            shutting_down: None,
            ended: false,
            keys: Vec::new(),
            remotes: remotes.to_vec(),
            limit,
            started: 0,
            refused: 0,
        }
    }

    /// Lives through its actions, comes to rest, and ends.
    fn run(mut self, seen: &mut Seen) {
        for _ in 0..ACTIONS {
            self.act(seen);
            self.ledger.check();
        }
        self.rest(seen);
        self.end();
    }

    fn act(&mut self, seen: &mut Seen) {
        match self.random.u64(..100) {
            0..16 => self.start(seen),
            16..40 => self.look(seen),
            40..44 => self.cancel(),
            44..48 => self.drop_one(),
            48..50 => {
                let keys = std::mem::take(&mut self.keys);
                self.net.borrow_mut().send_stray(&keys);
                self.keys = keys;
            }
            50..52 => self.clock.advance(Duration::from_micros(self.random.u64(..20_000))),
            54 => self.disturb(),
            52 if self.random.u64(..20) == 0 => self.shut_down(),
            53 if self.random.u64(..30) == 0 => self.connector = None,
            _ => {
                self.clock.advance(Duration::from_micros(self.random.u64(..100)));
                self.turn();
            }
        }
    }

    /// Peers vanish, and liars claim that offers are complete, open ones among them.
    fn disturb(&mut self) {
        let Some(faults) = &self.faults else { return };
        if self.random.u64(..20) == 0 {
            faults.vanish();
        } else if let Some(n) = (self.keys.len() as u64).checked_sub(1) {
            faults.inject("liar", self.keys[self.random.u64(..=n) as usize].as_bytes());
        }
    }

    fn pick(&mut self) -> Option<usize> {
        let count = self.callers.len() as u64;
        (count > 0).then(|| self.random.u64(..count) as usize)
    }

    fn start(&mut self, seen: &mut Seen) {
        let Some(connector) = &self.connector else { return };
        let deadline = match self.random.u64(..4) {
            0 => Deadline::never(),
            1 => Deadline::DEFAULT,
            _ => Deadline::after(Duration::from_millis(self.random.u64(..400))),
        };
        let (name, kind) = match self.random.u64(..4) {
            0 => (OperationName::Readable, 0),
            1 => (OperationName::Writable, 0),
            2 => (OperationName::Read, 0),
            _ => (OperationName::Write, 1),
        };
        let length = self.random.usize(..LENGTHS.len());
        let memory = self.ledger.make(LENGTHS[length]);
        let (bytes, parked) = (memory.len, connector.stats().parked_bytes);
        let refuse = parked > 0 && parked + bytes > self.limit;
        let remote = &self.remotes[2 * length + kind];
        let mut caller = Caller::start(&connector.with_deadline(deadline), name, memory, remote);
        if caller.info.is_none() {
            self.refused += 1;
            met(seen, "refused");
            assert!(refuse, "refused with {parked} of {} bytes parked", self.limit);
            let ended = caller.look().expect("what is refused is refused at once");
            let Err(Error::ParkedLimit { bytes: asked, parked: told, limit }) = ended.result else {
                panic!("refused with {:?}", ended.result);
            };
            assert_eq!((asked, told, limit), (bytes, parked, self.limit));
            assert!(!matches!(ended.target, Some(Recovered::Parked)), "refused, and kept the memory");
            return;
        }
        assert!(!refuse, "budget: taken with {parked} of {} bytes parked", self.limit);
        self.started += 1;
        self.callers.push(caller);
    }

    fn look(&mut self, seen: &mut Seen) {
        if let Some(at) = self.pick() {
            self.look_at(at, seen);
        }
    }

    /// A caller looks at its answer; when it has ended, the answer is judged.
    fn look_at(&mut self, at: usize, seen: &mut Seen) -> bool {
        let caller = &mut self.callers[at];
        let ended = caller.look();
        self.keys.extend(caller.key.take());
        let Some(ended) = ended else { return false };
        let caller = self.callers.swap_remove(at);
        met(seen, self.judge(&caller, ended));
        true
    }

    fn cancel(&mut self) {
        if let Some(at) = self.pick() {
            self.callers[at].cancel();
        }
    }

    fn drop_one(&mut self) {
        if let Some(at) = self.pick() {
            drop(self.callers.swap_remove(at));
        }
    }

    fn shut_down(&mut self) {
        let Some(connector) = &self.connector else { return };
        self.ended = true;
        self.shutting_down = Some(connector.shutdown(Duration::from_millis(100)));
    }

    /// The driver makes one turn, and then every promise must hold.
    fn turn(&mut self) {
        let Some(driver) = &mut self.driver else { return };
        let began = self.clock.now();
        self.net.borrow_mut().wake_by = self
            .callers
            .iter()
            .filter_map(|caller| {
                Some((caller.cancel_seen? + CANCEL_GRACE + WATCH_INTERVAL, caller.info.clone()?))
            })
            .collect();
        let goes_on = driver.turn();
        self.net.borrow_mut().wake_by.clear();
        if !goes_on {
            driver.finish();
            self.driver = None;
            self.ended = true;
            self.deadlines.close();
        }
        self.ledger.check();
        self.check(began);
        let now = self.clock.now();
        for caller in self.callers.iter_mut().filter(|caller| caller.cancelled) {
            caller.cancel_seen.get_or_insert(now);
        }
    }

    fn check(&mut self, began: Instant) {
        for caller in &self.callers {
            let Some(info) = &caller.info else { continue };
            if let Some(deadline) = info.deadline
                && deadline <= began
            {
                assert!(info.slot.is_settled(), "P2: #{} outlived its deadline", info.id);
            }
            if let Some(seen) = caller.cancel_seen
                && seen + CANCEL_GRACE + WATCH_INTERVAL <= began
            {
                assert!(info.slot.is_settled(), "P2: #{} was cancelled and goes on", info.id);
            }
            if caller.sleeps() {
                assert!(!caller.has_answer(), "P2: nobody woke the caller of #{}", info.id);
            }
        }
        let Some(connector) = &self.connector else { return };
        let stats = connector.stats();
        assert_eq!((stats.started, stats.refused), (self.started, self.refused));
        let ended = stats.completed + stats.failed + stats.cancelled;
        assert!(ended <= stats.started, "an operation ended twice: {stats:?}");
        let net = self.net.borrow();
        assert_eq!(net.notes.matched + stats.unmatched_notifications, net.notes.delivered, "P7: {stats:?}");
        let Some(driver) = &self.driver else { return };
        let operations = || driver.operations.values();
        let parked = || operations().filter(|operation| operation.machine.phase() == Phase::Parked);
        assert_eq!(stats.parked, parked().count() as u64, "{stats:?}");
        assert_eq!(stats.parked_bytes, parked().map(|operation| operation.info.bytes).sum::<u64>());
        assert_eq!(stats.open, operations().count() as u64 - stats.parked, "{stats:?}");
    }

    /// An operation has ended for its caller: is that what happened, and is its memory where it should be?
    fn judge(&self, caller: &Caller, ended: Ended) -> &'static str {
        let (name, addr, now) = (caller.name, caller.addr, self.clock.now());
        let info = caller.info.as_ref().expect("what was refused is judged at once");
        let net = &mut *self.net.borrow_mut();
        let told = net.notes.told.get(&addr).cloned();
        let began = told.is_some();
        let told = told.unwrap_or_default();
        let before_deadline = |at: Instant| info.deadline.is_none_or(|deadline| at < deadline);
        let own_end = caller.cancelled || self.ended || self.connector.is_none();
        if let Some((cause, at)) = &told.cause
            && told.completed_at.is_none_or(|completed| completed >= *at)
            && !own_end
            && before_deadline(*at)
        {
            let same = matches!(&ended.result, Err(Error::Transport { source, .. }) if source == cause);
            assert!(same, "P6: {name} failed of {cause:?}, but its caller heard {:?}", ended.result);
        } else if let Some(at) = told.completed_at
            && told.cause.is_none()
            && !told.contradicted
            && !own_end
            && before_deadline(at)
        {
            assert!(ended.result.is_ok(), "{name} completed, but its caller heard {:?}", ended.result);
        }
        let returned = matches!(ended.target, Some(Recovered::Returned(_)));
        assert!(!(returned && self.ledger.is_touchable(addr)), "P1: {name} handed back busy memory");
        let parked = matches!(ended.target, Some(Recovered::Parked));
        assert!(info.slot.status().is_final());
        assert!(!returned || self.ledger.is_alive(addr), "P1: {name} handed back what is gone");
        match &ended.result {
            Ok(()) => {
                assert!(told.completed_at.is_some(), "P7: {name} completed by itself");
                assert!(!parked, "P1: {name} completed without its memory");
                if matches!(name, OperationName::Readable | OperationName::Writable) {
                    "completed offer"
                } else {
                    "completed transfer"
                }
            }
            Err(Error::Transport { source, .. }) => {
                let contradiction =
                    matches!(source, TransportError::Engine { call: "release" | "end_offer", .. });
                let own = told.cause.as_ref().is_some_and(|(cause, _)| cause == source);
                let unclaimed = net.notes.unclaimed.iter().position(|cause| !own && cause == source);
                if let Some(at) = unclaimed {
                    net.notes.unclaimed.swap_remove(at);
                }
                assert!(
                    own || unclaimed.is_some() || (contradiction && told.contradicted),
                    "P6: the caller of {name} heard of {source:?}, which is not its own"
                );
                if contradiction { "contradicted" } else { "failed" }
            }
            Err(Error::Cancelled { outcome, .. }) => {
                assert!(caller.cancelled, "{name} was cancelled by nobody");
                match outcome {
                    Cancellation::NeverStarted => {
                        assert!(!began && !parked);
                        "never started"
                    }
                    Cancellation::Drained => {
                        assert!(began && !parked && !self.ledger.is_touchable(addr));
                        "drained"
                    }
                    Cancellation::Parked => {
                        assert!(began && !returned);
                        "parked"
                    }
                    Cancellation::EndedBefore => panic!("a cancel that came late is no error of its own"),
                }
            }
            Err(Error::DeadlineExceeded { .. }) => {
                assert!(info.deadline.is_some_and(|deadline| deadline <= now), "{name} ended too early");
                "deadline"
            }
            Err(Error::ShutDown) => {
                assert!(self.ended || self.connector.is_none(), "{name} was shut down by nobody");
                "shut down"
            }
            Err(error) => panic!("{name} ended with {error:?}"),
        }
    }

    /// Everything that is busy becomes quiet, callers look or go, and in the end nothing is left.
    fn rest(&mut self, seen: &mut Seen) {
        if self.random.u64(..3) == 0 {
            self.connector_end();
        }
        self.net.borrow_mut().heal();
        if let Some(faults) = &self.faults {
            faults.heal();
        }
        for turns in 0.. {
            assert!(turns < TURNS_TO_REST, "P2: it does not come to rest: {}", self.callers.len());
            self.clock.advance(Duration::from_millis(1));
            self.turn();
            for at in (0..self.callers.len()).rev() {
                if !self.look_at(at, seen) && self.random.u64(..20) == 0 {
                    drop(self.callers.swap_remove(at));
                }
            }
            let at_rest = self.driver.as_ref().is_none_or(|driver| driver.operations.is_empty());
            if at_rest && self.callers.is_empty() {
                break;
            }
        }
        *seen.entry("watchdog").or_default() += self.net.borrow().late_answers;
        *seen.entry("stray").or_default() +=
            self.net.borrow().notes.delivered - self.net.borrow().notes.matched;
        // The list of what is watched is tidied when it is looked at next.
        self.clock.advance(PARKED_INTERVAL);
        self.turn();
        if let Some(connector) = &self.connector {
            let stats = connector.stats();
            assert_eq!((stats.open, stats.parked, stats.parked_bytes), (0, 0, 0), "{stats:?}");
            assert_eq!(stats.completed + stats.failed + stats.cancelled, stats.started, "{stats:?}");
        }
        if let Some(driver) = &self.driver {
            assert!(driver.keys.is_empty() && driver.offers.is_empty(), "an offer was left behind");
            assert!(driver.in_flight.is_empty() && driver.watched.is_empty(), "a transfer was left behind");
        }
        assert!(self.ledger.is_empty(), "P1: memory was left behind");
    }

    fn connector_end(&mut self) {
        if self.random.u64(..2) == 0 { self.shut_down() } else { self.connector = None }
    }

    /// The last handle goes, and with it the driver.
    fn end(mut self) {
        self.connector = None;
        if let Some(shutdown) = self.shutting_down.take() {
            // It is answered, one way or the other, once the driver is done.
            for _ in 0..TURNS_TO_REST {
                self.clock.advance(Duration::from_millis(1));
                self.turn();
            }
            assert!(self.driver.is_none(), "P2: it does not shut down");
            let _ = shutdown.wait();
        }
        for _ in 0..TURNS_TO_REST {
            self.turn();
            if self.driver.is_none() {
                break;
            }
        }
        assert!(self.driver.is_none(), "P2: the driver goes on without a connector");
        self.ledger.check();
        assert!(self.ledger.is_empty());
    }
}

fn met(seen: &mut Seen, end: &'static str) {
    *seen.entry(end).or_default() += 1;
}

/// Says how to repeat a world that ends in a panic.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the model failed; repeat it with CONNECT_SEED={}", self.0);
        }
    }
}

fn remotes() -> Vec<RdmaMetadata> {
    let document = |(length, kind)| {
        let region = Region::new(Device::CPU, 0x1000, length).unwrap();
        let blob = [kind as u8, length as u8];
        RdmaMetadata::new(kind, &[region], &blob, "of a peer".to_owned()).unwrap()
    };
    LENGTHS
        .into_iter()
        .flat_map(|length| [(length, OperationKind::Read), (length, OperationKind::Write)])
        .map(document)
        .collect()
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

#[test]
fn p1_p2_p6_p7_hold_in_random_schedules_of_everything() {
    let (seed, steps) = (variable("CONNECT_SEED"), variable("CONNECT_STEPS"));
    let remotes = remotes();
    let (began, before) = (Instant::now(), state::steps());
    let (mut worlds, mut seen) = (0, Seen::new());
    loop {
        let at = seed.unwrap_or(1) + worlds;
        let guard = Seed(at);
        World::new(at, &remotes).run(&mut seen);
        drop(guard);
        worlds += 1;
        let enough = match (seed, steps) {
            (_, Some(steps)) => state::steps() - before >= steps,
            (Some(_), None) => true,
            (None, None) => began.elapsed() >= Duration::from_secs(2) && worlds >= LEAST_WORLDS,
        };
        if enough {
            break;
        }
    }
    let (steps, took) = (state::steps() - before, began.elapsed());
    let rate = steps as f64 / took.as_secs_f64();
    println!("{worlds} worlds, {steps} steps of state machines in {took:.1?}: {rate:.0} a second; {seen:?}");
    if seed.is_none() && worlds >= LEAST_WORLDS {
        let missing = ENDS.iter().find(|end| seen.get(*end).is_none_or(|count| *count == 0));
        assert_eq!(missing, None, "an end that was never met");
    }
}
