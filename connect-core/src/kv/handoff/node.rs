//! The thread of a hand-off: it keeps leases, answers peers, and looks after what is on offer.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use super::lock;
use super::message::{Chunk, Id, Letter, Says};
use super::owner::{self, Outcome, Owner};
use super::push::{Pushes, Pushing};
use super::taker::{self, Taker, Verdict};
use super::watch::Watch;
use super::{HandOffConfig, KvPool};
use crate::Report;
use crate::blocks::{BlockLease, RemoteBlocks};
use crate::driver::{Expecting, Letters};
use crate::error::{Error, Failed};
use crate::kv::observe::{Direction, Failure, Observer};
use crate::kv::promise::Promise;
use crate::op::{Completion, Received};

/// How often memory that is not quiet is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// How long a delivered hand-off may wait for the transport to say so, too, before that is told.
const LINGER: Duration = Duration::from_secs(2);

/// Letters that wait to be read. More are dropped: whoever depends on one says it again.
const MAX_UNREAD: usize = 4096;

/// What its callers ask of the thread, and what happens to it.
pub(super) enum Input {
    /// The last handle is gone.
    End,
    /// A peer says something. In one queue with what callers ask, so that nobody speaks for a hand-off before it is
    /// known here.
    Mail(Vec<u8>),
    /// A peer's card.
    Meet(String, RemoteBlocks),
    /// A hand-off of ours begins.
    Open(Id, Promise<Outcome>),
    /// A part of it is on offer.
    Offered(Offered),
    /// It is taken back.
    Withdraw(Id),
    /// An operation is to be polled.
    Poll(u64),
    /// A hand-off of somebody else's begins here, with so many chunks; whoever is at it waits for its end.
    Track { id: Id, owner: String, lease: Duration, deadline: Instant, chunks: u32, ended: Promise<Verdict> },
    /// Its next chunk is waited for.
    Next(Id, Promise<Chunk>),
    /// Blocks of it are read from now on, until the guard is gone.
    Reading(Id, Weak<()>),
    /// All of it was read.
    Done(Id),
    /// It is given up; reported when nobody here is at its memory.
    Abort(Id, Weak<()>),
    /// Blocks are not to be pushed into any more: the pusher is told, who owes an answer.
    Unexpect {
        id: Id,
        pusher: String,
        operations: Vec<Completion<Received<BlockLease>, Failed<BlockLease>>>,
        ended: Promise<Verdict>,
    },
}

/// A chunk on offer.
pub(super) struct Offered {
    pub(super) id: Id,
    pub(super) completion: Completion<Report>,
    /// Alive while its memory may be touched.
    pub(super) watched: Weak<()>,
    pub(super) chunk: Chunk,
}

/// The inputs of one thread, and what it counts.
pub(super) struct Node {
    inputs: Mutex<VecDeque<Input>>,
    changed: Condvar,
    unread: AtomicUsize,
    pub(super) pushing: Mutex<Pushing>,
    pub(super) counters: Counters,
    pub(super) observer: Observer,
}

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) leases: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) aborted: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) withdrawn: AtomicU64,
    pub(super) fetched: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) bytes_taken: AtomicU64,
    pub(super) bytes_given: AtomicU64,
}

/// What became of an engine's hand-offs, all since it started unless they say "now".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct HandOffStats {
    /// Hand-offs of this engine's that are open now.
    pub leases: u64,
    /// That ended with their taker's being told that it may use them.
    pub delivered: u64,
    /// That their taker gave up.
    pub aborted: u64,
    /// Whose taker fell silent.
    pub expired: u64,
    /// That could not be read.
    pub failed: u64,
    /// That this engine took back.
    pub withdrawn: u64,
    /// Hand-offs of others that were read, and may be used.
    pub fetched: u64,
    /// Hand-offs of others that were not: late, silent, given up or failed.
    pub lost: u64,
    /// Bytes of hand-offs that were read or pushed into this engine.
    pub bytes_taken: u64,
    /// Bytes of hand-offs that were read or pushed out of it.
    pub bytes_given: u64,
}

impl Node {
    pub(super) fn start(pool: &KvPool, config: HandOffConfig) -> std::io::Result<Arc<Self>> {
        let node = Arc::new(Self {
            inputs: Mutex::default(),
            changed: Condvar::new(),
            unread: AtomicUsize::new(0),
            pushing: Mutex::default(),
            counters: Counters::default(),
            observer: Observer::new(&pool.engine(), pool.connector().transport(), config.summary_every),
        });
        let weak = Arc::downgrade(&node);
        let take = move |from: String, body: &[u8]| {
            let Some(node) = weak.upgrade() else { return false };
            if node.unread.load(Ordering::Relaxed) >= MAX_UNREAD {
                tracing::debug!(from, "a letter was dropped; too many wait");
                return false;
            }
            node.unread.fetch_add(1, Ordering::Relaxed);
            node.send(Input::Mail(body.to_vec()));
            true
        };
        let letters = pool.connector().mailbox().open(pool.address(), take);
        let runner = Runner {
            owner: Owner::new(config.lease),
            taker: Taker::default(),
            pushes: Pushes::default(),
            node: Arc::clone(&node),
            _letters: letters,
            engine: pool.engine(),
            pool: pool.clone(),
            peers: HashMap::new(),
            open: HashMap::new(),
            running: HashMap::new(),
            next_key: 0,
            tracked: HashMap::new(),
            aborting: Vec::new(),
            expecting: None,
            watch: Watch::default(),
        };
        let name = format!("kv-{}", pool.engine().chars().take(8).collect::<String>());
        thread::Builder::new().name(name).spawn(move || runner.run())?;
        Ok(node)
    }

    pub(super) fn send(&self, input: Input) {
        lock(&self.inputs).push_back(input);
        self.changed.notify_one();
    }

    /// What there is to do, at once or by then.
    fn wait(&self, until: Option<Instant>) -> VecDeque<Input> {
        let mut inputs = lock(&self.inputs);
        while inputs.is_empty() {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            inputs = match left {
                Some(left) if left.is_zero() => break,
                Some(left) => {
                    self.changed.wait_timeout(inputs, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(inputs).unwrap_or_else(PoisonError::into_inner),
            };
        }
        std::mem::take(&mut *inputs)
    }

    pub(super) fn stats(&self) -> HandOffStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        HandOffStats {
            leases: read(&counters.leases),
            delivered: read(&counters.delivered),
            aborted: read(&counters.aborted),
            expired: read(&counters.expired),
            failed: read(&counters.failed),
            withdrawn: read(&counters.withdrawn),
            fetched: read(&counters.fetched),
            lost: read(&counters.lost),
            bytes_taken: read(&counters.bytes_taken),
            bytes_given: read(&counters.bytes_given),
        }
    }
}

/// Wakes the thread for one operation.
pub(super) struct Poke {
    pub(super) node: Arc<Node>,
    pub(super) key: u64,
}

impl Wake for Poke {
    fn wake(self: Arc<Self>) {
        self.node.send(Input::Poll(self.key));
    }
}

/// An operation of ours, until its memory is quiet.
struct Running {
    id: Id,
    /// `None` once it has ended.
    completion: Option<Completion<Report>>,
    watched: Weak<()>,
    /// When it is ended, if it has not by then.
    stop_at: Option<Instant>,
}

/// A hand-off that this engine takes.
struct Taking {
    ended: Promise<Verdict>,
    deadline: Instant,
    /// Chunks that have come and nobody asked for yet.
    chunks: VecDeque<Chunk>,
    waiting: Option<Promise<Chunk>>,
    /// Alive while somebody may be at its memory here.
    busy: Weak<()>,
}

struct Runner {
    owner: Owner,
    taker: Taker,
    pushes: Pushes,
    node: Arc<Node>,
    _letters: Arc<Letters>,
    engine: String,
    pool: KvPool,
    peers: HashMap<String, RemoteBlocks>,
    open: HashMap<Id, Promise<Outcome>>,
    running: HashMap<u64, Running>,
    next_key: u64,
    tracked: HashMap<Id, Taking>,
    /// Given up here, and something may still be at its memory.
    aborting: Vec<(Id, Weak<()>)>,
    expecting: Option<Expecting>,
    watch: Watch,
}

impl Runner {
    fn run(mut self) {
        loop {
            let inputs = self.node.wait(self.next());
            let now = Instant::now();
            for input in inputs {
                if matches!(input, Input::End) {
                    return self.leave();
                }
                self.take(now, input);
            }
            self.tick(Instant::now());
        }
    }

    fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        let is_draining = self.running.values().any(|running| running.completion.is_none());
        let look =
            (is_draining || !self.aborting.is_empty() || self.pushes.is_draining()).then(|| now + LOOK);
        let stops = self.running.values().filter_map(|running| running.stop_at).min();
        let deadlines = self.tracked.values().map(|taking| taking.deadline).min();
        let tells = self.node.observer.next();
        [self.owner.next(), self.taker.next(), self.pushes.next(), look, stops, deadlines, tells]
            .into_iter()
            .flatten()
            .min()
    }

    fn take(&mut self, now: Instant, input: Input) {
        match input {
            Input::End => {}
            Input::Mail(body) => self.read(now, &body),
            Input::Meet(engine, remote) => {
                self.watch.greet(now, &engine, &remote);
                self.peers.insert(engine, remote);
            }
            Input::Open(id, ended) => {
                self.owner.open(now, id);
                self.open.insert(id, ended);
            }
            Input::Offered(offered) => self.offered(now, offered),
            Input::Withdraw(id) => self.own(now, owner::Event::Withdraw(id)),
            Input::Poll(key) => self.poll(now, key),
            Input::Track { id, owner, lease, deadline, chunks, ended } => {
                self.taker.track(now, id, owner, lease, chunks);
                let taking =
                    Taking { ended, deadline, chunks: VecDeque::new(), waiting: None, busy: Weak::new() };
                self.tracked.insert(id, taking);
            }
            Input::Next(id, promise) => {
                // Dropped, it answers for itself: there is no such hand-off any more.
                let Some(taking) = self.tracked.get_mut(&id) else { return };
                match taking.chunks.pop_front() {
                    Some(chunk) => promise.keep(chunk),
                    None => taking.waiting = Some(promise),
                }
            }
            Input::Reading(id, busy) => {
                if let Some(taking) = self.tracked.get_mut(&id) {
                    taking.busy = busy;
                }
            }
            // Not of one that was overdue meanwhile: its taker has been told so.
            Input::Done(id) if self.tracked.contains_key(&id) => self.taken(now, taker::Event::Done(id)),
            Input::Done(_) => {}
            Input::Abort(id, watched) => self.aborting.push((id, watched)),
            Input::Unexpect { id, pusher, operations, ended } => {
                let says = self.pushes.unexpect(now, id, pusher.clone(), operations, ended);
                self.say(pusher, says);
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        let stops = self.running.values_mut().filter(|running| running.stop_at.is_some_and(|at| now >= at));
        for running in stops {
            running.stop_at = None;
            if let Some(completion) = &running.completion {
                completion.stop_on_word_of_peer();
            }
        }
        let is_quiet =
            |running: &Running| running.completion.is_none() && running.watched.strong_count() == 0;
        let quiet: Vec<Id> =
            self.running.extract_if(|_, running| is_quiet(running)).map(|(_, it)| it.id).collect();
        for id in quiet {
            self.quiet(now, id);
        }
        // Dropped, each answers for itself: the deadline passed.
        let overdue = self.tracked.extract_if(|_, taking| now > taking.deadline);
        self.aborting.extend(overdue.map(|(id, taking)| (id, taking.busy)));
        let quiet = self.aborting.extract_if(.., |(_, busy)| busy.strong_count() == 0);
        for (id, _) in quiet.collect::<Vec<_>>() {
            self.taken(now, taker::Event::Abort(id));
        }
        self.own(now, owner::Event::Tick);
        self.taken(now, taker::Event::Tick);
        for (to, says) in self.pushes.tick(&self.node, now) {
            self.say(to, says);
        }
        self.node.counters.leases.store(self.owner.leases() as u64, Ordering::Relaxed);
        self.tell(now);
        // A taker asks right after it has read, and waits for the answer.
        let wants = self.owner.leases() > 0 || self.taker.is_asking() || self.pushes.is_asking();
        if wants != self.expecting.is_some() {
            self.expecting = wants.then(|| self.pool.connector().mailbox().expect());
        }
    }

    // --- who watches ------------------------------------------------------------------------------------

    /// Tells what there is to tell of what goes on by itself.
    fn tell(&mut self, now: Instant) {
        self.watch.look(&self.node, now);
        self.node.observer.log_if_due(now);
        #[cfg(feature = "metrics")]
        self.node.observer.set_levels_if_due(now, || (self.owner.leases() as u64, self.pool.counts()));
    }

    /// The engine is gone, and has nothing any more.
    fn leave(&self) {
        #[cfg(feature = "metrics")]
        self.node.observer.set_levels(0, crate::blocks::BlockCounts::default());
    }

    // --- letters ----------------------------------------------------------------------------------------

    fn read(&mut self, now: Instant, body: &[u8]) {
        self.node.unread.fetch_sub(1, Ordering::Relaxed);
        let Ok(Letter { engine, says }) = Letter::from_bytes(body) else {
            return tracing::debug!("a letter that is none");
        };
        if !self.peers.contains_key(&engine) {
            return tracing::debug!(engine, "a letter of an engine that was never met");
        }
        if self.pushes.heard(&self.node, &engine, &says) {
            return;
        }
        match &says {
            Says::Beats { .. } | Says::Done { .. } | Says::Abort { .. } => {
                self.own(now, owner::Event::Heard(engine, says));
            }
            _ => self.taken(now, taker::Event::Heard(engine, says)),
        }
    }

    fn say(&mut self, to: String, says: Says) {
        let Some(remote) = self.peers.get(&to) else { return };
        let letter = Letter { engine: self.engine.clone(), says };
        let (Ok(body), Ok(engine)) = (letter.to_bytes(), to.parse::<uuid::Uuid>()) else { return };
        let message = [&engine.as_bytes()[..], &body].concat();
        // What does not arrive is said again, or missed by nobody.
        if let Ok(metadata) = remote.contact() {
            self.watch.sent(self.pool.connector().notify(metadata, message));
        }
    }

    // --- as owner ---------------------------------------------------------------------------------------

    fn offered(&mut self, now: Instant, offered: Offered) {
        let Offered { id, completion, watched, chunk } = offered;
        let key = self.next_key;
        self.next_key += 1;
        self.running.insert(key, Running { id, completion: Some(completion), watched, stop_at: None });
        self.own(now, owner::Event::Offered(id, chunk));
        self.poll(now, key);
    }

    fn poll(&mut self, now: Instant, key: u64) {
        let Some(running) = self.running.get_mut(&key) else { return };
        let Some(completion) = &mut running.completion else { return };
        let waker = Waker::from(Arc::new(Poke { node: Arc::clone(&self.node), key }));
        let Poll::Ready(result) = Pin::new(completion).poll(&mut Context::from_waker(&waker)) else { return };
        (running.completion, running.stop_at) = (None, None);
        let id = running.id;
        match result {
            Ok(report) => {
                self.node.counters.bytes_given.fetch_add(report.bytes, Ordering::Relaxed);
                self.node.observer.moved(report.bytes, Direction::Out);
            }
            Err(error) => {
                if !matches!(error, Error::Cancelled { .. }) {
                    tracing::debug!(%id, %error, "a chunk was not read");
                }
                self.own(now, owner::Event::Failed(id));
            }
        }
    }

    fn own(&mut self, now: Instant, event: owner::Event) {
        for action in self.owner.on(now, event) {
            match action {
                owner::Action::Say(to, says) => {
                    if matches!(says, Says::Late { .. }) {
                        self.node.observer.late();
                    }
                    self.say(to, says);
                }
                owner::Action::Withdraw(id) => self.withdraw(now, id),
                owner::Action::End(id, outcome) => {
                    let counters = &self.node.counters;
                    let counter = match outcome {
                        Outcome::Delivered => &counters.delivered,
                        Outcome::Aborted => &counters.aborted,
                        Outcome::Expired => &counters.expired,
                        Outcome::Failed => &counters.failed,
                        Outcome::Withdrawn => &counters.withdrawn,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                    match outcome {
                        Outcome::Delivered => {}
                        Outcome::Expired => self.node.observer.expired(),
                        Outcome::Failed => self.node.observer.failed(Failure::Transfer),
                        Outcome::Aborted | Outcome::Withdrawn => self.node.observer.failed(Failure::Cancel),
                    }
                    tracing::debug!(%id, ?outcome, "a hand-off ended");
                    // On the taker's word that it is done with it, there is no need to take it from it.
                    let on_word = matches!(outcome, Outcome::Delivered | Outcome::Aborted);
                    for running in self.running.values_mut().filter(|running| running.id == id) {
                        match &running.completion {
                            Some(completion) if outcome == Outcome::Aborted => {
                                completion.stop_on_word_of_peer()
                            }
                            Some(_) if on_word => running.stop_at = Some(now + LINGER),
                            Some(completion) => completion.stop(),
                            None => {}
                        }
                    }
                    // Before the answer: whoever gets that reads them next.
                    counters.leases.store(self.owner.leases() as u64, Ordering::Relaxed);
                    if let Some(promise) = self.open.remove(&id) {
                        promise.keep(outcome);
                    }
                    self.quiet(now, id);
                }
            }
        }
    }

    /// Ends what of it came too late.
    fn withdraw(&mut self, now: Instant, id: Id) {
        if !self.open.contains_key(&id) {
            for running in self.running.values().filter(|running| running.id == id) {
                if let Some(completion) = &running.completion {
                    completion.stop();
                }
            }
            self.quiet(now, id);
        }
    }

    /// Tells of it once nothing of it runs any more.
    fn quiet(&mut self, now: Instant, id: Id) {
        if !self.running.values().any(|running| running.id == id) {
            self.own(now, owner::Event::Quiet(id));
        }
    }

    // --- as taker ---------------------------------------------------------------------------------------

    fn taken(&mut self, now: Instant, event: taker::Event) {
        for action in self.taker.on(now, event) {
            match action {
                taker::Action::Say(to, says) => self.say(to, says),
                taker::Action::Read(id, chunk) => {
                    let Some(taking) = self.tracked.get_mut(&id) else { continue };
                    match taking.waiting.take() {
                        Some(promise) => promise.keep(chunk),
                        None => taking.chunks.push_back(chunk),
                    }
                }
                taker::Action::End(id, verdict) => {
                    if let Some(taking) = self.tracked.remove(&id) {
                        taking.ended.keep(verdict);
                    }
                }
            }
        }
    }
}
