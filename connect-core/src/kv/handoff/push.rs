//! Blocks that are pushed: [`Expected`] for who waits for them, [`HandOff::push`] for who has them.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use lru::LruCache;
use uuid::Uuid;

use super::message::{Id, Says};
use super::node::{Input, Node};
use super::taker::Verdict;
use super::ticket::{refused, shortened};
use super::{Fetched, HandOff, KvFailed, PushTicket, lock};
use crate::Report;
use crate::blocks::{BlockLease, Guard, SharedBlocks, Whole};
use crate::error::{Error, Failed, Recovered};
use crate::kv::observe::{self, Direction, Failure};
use crate::kv::promise::promise;
use crate::kv::{KvError, KvLayout};
use crate::op::{All, Completion, Received, WritableOperation};
use crate::task::Task;

/// How often a pusher is told again that its blocks are not wanted, until it answers.
const AGAIN: Duration = Duration::from_millis(100);
/// Hand-offs that are remembered to be given up: a late push of one that was forgotten finds its offer gone.
const MAX_ABORTED: NonZero<usize> = NonZero::new(16_384).unwrap();

/// In which pieces blocks are pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum PushPlan {
    /// All at once, at the end.
    #[default]
    Whole,
    /// So many blocks at a time, as prefill gets through the prompt.
    Chunks(NonZero<u32>),
    /// So many layers at a time, as prefill gets through the model.
    Layers(NonZero<u32>),
}

impl PushPlan {
    /// Which places and parts each push is for.
    fn windows(self, blocks: usize, layout: &KvLayout) -> Vec<(Range<usize>, Range<u32>)> {
        let parts = layout.parts_of(0..layout.layers);
        match self {
            Self::Whole => vec![(0..blocks, parts)],
            Self::Chunks(each) => {
                let each = each.get() as usize;
                (0..blocks).step_by(each).map(|at| (at..blocks.min(at + each), parts.clone())).collect()
            }
            Self::Layers(each) => {
                let layers = (0..layout.layers).step_by(each.get() as usize);
                let end = |at: u32| layout.layers.min(at.saturating_add(each.get()));
                layers.map(|at| (0..blocks, layout.parts_of(at..end(at)))).collect()
            }
        }
    }
}

/// Blocks that wait to be pushed into. Dropping it gives the request up.
#[must_use = "dropping it gives the request up"]
pub struct Expected {
    ticket: PushTicket,
    waiting: Option<Waiting>,
    handoff: HandOff,
    /// The engine that pushes.
    pusher: String,
    span: tracing::Span,
}

struct Waiting {
    whole: Whole,
    operations: Vec<Completion<Received<BlockLease>, Failed<BlockLease>>>,
}

impl HandOff {
    /// Hands out blocks for an engine to push into, in the pieces of `plan`. Send it the ticket with the request.
    ///
    /// # Errors
    /// [`KvError::UnknownEngine`] when the pusher was never met; [`KvError::Transfer`] when the blocks can't be offered.
    /// They come back with the error.
    pub fn expect(
        &self,
        pusher: &str,
        request: &str,
        lease: BlockLease,
        plan: PushPlan,
    ) -> Task<Expected, KvFailed> {
        if let Err(error) = self.remote(pusher) {
            return Task::ready(Err(KvFailed { error, lease: Some(lease) }));
        }
        let blocks = lease.blocks().len();
        let mut whole = Whole::new(lease);
        let pool = self.shared.pool.blocks().with_deadline(self.shared.config.deadline);
        let windows = plan.windows(blocks, self.shared.pool.layout());
        let starts: Vec<u32> = windows.iter().map(|(places, _)| places.start as u32).collect();
        let leases = windows.into_iter().filter_map(|(places, parts)| whole.window(places, parts));
        let span = self.shared.node.observer.transfer_span(request, pusher, "push");
        let offers = span.in_scope(|| All::new(leases.map(|window| pool.offer_writable(window)).collect()));
        let (handoff, pusher, request) = (self.clone(), pusher.to_owned(), shortened(request));
        Task::after(offers, move |offers: Vec<Result<_, Failed<BlockLease>>>| {
            let offers: Result<Vec<_>, _> = offers.into_iter().collect();
            Task::ready(match offers {
                Err(Failed { error, memory }) => {
                    drop(memory);
                    Err(KvFailed { error: error.into(), lease: whole.into_lease() })
                }
                Ok(offers) => {
                    let (operations, tickets): (Vec<_>, Vec<_>) =
                        offers.into_iter().map(|offer| (offer.operation, offer.ticket)).unzip();
                    let chunks = starts.into_iter().zip(tickets).collect();
                    let engine = handoff.engine();
                    let ticket =
                        PushTicket { id: Uuid::new_v4(), engine, request, blocks: blocks as u32, chunks };
                    let operations =
                        operations.into_iter().map(WritableOperation::wait_for_completion).collect();
                    Ok(Expected {
                        ticket,
                        waiting: Some(Waiting { whole, operations }),
                        handoff,
                        pusher,
                        span,
                    })
                }
            })
        })
    }

    /// Pushes the blocks for one piece of a ticket, by its index. They are as many as the piece has, and its layers.
    ///
    /// # Errors
    /// [`KvError::Aborted`] when the taker has given the request up; [`KvError::UnknownEngine`],
    /// [`KvError::Blocks`], [`KvError::Transfer`].
    pub fn push(
        &self,
        ticket: &PushTicket,
        index: usize,
        blocks: impl Into<SharedBlocks>,
    ) -> Task<Report, KvError> {
        let blocks = blocks.into();
        let Some((_, chunk)) = ticket.chunks.get(index) else {
            return Task::ready(Err(refused("chunks", format!("there is no push {index}"))));
        };
        let remote = match self.remote(&ticket.engine) {
            Ok(remote) => remote,
            Err(error) => return Task::ready(Err(error)),
        };
        let Some(blocks) = blocks.select_parts(chunk.parts()) else {
            return Task::ready(Err(refused("parts", "the blocks given here do not have them".to_owned())));
        };
        let guard = Guard::default();
        let node = Arc::clone(&self.shared.node);
        if !lock(&node.pushing).begin(ticket.id, &guard) {
            node.observer.failed(Failure::Cancel);
            return Task::ready(Err(KvError::Aborted { request: ticket.request.clone() }));
        }
        let span = node.observer.transfer_span(&ticket.request, &ticket.engine, "push");
        let begun = span.in_scope(|| remote.write_guarded(blocks, chunk, guard));
        let ended = move |written: Result<Report, Error>| {
            let _entered = span.enter();
            Task::ready(match written {
                Ok(report) => {
                    node.counters.bytes_given.fetch_add(report.bytes, Ordering::Relaxed);
                    node.observer.transferred(&report, Direction::Out);
                    observe::record(&span, std::slice::from_ref(&report));
                    Ok(report)
                }
                Err(error) => Err(KvError::from(error)).inspect_err(|error| node.observer.failed(error)),
            })
        };
        Task::after(begun, move |begun: Result<_, Error>| match begun {
            Err(error) => ended(Err(error)),
            Ok(write) => Task::after(write.wait_for_completion(), ended),
        })
    }
}

impl Expected {
    /// For the engine that pushes.
    pub fn ticket(&self) -> &PushTicket {
        &self.ticket
    }

    /// Waits until all of it was pushed. The first token comes with the pusher's own answer.
    ///
    /// # Errors
    /// [`KvError::Transfer`] when the pusher is gone or late. The blocks come back with the error, if nothing touches
    /// them any more.
    pub fn fetched(mut self) -> Task<Fetched, KvFailed> {
        let Some(Waiting { whole, operations }) = self.waiting.take() else {
            return Task::ready(Err(KvFailed { error: KvError::ShutDown, lease: None }));
        };
        let node = Arc::clone(&self.handoff.shared.node);
        let (id, pusher, span) = (self.ticket.id, self.pusher.clone(), self.span.clone());
        Task::after(
            All::new(operations),
            move |results: Vec<Result<Received<BlockLease>, Failed<BlockLease>>>| {
                let mut reports = Vec::with_capacity(results.len());
                let mut error = None;
                for result in results {
                    match result {
                        Ok(Received { report, memory }) => {
                            drop(memory);
                            reports.push(report);
                        }
                        Err(Failed { error: first, memory }) => {
                            drop::<Recovered<BlockLease>>(memory);
                            error.get_or_insert(first);
                        }
                    }
                }
                let counters = &node.counters;
                let _entered = span.enter();
                match error {
                    Some(error) => {
                        let error = KvError::from(error);
                        counters.lost.fetch_add(1, Ordering::Relaxed);
                        node.observer.failed(&error);
                        let (keep, _) = promise();
                        node.send(Input::Unexpect { id, pusher, operations: Vec::new(), ended: keep });
                        Task::ready(Err(KvFailed { error, lease: whole.into_lease() }))
                    }
                    None => {
                        counters.fetched.fetch_add(1, Ordering::Relaxed);
                        let bytes = reports.iter().map(|report| report.bytes).sum();
                        counters.bytes_taken.fetch_add(bytes, Ordering::Relaxed);
                        node.observer.moved(bytes, Direction::In);
                        observe::record(&span, &reports);
                        Task::ready(match whole.into_lease() {
                            Some(lease) => {
                                Ok(Fetched { lease, first_token: None, reports, commit: Duration::ZERO })
                            }
                            None => Err(KvFailed { error: KvError::ShutDown, lease: None }),
                        })
                    }
                }
            },
        )
    }

    /// Gives the request up: the pusher is told, and answers once none of its writes is under way. Then the blocks go back
    /// at once, and not when the transport could take them from a pusher that says nothing.
    ///
    /// # Errors
    /// [`KvError::DeadlineExceeded`] when the pusher does not answer within two seconds. The blocks go back by
    /// themselves when nothing touches them.
    pub fn abort(mut self) -> Task<(), KvError> {
        let request = self.ticket.request.clone();
        Task::after(self.give_up(), |verdict| {
            Task::ready(match verdict {
                Some(Verdict::Aborted) => Ok(()),
                _ => Err(KvError::DeadlineExceeded { request, limit: WORD }),
            })
        })
    }

    fn give_up(&mut self) -> crate::kv::promise::Answer<Verdict> {
        let (keep, answer) = promise();
        if let Some(Waiting { whole, operations }) = self.waiting.take() {
            // The operations have the windows; the blocks are back when those are.
            drop(whole);
            let (id, pusher) = (self.ticket.id, self.pusher.clone());
            self.handoff.shared.node.send(Input::Unexpect { id, pusher, operations, ended: keep });
        }
        answer
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        if self.waiting.is_some() {
            drop(self.give_up());
        }
    }
}

/// How long a pusher has to say that it has stopped.
pub(super) const WORD: Duration = Duration::from_secs(2);

/// What this engine pushes, shared by its thread and its callers: a push that begins after its abort is refused, and an
/// abort that comes after a push waits for its end.
pub(super) struct Pushing {
    begun: HashMap<Id, Vec<Weak<()>>>,
    aborted: LruCache<Id, ()>,
}

impl Default for Pushing {
    fn default() -> Self {
        Self { begun: HashMap::new(), aborted: LruCache::new(MAX_ABORTED) }
    }
}

impl Pushing {
    fn begin(&mut self, id: Id, guard: &Guard) -> bool {
        if self.aborted.contains(&id) {
            return false;
        }
        // Those that are over are forgotten by who comes next.
        self.begun.retain(|_, pushes| {
            pushes.retain(|push| push.strong_count() > 0);
            !pushes.is_empty()
        });
        self.begun.entry(id).or_default().push(Arc::downgrade(guard));
        true
    }

    /// Lets no push of it begin any more.
    fn abort(&mut self, id: Id) {
        self.aborted.put(id, ());
    }

    fn is_quiet(&mut self, id: Id) -> bool {
        let pushes = self.begun.get(&id);
        pushes.is_none_or(|pushes| pushes.iter().all(|push| push.strong_count() == 0))
    }
}

/// The thread's part in pushes.
#[derive(Default)]
pub(super) struct Pushes {
    /// Aborts to be answered when nothing is under way.
    answers: Vec<(String, Id, u32)>,
    asking: HashMap<Id, Asking>,
    generation: u32,
}

/// Blocks that are not wanted any more, until their pusher says that it has stopped.
struct Asking {
    pusher: String,
    generation: u32,
    next: Instant,
    until: Instant,
    operations: Vec<Completion<Received<BlockLease>, Failed<BlockLease>>>,
    ended: crate::kv::promise::Promise<Verdict>,
}

impl Pushes {
    pub(super) fn is_asking(&self) -> bool {
        !self.asking.is_empty()
    }

    pub(super) fn is_draining(&self) -> bool {
        !self.answers.is_empty()
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.asking.values().map(|asking| asking.next.min(asking.until)).min()
    }

    pub(super) fn unexpect(
        &mut self,
        now: Instant,
        id: Id,
        pusher: String,
        operations: Vec<Completion<Received<BlockLease>, Failed<BlockLease>>>,
        ended: crate::kv::promise::Promise<Verdict>,
    ) -> Says {
        self.generation += 1;
        let (generation, next, until) = (self.generation, now + AGAIN, now + WORD);
        self.asking.insert(id, Asking { pusher, generation, next, until, operations, ended });
        Says::Abort { id, generation }
    }

    /// What was said about a push, if it was about one.
    pub(super) fn heard(&mut self, node: &Node, from: &str, says: &Says) -> bool {
        match *says {
            Says::Abort { id, generation } => {
                let mut pushing = lock(&node.pushing);
                pushing.abort(id);
                let was_begun = pushing.begun.contains_key(&id);
                if was_begun {
                    self.answers.retain(|(_, other, _)| *other != id);
                    self.answers.push((from.to_owned(), id, generation));
                }
                was_begun
            }
            Says::Aborted { id, generation } => {
                let is_answer = |asking: &Asking| asking.pusher == from && asking.generation == generation;
                if !self.asking.get(&id).is_some_and(is_answer) {
                    return false;
                }
                if let Some(asking) = self.asking.remove(&id) {
                    asking.operations.iter().for_each(Completion::stop_on_word_of_peer);
                    asking.ended.keep(Verdict::Aborted);
                }
                true
            }
            _ => false,
        }
    }

    pub(super) fn tick(&mut self, node: &Node, now: Instant) -> Vec<(String, Says)> {
        let mut pushing = lock(&node.pushing);
        let quiet = self.answers.extract_if(.., |(_, id, _)| pushing.is_quiet(*id));
        let mut says: Vec<_> =
            quiet.map(|(to, id, generation)| (to, Says::Aborted { id, generation })).collect();
        // Dropped, the operations end as any that nobody waits for, and the promise says that nobody answered.
        self.asking.retain(|_, asking| now < asking.until);
        for (id, asking) in &mut self.asking {
            if now >= asking.next {
                asking.next = now + AGAIN;
                let generation = asking.generation;
                says.push((asking.pusher.clone(), Says::Abort { id: *id, generation }));
            }
        }
        says
    }
}

impl fmt::Debug for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expected").field(&self.ticket).finish()
    }
}
