//! Giving blocks: [`Offer`], and [`Streaming`] for blocks that are still being computed.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use super::message::{Chunk, Id, Last};
use super::node::{Input, Node, Offered};
use super::owner::Outcome;
use super::ticket::shortened;
use super::{HandOff, KvTicket};
use crate::Deadline;
use crate::blocks::{BlockCard, BlockOffer, CardId, Guard, SharedBlocks};
use crate::kv::KvError;
use crate::kv::promise::promise;
use crate::op::{All, ReadableOperation};
use crate::task::Task;

/// A hand-off of this engine's. It goes on when this is dropped.
#[must_use = "its ticket is for the taker"]
pub struct Offer {
    ticket: KvTicket,
    ended: Ended,
}

/// When a hand-off has ended, and how: an answer to be awaited or waited for.
pub type Ended = Task<Outcome, KvError>;

impl HandOff {
    /// Offers blocks with the keys and values of so many tokens to one taker, who also gets the model's first token: then
    /// it goes on exactly where this process would have.
    ///
    /// The blocks go back when the hand-off has ended and nobody is at them; share them to keep them.
    ///
    /// # Errors
    /// [`KvError::Transfer`] when they can't be offered, [`KvError::Blocks`] for blocks of another pool.
    pub fn offer(
        &self,
        request: &str,
        blocks: impl Into<SharedBlocks>,
        tokens: u32,
        first_token: Option<u32>,
    ) -> Task<Offer, KvError> {
        let blocks = blocks.into();
        let streaming = self.begin(request, blocks.blocks().len() as u32, tokens);
        let last = Some(Last { first_token });
        Task::after(streaming.offer(blocks, 0, last), move |chunk| {
            Task::ready(chunk.map(|chunk| {
                let Streaming { mut ticket, ended, unfinished, .. } = streaming;
                unfinished.finished();
                ticket.card = chunk.ticket.card();
                ticket.chunks.push(chunk);
                Offer { ticket, ended }
            }))
        })
    }

    /// Offers the same blocks to several takers: a ticket for each. They go back after the last has ended.
    ///
    /// # Errors
    /// As [`offer`](Self::offer); then none of the offers stands.
    pub fn fan_out(
        &self,
        request: &str,
        blocks: impl Into<SharedBlocks>,
        tokens: u32,
        first_token: Option<u32>,
        takers: usize,
    ) -> Task<Vec<Offer>, KvError> {
        let blocks = blocks.into();
        let offers = (0..takers).map(|_| self.offer(request, blocks.clone(), tokens, first_token));
        let node = Arc::clone(&self.shared.node);
        Task::after(All::new(offers.collect()), move |offers: Vec<Result<Offer, KvError>>| {
            let (good, bad): (Vec<_>, Vec<_>) = offers.into_iter().partition(Result::is_ok);
            let good: Vec<Offer> = good.into_iter().flatten().collect();
            Task::ready(match bad.into_iter().find_map(Result::err) {
                None => Ok(good),
                Some(error) => {
                    good.iter().for_each(|offer| node.send(Input::Withdraw(offer.ticket.id)));
                    Err(error)
                }
            })
        })
    }

    /// Begins a hand-off of so many blocks that are still being computed. Its ticket can go to the taker at once, who
    /// reads what there is while the rest is computed.
    ///
    /// # Errors
    /// [`KvError::Transfer`] when the transport can't describe the pool.
    pub fn stream(&self, request: &str, blocks: u32, tokens: u32) -> Task<Streaming, KvError> {
        let (handoff, request) = (self.clone(), request.to_owned());
        Task::after(self.shared.pool.blocks().card(), move |card| {
            let begin = |card: BlockCard| {
                let mut streaming = handoff.begin(&request, blocks, tokens);
                streaming.ticket.card = card.id();
                streaming
            };
            Task::ready(card.map(begin).map_err(KvError::from))
        })
    }

    /// The ticket's card is the caller's to fill in.
    fn begin(&self, request: &str, blocks: u32, tokens: u32) -> Streaming {
        let id = Uuid::new_v4();
        let (keep, answer) = promise();
        self.shared.node.send(Input::Open(id, keep));
        let ticket = KvTicket {
            id,
            engine: self.engine(),
            request: shortened(request),
            tokens,
            blocks,
            card: CardId::default(),
            lease_ms: u64::try_from(self.shared.config.lease.as_millis()).unwrap_or(u64::MAX).max(1),
            chunks: Vec::new(),
        };
        let span = tracing::info_span!("kv.offer", request = ticket.request, blocks, tokens);
        let until_ended = span.clone();
        let ended = Task::after(answer, move |outcome: Option<Outcome>| {
            until_ended.in_scope(|| tracing::debug!(?outcome, "ended"));
            Task::ready(outcome.ok_or(KvError::ShutDown))
        });
        let unfinished = Unfinished { id, node: Some(Arc::clone(&self.shared.node)) };
        Streaming { ticket, ended, unfinished, handoff: self.clone(), span }
    }
}

/// Takes a hand-off back when it is dropped, until all of it is on offer.
struct Unfinished {
    id: Id,
    node: Option<Arc<Node>>,
}

impl Unfinished {
    fn finished(mut self) {
        self.node = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(node) = &self.node {
            node.send(Input::Withdraw(self.id));
        }
    }
}

impl Offer {
    /// For the taker.
    pub fn ticket(&self) -> &KvTicket {
        &self.ticket
    }

    /// Waits until the taker may use what it read, or will not.
    ///
    /// # Errors
    /// [`KvError::ShutDown`].
    pub fn ended(self) -> Ended {
        self.ended
    }

    /// The ticket, and how the hand-off ends.
    pub fn into_parts(self) -> (KvTicket, Ended) {
        (self.ticket, self.ended)
    }
}

/// A hand-off whose blocks are still being computed. Dropping it takes it back, if the last chunk was not sent.
#[must_use = "its ticket is for the taker"]
pub struct Streaming {
    ticket: KvTicket,
    ended: Ended,
    unfinished: Unfinished,
    handoff: HandOff,
    span: tracing::Span,
}

impl Streaming {
    /// For the taker.
    pub fn ticket(&self) -> &KvTicket {
        &self.ticket
    }

    /// Hands off blocks that are ready, or some layers of them: `at` is which of the hand-off's blocks is their first.
    ///
    /// # Errors
    /// As [`HandOff::offer`]; [`KvError::Malformed`] for more blocks than one message names (some 8,000).
    pub fn send(&self, blocks: impl Into<SharedBlocks>, at: u32) -> Task<(), KvError> {
        Task::after(self.offer(blocks.into(), at, None), |chunk| Task::ready(chunk.map(drop)))
    }

    /// Hands off what is left, with the model's first token.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn finish(
        self,
        blocks: impl Into<SharedBlocks>,
        at: u32,
        first_token: Option<u32>,
    ) -> Task<Ended, KvError> {
        let sent = self.offer(blocks.into(), at, Some(Last { first_token }));
        Task::after(sent, move |chunk| {
            let Self { ended, unfinished, .. } = self;
            Task::ready(chunk.map(|_| {
                unfinished.finished();
                ended
            }))
        })
    }

    /// Takes it back: the request was cancelled. The taker is told that it is late.
    pub fn withdraw(self) -> Ended {
        self.ended
    }

    /// Puts one chunk on offer, and tells the thread of it.
    fn offer(&self, blocks: SharedBlocks, at: u32, last: Option<Last>) -> Task<Chunk, KvError> {
        let (id, node): (Id, _) = (self.ticket.id, Arc::clone(&self.handoff.shared.node));
        let guard = Guard::default();
        let watched = Arc::downgrade(&guard);
        // Its lease says how long it is open.
        let pool = self.handoff.shared.pool.blocks().with_deadline(Deadline::never());
        let offered = self.span.in_scope(|| pool.offer_guarded(blocks, guard));
        Task::after(offered, move |offered: Result<BlockOffer<ReadableOperation>, _>| {
            Task::ready(match offered {
                Ok(BlockOffer { operation, ticket }) => {
                    let chunk = Chunk { at, ticket, last };
                    let completion = operation.wait_for_completion();
                    node.send(Input::Offered(Offered { id, completion, watched, chunk: chunk.clone() }));
                    Ok(chunk)
                }
                Err(error) => {
                    node.send(Input::Withdraw(id));
                    Err(error.into())
                }
            })
        })
    }
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Offer").field(&self.ticket).finish()
    }
}

impl fmt::Debug for Streaming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Streaming").field(&self.ticket).finish()
    }
}
