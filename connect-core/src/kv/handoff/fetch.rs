//! Taking blocks: [`Tracked`], and what comes of it.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::message::{Chunk, Last};
use super::node::{Input, Node};
use super::taker::Verdict;
use super::ticket::refused;
use super::{HandOff, KvTicket};
use crate::Report;
use crate::blocks::{BlockError, BlockLease, RemoteBlocks, Whole};
use crate::error::{Error, Failed};
use crate::kv::KvError;
use crate::kv::observe::{self, Direction};
use crate::kv::promise::{Answer, promise};
use crate::op::{ReadOperation, Received};
use crate::task::Task;

/// A hand-off whose owner is told from now on that somebody is at it. Dropping it gives it up.
#[must_use = "dropping it gives the hand-off up"]
pub struct Tracked {
    ticket: KvTicket,
    remote: RemoteBlocks,
    node: Arc<Node>,
    ended: Option<Answer<Verdict>>,
    limit: Duration,
    whole: Option<Whole>,
    /// Alive while somebody may be at its memory: the thread waits for that before it tells the owner that it is given
    /// up, however it came to that.
    busy: Weak<()>,
}

/// Blocks that may be used.
#[derive(Debug)]
#[non_exhaustive]
pub struct Fetched {
    /// The blocks, filled but for those that were there already.
    pub lease: BlockLease,
    /// The model's first token after the prompt, if the owner sent it.
    pub first_token: Option<u32>,
    /// One for each chunk: bytes, pieces, and how long each part took.
    pub reports: Vec<Report>,
    /// From asking the owner whether the blocks may be used to its answer. Zero for blocks that were pushed.
    pub commit: Duration,
}

/// A hand-off that failed. None of its blocks may be used as what they were to be.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct KvFailed {
    /// Why.
    #[source]
    pub error: KvError,
    /// The blocks, if nothing touches them any more; their content is unspecified. Else they are quarantined: they go
    /// back to their pool by themselves when nothing does.
    pub lease: Option<BlockLease>,
}

impl HandOff {
    /// Begins to take a hand-off: call it as soon as there is a ticket, long before there are blocks for it. The owner
    /// hears of it every sixth of the lease from now on.
    ///
    /// # Errors
    /// [`KvError::UnknownEngine`] when the owner was never met, or has restarted since;
    /// [`StaleCard`](BlockError::StaleCard) when it has another card by now. For both: exchange cards, and ask it again.
    pub fn track(&self, ticket: KvTicket) -> Result<Tracked, KvError> {
        let remote = self.remote(ticket.engine())?;
        let (card, current) = (remote.card().id(), ticket.card);
        if card != current {
            return Err(BlockError::StaleCard { card, ticket: current }.into());
        }
        let (keep, ended) = promise();
        let limit = self.shared.config.deadline;
        self.shared.node.send(Input::Track {
            id: ticket.id,
            owner: ticket.engine.clone(),
            lease: ticket.lease(),
            deadline: Instant::now() + limit,
            chunks: ticket.chunks.len() as u32,
            ended: keep,
        });
        let node = Arc::clone(&self.shared.node);
        Ok(Tracked { ticket, remote, node, ended: Some(ended), limit, whole: None, busy: Weak::new() })
    }
}

impl Tracked {
    /// The ticket.
    pub fn ticket(&self) -> &KvTicket {
        &self.ticket
    }

    /// Reads the blocks into a lease of as many, all chunks as they come, and asks the owner whether they may be used.
    ///
    /// # Errors
    /// [`KvError::LeaseExpired`], [`KvError::Transfer`], [`KvError::Blocks`] with
    /// [`StaleCard`](BlockError::StaleCard) when the owner has another card by now, and the rest of
    /// [`KvError`]. The lease comes back with the error, if nothing touches it any more.
    pub fn fetch(self, lease: BlockLease) -> Task<Fetched, KvFailed> {
        self.fetch_after(lease, 0)
    }

    /// The same for who has the first blocks already: the lease is for the others.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub fn fetch_after(mut self, lease: BlockLease, cached: u32) -> Task<Fetched, KvFailed> {
        let (local, remote) = (lease.blocks().len(), self.ticket.blocks.saturating_sub(cached) as usize);
        if local != remote || local == 0 {
            let error = BlockError::Count { local, remote }.into();
            return Task::ready(Err(KvFailed { error, lease: Some(lease) }));
        }
        let whole = Whole::new(lease);
        self.busy = whole.guard();
        self.node.send(Input::Reading(self.ticket.id, self.busy.clone()));
        self.whole = Some(whole);
        let ready = std::mem::take(&mut self.ticket.chunks);
        let span = self.node.observer.transfer_span(&self.ticket.request, &self.ticket.engine, "pull");
        Fetch { tracked: self, cached, ready: ready.into(), reports: Vec::new(), first_token: None, span }
            .next()
    }

    /// Gives the hand-off up, and waits until its owner knows.
    ///
    /// # Errors
    /// The owner did not answer.
    pub fn abort(mut self) -> Task<(), KvError> {
        let ended = self.ended.take();
        let error = self.lost(Verdict::Silent);
        drop(self);
        let Some(ended) = ended else { return Task::ready(Ok(())) };
        Task::after(ended, |verdict| {
            Task::ready(match verdict {
                Some(Verdict::Aborted | Verdict::Late) => Ok(()),
                _ => Err(error),
            })
        })
    }

    fn lost(&self, verdict: Verdict) -> KvError {
        let request = self.ticket.request.clone();
        match verdict {
            Verdict::Aborted => KvError::Aborted { request },
            Verdict::Silent => {
                KvError::LeaseExpired { request, reason: "this side has not heard of the owner for a lease" }
            }
            Verdict::Late | Verdict::Committed => {
                KvError::LeaseExpired { request, reason: "the owner has given the blocks up" }
            }
        }
    }

    fn overdue(&self) -> KvError {
        KvError::DeadlineExceeded { request: self.ticket.request.clone(), limit: self.limit }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        drop(self.whole.take());
        // Of one that has ended the thread knows nothing any more.
        self.node.send(Input::Abort(self.ticket.id, std::mem::take(&mut self.busy)));
    }
}

/// A hand-off that is being read.
struct Fetch {
    tracked: Tracked,
    cached: u32,
    ready: std::collections::VecDeque<Chunk>,
    reports: Vec<Report>,
    first_token: Option<u32>,
    span: tracing::Span,
}

impl Fetch {
    /// Goes on with the next chunk, or waits for it.
    fn next(mut self) -> Task<Fetched, KvFailed> {
        if let Some(chunk) = self.ready.pop_front() {
            return self.read(chunk);
        }
        let (keep, answer) = promise();
        self.tracked.node.send(Input::Next(self.tracked.ticket.id, keep));
        Task::after(answer, move |chunk: Option<Chunk>| match chunk {
            Some(chunk) => self.read(chunk),
            // The hand-off has ended meanwhile: its end says how.
            None => self.ended(),
        })
    }

    fn read(mut self, chunk: Chunk) -> Task<Fetched, KvFailed> {
        let Chunk { at, ticket, last } = chunk;
        let is_last = last.is_some();
        if let Some(Last { first_token }) = last {
            self.first_token = first_token;
        }
        // What is there already is left out.
        let skip = self.cached.saturating_sub(at) as usize;
        let Some(ticket) = ticket.select_blocks(skip..ticket.blocks().len()) else {
            return self.after_chunk(is_last);
        };
        let start = (at as usize + skip).saturating_sub(self.cached as usize);
        let places = start..start.saturating_add(ticket.blocks().len());
        let window = self.tracked.whole.as_mut().and_then(|whole| whole.window(places, ticket.parts()));
        let Some(window) = window else {
            let reason = "a chunk is not of the blocks of its hand-off, or was there already".to_owned();
            return self.fail(refused("chunks", reason));
        };
        let begun = self.span.in_scope(|| self.tracked.remote.read(&ticket, window));
        Task::after(begun, move |begun: Result<ReadOperation<BlockLease>, Failed<BlockLease>>| match begun {
            Err(failed) => self.failed(failed),
            Ok(read) => Task::after(read.wait_for_completion(), move |read| self.was_read(read, is_last)),
        })
    }

    fn was_read(
        mut self,
        read: Result<Received<BlockLease>, Failed<BlockLease>>,
        is_last: bool,
    ) -> Task<Fetched, KvFailed> {
        match read {
            Err(failed) => self.failed(failed),
            Ok(Received { report, memory }) => {
                drop(memory);
                self.tracked.node.counters.bytes_taken.fetch_add(report.bytes, Ordering::Relaxed);
                self.tracked.node.observer.transferred(&report, Direction::In);
                self.reports.push(report);
                observe::record(&self.span, &self.reports);
                self.after_chunk(is_last)
            }
        }
    }

    fn after_chunk(self, is_last: bool) -> Task<Fetched, KvFailed> {
        if !is_last {
            return self.next();
        }
        if !self.tracked.whole.as_ref().is_some_and(Whole::is_covered) {
            let reason = "the last one has come, and not all blocks have".to_owned();
            return self.fail(refused("chunks", reason));
        }
        self.tracked.node.send(Input::Done(self.tracked.ticket.id));
        self.ended()
    }

    /// Waits for the owner's word.
    fn ended(mut self) -> Task<Fetched, KvFailed> {
        let asked = Instant::now();
        let Some(ended) = self.tracked.ended.take() else { return self.fail(KvError::ShutDown) };
        Task::after(ended, move |verdict| match verdict {
            Some(Verdict::Committed) => {
                let Self { mut tracked, reports, first_token, .. } = self;
                match tracked.whole.take().and_then(Whole::into_lease) {
                    Some(lease) => {
                        tracked.node.counters.fetched.fetch_add(1, Ordering::Relaxed);
                        Task::ready(Ok(Fetched { lease, first_token, reports, commit: asked.elapsed() }))
                    }
                    None => Task::ready(Err(KvFailed { error: KvError::ShutDown, lease: None })),
                }
            }
            Some(verdict) => {
                let error = self.tracked.lost(verdict);
                self.fail(error)
            }
            // The thread lets a hand-off go whose deadline passed.
            None => {
                let error = self.tracked.overdue();
                self.fail(error)
            }
        })
    }

    fn failed(self, failed: Failed<BlockLease>) -> Task<Fetched, KvFailed> {
        let Failed { error, memory } = failed;
        drop(memory);
        self.fail(match error {
            Error::Blocks(error) => error.into(),
            error => error.into(),
        })
    }

    fn fail(mut self, error: KvError) -> Task<Fetched, KvFailed> {
        self.tracked.node.counters.lost.fetch_add(1, Ordering::Relaxed);
        self.span.in_scope(|| self.tracked.node.observer.failed(&error));
        let lease = self.tracked.whole.take().and_then(Whole::into_lease);
        Task::ready(Err(KvFailed { error, lease }))
    }
}

impl fmt::Debug for Tracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tracked").field(&self.ticket).finish()
    }
}
