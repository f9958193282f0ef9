//! [`KvTicket`] and [`PushTicket`]: what travels over the side channel for each request.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::message::{Chunk, Id};
use crate::MetadataError;
use crate::blocks::{BlockTicket, CardId};
use crate::kv::KvError;
use crate::wire::json;

/// Largest ticket: two for each of the most blocks.
const MAX_TICKET_BYTES: usize = 2 << 20;
/// Longest name of a request, and chunks of one hand-off.
const MAX_REQUEST_BYTES: usize = 256;
const MAX_CHUNKS: usize = 65_536;

/// A hand-off on offer: everything that its taker needs, but for the owner's [card](crate::kv::PoolCard).
///
/// Plain JSON, so that a router can carry it and log its size. Whoever has it can take the blocks: treat it like a
/// password. `Debug` shows no keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvTicket {
    pub(super) id: Id,
    /// The owner's engine.
    pub(super) engine: String,
    pub(super) request: String,
    pub(super) tokens: u32,
    pub(super) blocks: u32,
    pub(super) lease_ms: u64,
    /// The owner's card when it made the ticket: with another one it can't even be spoken to.
    pub(super) card: CardId,
    pub(super) chunks: Vec<Chunk>,
}

impl KvTicket {
    /// Reads a ticket.
    ///
    /// # Errors
    /// [`KvError::Malformed`].
    pub fn from_json(document: &str) -> Result<Self, KvError> {
        let json::Object(ticket) = json::parse::<json::Object<Self>>(document.as_bytes(), MAX_TICKET_BYTES)?;
        check(&ticket.request, ticket.chunks.len())?;
        if ticket.lease_ms == 0 || ticket.lease_ms > 24 * 3600 * 1000 {
            return Err(refused("lease_ms", format!("{} is not between 1 and a day", ticket.lease_ms)));
        }
        Ok(ticket)
    }

    /// Writes the ticket.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a ticket is made of strings and integers only")
    }

    /// The engine whose blocks these are.
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// The card that the owner had when it made the ticket.
    pub fn card(&self) -> CardId {
        self.card
    }

    /// What the owner calls the request.
    pub fn request(&self) -> &str {
        &self.request
    }

    /// Tokens whose keys and values these are.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Blocks they take.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// How long the owner holds the blocks for a taker that it does not hear of.
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }

    /// The model's first token after the prompt, if the owner had it when it made the ticket.
    pub fn first_token(&self) -> Option<u32> {
        self.chunks.last().and_then(|chunk| chunk.last).and_then(|last| last.first_token)
    }
}

/// Blocks that wait to be pushed into: for the one who has them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushTicket {
    pub(super) id: Id,
    /// The engine that waits.
    pub(super) engine: String,
    pub(super) request: String,
    pub(super) blocks: u32,
    /// For each push: which of the blocks is its first, and where it goes.
    pub(super) chunks: Vec<(u32, BlockTicket)>,
}

impl PushTicket {
    /// Reads a ticket.
    ///
    /// # Errors
    /// [`KvError::Malformed`].
    pub fn from_json(document: &str) -> Result<Self, KvError> {
        let json::Object(ticket) = json::parse::<json::Object<Self>>(document.as_bytes(), MAX_TICKET_BYTES)?;
        check(&ticket.request, ticket.chunks.len())?;
        Ok(ticket)
    }

    /// Writes the ticket.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a ticket is made of strings and integers only")
    }

    /// The engine that waits.
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// What that calls the request.
    pub fn request(&self) -> &str {
        &self.request
    }

    /// Pushes it takes.
    pub fn pushes(&self) -> usize {
        self.chunks.len()
    }

    /// Blocks there are in all.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }
}

fn check(request: &str, chunks: usize) -> Result<(), KvError> {
    if request.len() > MAX_REQUEST_BYTES {
        return Err(refused("request", format!("{} bytes, more than {MAX_REQUEST_BYTES}", request.len())));
    }
    if chunks > MAX_CHUNKS {
        return Err(refused("chunks", format!("{chunks}, more than {MAX_CHUNKS}")));
    }
    Ok(())
}

pub(super) fn refused(field: &'static str, reason: String) -> KvError {
    MetadataError::Field { field, reason }.into()
}

/// A request's name, as long as tickets allow.
pub(super) fn shortened(request: &str) -> String {
    let mut end = request.len().min(MAX_REQUEST_BYTES);
    while !request.is_char_boundary(end) {
        end -= 1;
    }
    request[..end].to_owned()
}

impl fmt::Debug for KvTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvTicket")
            .field("engine", &self.engine)
            .field("request", &self.request)
            .field("tokens", &self.tokens)
            .field("blocks", &self.blocks)
            .field("chunks", &self.chunks.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PushTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushTicket")
            .field("engine", &self.engine)
            .field("request", &self.request)
            .field("blocks", &self.blocks)
            .field("chunks", &self.chunks.len())
            .finish_non_exhaustive()
    }
}

/// One that is written down.
#[cfg(test)]
pub(in crate::kv) fn golden_ticket(id: Id, engine: &str, card: CardId, ticket: BlockTicket) -> KvTicket {
    let last = Some(super::message::Last { first_token: Some(17) });
    let (engine, request) = (engine.to_owned(), "request 1".to_owned());
    let chunks = vec![Chunk { at: 0, ticket, last }];
    KvTicket { id, engine, request, tokens: 20, blocks: 2, lease_ms: 30_000, card, chunks }
}
