//! What the two sides of a hand-off say to each other, as JSON in messages of at most 64 KiB.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::blocks::BlockTicket;
use crate::kv::KvError;
use crate::transport::MAX_MESSAGE_BYTES;
use crate::wire::json;

/// Names a hand-off. Random, and known to its two sides alone: who says it may speak for it.
pub(super) type Id = Uuid;

/// Hand-offs in one heartbeat: some 50 bytes each.
pub(super) const MAX_BEATS: usize = 1000;

/// A message, and the engine that says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Letter {
    pub(super) engine: String,
    pub(super) says: Says,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Says {
    /// Taker: I am still at these, and have so many chunks of each.
    Beats { beats: Vec<(Id, u32)> },
    /// Owner: so I have heard, and hold them for another lease.
    Alive { ids: Vec<Id> },
    /// Taker: I have read all of it. May I use it?
    Done { id: Id },
    /// Owner: you may; I held it until now.
    Ok { id: Id },
    /// Owner: no. It is unknown here, or its lease has ended.
    Late { id: Id },
    /// Taker: I give it up. `generation` tells this abort from an earlier one.
    Abort { id: Id, generation: u32 },
    /// Owner: and nothing of mine touches your memory, nor is anybody at mine.
    Aborted { id: Id, generation: u32 },
    /// Owner: more of it can be read.
    Chunk { id: Id, index: u32, chunk: Chunk },
}

/// Some blocks of a hand-off, or some layers of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chunk {
    /// Which of the hand-off's blocks is its first.
    pub(super) at: u32,
    pub(super) ticket: BlockTicket,
    /// It is the last one, and the model's first token after the prompt, if there is one.
    pub(super) last: Option<Last>,
}

/// What comes with the last chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Last {
    pub(super) first_token: Option<u32>,
}

impl Letter {
    /// # Errors
    /// It is too long: a chunk of more than some 8,000 blocks.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, KvError> {
        let bytes = serde_json::to_vec(self).expect("a letter is made of strings and integers only");
        // The owner of an inbox is named in front.
        let (len, max) = (bytes.len() + 16, MAX_MESSAGE_BYTES);
        if len > max {
            return Err(crate::MetadataError::TooLarge { field: "a hand-off's message", len, max }.into());
        }
        Ok(bytes)
    }

    /// # Errors
    /// It is none.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, KvError> {
        let json::Object(letter) = json::parse::<json::Object<Self>>(bytes, MAX_MESSAGE_BYTES)?;
        Ok(letter)
    }
}
