//! The taker's side of hand-offs, without clock, transport or threads: [`Taker`].
//!
//! A taker tells the owner that it is alive from the moment it has the ticket, whatever it is doing. What it has read
//! counts only after the owner has said OK: an owner that gave the blocks up says LATE, and one that is not heard of for
//! a whole lease may have given them up.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::message::{Chunk, Id, MAX_BEATS, Says};

/// How often a question is asked again until it is answered: a notification may be lost with an agent.
const AGAIN: Duration = Duration::from_millis(100);
/// Heartbeats in one lease, so that several may be lost.
const BEATS: u32 = 6;

/// How a hand-off ended for its taker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may be used.
    Committed,
    /// The owner had given it up.
    Late,
    /// The owner was not heard of for a lease.
    Silent,
    /// The owner knows that this side gave it up, and nobody is at the memory of either.
    Aborted,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Tell that engine.
    Say(String, Says),
    /// More can be read.
    Read(Id, Chunk),
    /// Tell who waits.
    End(Id, Verdict),
}

#[derive(Debug)]
pub(super) enum Event {
    /// All of it was read.
    Done(Id),
    /// It is not wanted any more.
    Abort(Id),
    /// An engine said something.
    Heard(String, Says),
    /// Time passed.
    Tick,
}

/// All hand-offs that one engine takes.
#[derive(Default)]
pub(super) struct Taker {
    tracked: HashMap<Id, Tracked>,
    generation: u32,
}

struct Tracked {
    owner: String,
    lease: Duration,
    heard: Instant,
    next_beat: Instant,
    /// Chunks that have come, all up to this one.
    chunks: u32,
    asking: Option<Asking>,
}

/// A question that wants an answer.
struct Asking {
    says: Says,
    next: Instant,
}

impl Taker {
    /// Begins one, of which so many chunks came with the ticket. The next tick says so to its owner.
    pub(super) fn track(&mut self, now: Instant, id: Id, owner: String, lease: Duration, chunks: u32) {
        let tracked = Tracked { owner, lease, heard: now, next_beat: now, chunks, asking: None };
        self.tracked.insert(id, tracked);
    }

    /// Whether an answer is waited for.
    pub(super) fn is_asking(&self) -> bool {
        self.tracked.values().any(|tracked| tracked.asking.is_some())
    }

    /// When to look again, whatever happens.
    pub(super) fn next(&self) -> Option<Instant> {
        let next = |tracked: &Tracked| {
            let asks = tracked.asking.as_ref().map(|asking| asking.next);
            let times = [Some(tracked.next_beat), asks, Some(tracked.heard + tracked.lease)];
            times.into_iter().flatten().min()
        };
        self.tracked.values().filter_map(next).min()
    }

    pub(super) fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Done(id) => self.ask(now, id, Says::Done { id }, &mut actions),
            Event::Abort(id) => {
                self.generation += 1;
                let generation = self.generation;
                self.ask(now, id, Says::Abort { id, generation }, &mut actions);
            }
            Event::Heard(from, says) => self.heard(now, &from, says, &mut actions),
            Event::Tick => self.tick(now, &mut actions),
        }
        actions
    }

    fn ask(&mut self, now: Instant, id: Id, says: Says, actions: &mut Vec<Action>) {
        let Some(tracked) = self.tracked.get_mut(&id) else { return };
        actions.push(Action::Say(tracked.owner.clone(), says.clone()));
        tracked.asking = Some(Asking { says, next: now + AGAIN });
    }

    fn heard(&mut self, now: Instant, from: &str, says: Says, actions: &mut Vec<Action>) {
        match says {
            Says::Alive { ids } => {
                for id in ids {
                    if let Some(tracked) = self.of(id, from) {
                        tracked.heard = now;
                    }
                }
            }
            Says::Chunk { id, index, chunk } => {
                let Some(tracked) = self.of(id, from) else { return };
                tracked.heard = now;
                // Said again, or too early: those before it are said again with the next heartbeat.
                if index == tracked.chunks {
                    tracked.chunks += 1;
                    tracked.next_beat = now;
                    actions.push(Action::Read(id, chunk));
                }
            }
            Says::Ok { id } => {
                let asked = |tracked: &Tracked| {
                    matches!(&tracked.asking, Some(Asking { says: Says::Done { .. }, .. }))
                };
                if self.of(id, from).is_some_and(|tracked| asked(tracked)) {
                    self.end(id, Verdict::Committed, actions);
                }
            }
            Says::Late { id } => {
                if self.of(id, from).is_some() {
                    self.end(id, Verdict::Late, actions);
                }
            }
            Says::Aborted { id, generation } => {
                let asked = |tracked: &Tracked| match &tracked.asking {
                    Some(Asking { says: Says::Abort { generation: asked, .. }, .. }) => *asked == generation,
                    _ => false,
                };
                if self.of(id, from).is_some_and(|tracked| asked(tracked)) {
                    self.end(id, Verdict::Aborted, actions);
                }
            }
            // What takers say.
            Says::Beats { .. } | Says::Done { .. } | Says::Abort { .. } => {}
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // By this side's own clock, however long it was stopped.
        let silent = |(id, tracked): (&Id, &Tracked)| (now > tracked.heard + tracked.lease).then_some(*id);
        for id in self.tracked.iter().filter_map(silent).collect::<Vec<_>>() {
            self.end(id, Verdict::Silent, actions);
        }
        let mut beats: HashMap<&str, Vec<(Id, u32)>> = HashMap::new();
        for (id, tracked) in &mut self.tracked {
            if let Some(asking) = &mut tracked.asking
                && now >= asking.next
            {
                asking.next = now + AGAIN;
                actions.push(Action::Say(tracked.owner.clone(), asking.says.clone()));
            }
            if now >= tracked.next_beat {
                tracked.next_beat = now + tracked.lease / BEATS;
                beats.entry(&tracked.owner).or_default().push((*id, tracked.chunks));
            }
        }
        for (owner, beats) in beats {
            for some in beats.chunks(MAX_BEATS) {
                actions.push(Action::Say(owner.to_owned(), Says::Beats { beats: some.to_vec() }));
            }
        }
    }

    /// The hand-off, if that engine owns it.
    fn of(&mut self, id: Id, owner: &str) -> Option<&mut Tracked> {
        self.tracked.get_mut(&id).filter(|tracked| tracked.owner == owner)
    }

    fn end(&mut self, id: Id, verdict: Verdict, actions: &mut Vec<Action>) {
        self.tracked.remove(&id);
        actions.push(Action::End(id, verdict));
    }
}
