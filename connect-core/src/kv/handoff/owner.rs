//! The owner's side of hand-offs, without clock, transport or threads: [`Owner`].
//!
//! A hand-off is open while its lease lasts, and each heartbeat of its taker makes that longer. It ends in one of four
//! ways, and its blocks go back then: the taker asked whether it may use what it read and was told so, gave it up, fell
//! silent, or failed to read it. After its end it is late for everybody (what was delivered stays so).

use std::collections::HashMap;
use std::num::NonZero;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::message::{Chunk, Id, Says};

/// Ends that are remembered: a question about one that was forgotten is answered as late, and its taker starts again.
const MAX_ENDED: NonZero<usize> = NonZero::new(65_536).unwrap();

/// How a hand-off ended for its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The taker has all of it, and was told that it may use it.
    Delivered,
    /// The taker gave it up.
    Aborted,
    /// The taker fell silent, or never came.
    Expired,
    /// Reading it failed.
    Failed,
    /// The owner took it back.
    Withdrawn,
}

/// What is to be done about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Tell that engine.
    Say(String, Says),
    /// End what of it is on offer; [`Event::Quiet`] follows.
    Withdraw(Id),
    /// Tell who waits.
    End(Id, Outcome),
}

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    /// More of it is on offer.
    Offered(Id, Chunk),
    /// Reading it failed.
    Failed(Id),
    /// Nothing of it is on offer any more, and nobody is at it.
    Quiet(Id),
    /// The owner takes it back.
    Withdraw(Id),
    /// An engine said something.
    Heard(String, Says),
    /// Time passed.
    Tick,
}

/// All hand-offs that one engine owns.
pub(super) struct Owner {
    lease: Duration,
    open: HashMap<Id, Open>,
    /// Ended, and something of them may still be touched. What to say when not.
    draining: HashMap<Id, Vec<(String, Says)>>,
    ended: LruCache<Id, Outcome>,
}

struct Open {
    until: Instant,
    /// Who takes it, once somebody spoke for it. Nobody else does then.
    taker: Option<String>,
    chunks: Vec<Chunk>,
}

impl Owner {
    pub(super) fn new(lease: Duration) -> Self {
        Self { lease, open: HashMap::new(), draining: HashMap::new(), ended: LruCache::new(MAX_ENDED) }
    }

    /// Begins one.
    pub(super) fn open(&mut self, now: Instant, id: Id) {
        self.open.insert(id, Open { until: now + self.lease, taker: None, chunks: Vec::new() });
    }

    /// How many leases there are.
    pub(super) fn leases(&self) -> usize {
        self.open.len()
    }

    /// When to look again, whatever happens.
    pub(super) fn next(&self) -> Option<Instant> {
        self.open.values().map(|open| open.until).min()
    }

    pub(super) fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Offered(id, chunk) => match self.open.get_mut(&id) {
                Some(open) => {
                    let index = open.chunks.len() as u32;
                    if let Some(taker) = &open.taker {
                        let chunk = chunk.clone();
                        actions.push(Action::Say(taker.clone(), Says::Chunk { id, index, chunk }));
                    }
                    open.chunks.push(chunk);
                }
                // It ended while its chunk was being offered.
                None => actions.push(Action::Withdraw(id)),
            },
            Event::Failed(id) => self.end(id, Outcome::Failed, &mut actions),
            Event::Withdraw(id) => self.end(id, Outcome::Withdrawn, &mut actions),
            Event::Quiet(id) => {
                let last_words = self.draining.remove(&id).unwrap_or_default();
                actions.extend(last_words.into_iter().map(|(to, says)| Action::Say(to, says)));
            }
            Event::Heard(from, says) => self.heard(now, from, says, &mut actions),
            Event::Tick => {
                let late = self.open.iter().filter(|(_, open)| now > open.until).map(|(id, _)| *id);
                for id in late.collect::<Vec<_>>() {
                    self.end(id, Outcome::Expired, &mut actions);
                }
            }
        }
        actions
    }

    fn heard(&mut self, now: Instant, from: String, says: Says, actions: &mut Vec<Action>) {
        match says {
            Says::Beats { beats } => {
                let mut alive = Vec::new();
                for (id, have) in beats {
                    let Some(open) = self.speaks_for(now, id, &from) else {
                        actions.push(Action::Say(from.clone(), self.verdict(id)));
                        continue;
                    };
                    alive.push(id);
                    for (index, chunk) in open.chunks.iter().enumerate().skip(have as usize) {
                        let (index, chunk) = (index as u32, chunk.clone());
                        actions.push(Action::Say(from.clone(), Says::Chunk { id, index, chunk }));
                    }
                }
                if !alive.is_empty() {
                    actions.push(Action::Say(from, Says::Alive { ids: alive }));
                }
            }
            Says::Done { id } => {
                if self.speaks_for(now, id, &from).is_some() {
                    self.end(id, Outcome::Delivered, actions);
                }
                actions.push(Action::Say(from, self.verdict(id)));
            }
            Says::Abort { id, generation } => {
                if self.speaks_for(now, id, &from).is_some() {
                    self.end(id, Outcome::Aborted, actions);
                }
                let answer = (from, Says::Aborted { id, generation });
                match self.draining.get_mut(&id) {
                    // Once nobody is at it; the answer to what each engine asked last.
                    Some(last_words) => {
                        last_words.retain(|(to, _)| *to != answer.0);
                        last_words.push(answer);
                    }
                    None => actions.push(Action::Say(answer.0, answer.1)),
                }
            }
            // What owners say.
            Says::Alive { .. }
            | Says::Ok { .. }
            | Says::Late { .. }
            | Says::Aborted { .. }
            | Says::Chunk { .. } => {}
        }
    }

    /// The hand-off, if it is open and this engine's, which holds it from now on.
    fn speaks_for(&mut self, now: Instant, id: Id, engine: &str) -> Option<&Open> {
        let open = self.open.get_mut(&id)?;
        let is_taker = open.taker.get_or_insert_with(|| engine.to_owned()) == engine;
        if !is_taker || now > open.until {
            return None;
        }
        open.until = now + self.lease;
        Some(open)
    }

    /// What is said of one that is not open.
    fn verdict(&self, id: Id) -> Says {
        match self.ended.peek(&id) {
            Some(Outcome::Delivered) => Says::Ok { id },
            _ => Says::Late { id },
        }
    }

    fn end(&mut self, id: Id, outcome: Outcome, actions: &mut Vec<Action>) {
        if self.open.remove(&id).is_none() {
            return;
        }
        self.ended.put(id, outcome);
        self.draining.insert(id, Vec::new());
        actions.push(Action::Withdraw(id));
        actions.push(Action::End(id, outcome));
    }
}
