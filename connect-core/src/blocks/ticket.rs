//! [`BlockTicket`]: what a peer needs for one transfer of blocks.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Deserializer, Serialize};

use super::CardId;
use crate::OperationKind;
use crate::memory::MAX_DESCRIPTORS;
use crate::wire::json::{self, List, Object};
use crate::wire::{MAX_NOTIFICATION_KEY_BYTES, MetadataError};

/// Largest ticket: the most blocks of eight digits each, and the longest key.
pub const MAX_TICKET_BYTES: usize = 1 << 20;

/// Blocks on offer, by number, and the key to them. Made by [`BlockPool::offer_readable`](super::BlockPool::offer_readable)
/// and [`offer_writable`](super::BlockPool::offer_writable).
///
/// Worth nothing without the [card](super::BlockCard) it is for. Whoever has both can reach the blocks.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Object<Raw>")]
pub struct BlockTicket {
    card: CardId,
    operation_kind: OperationKind,
    blocks: Vec<u32>,
    parts: (u32, u32),
    notification_key: String,
}

impl BlockTicket {
    pub(super) fn new(
        card: CardId,
        operation_kind: OperationKind,
        blocks: Vec<u32>,
        parts: Range<u32>,
        notification_key: String,
    ) -> Self {
        Self { card, operation_kind, blocks, parts: (parts.start, parts.end), notification_key }
    }

    #[cfg(test)]
    pub(crate) fn for_tests(card: CardId, blocks: Vec<u32>, parts: Range<u32>, key: String) -> Self {
        Self::new(card, OperationKind::Read, blocks, parts, key)
    }

    /// Reads a ticket.
    ///
    /// # Errors
    /// Anything but a ticket of at most [`MAX_TICKET_BYTES`]; the error names the field.
    pub fn from_json(document: &str) -> Result<Self, MetadataError> {
        json::parse::<Object<Raw>>(document.as_bytes(), MAX_TICKET_BYTES)?.try_into()
    }

    /// Writes the ticket.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a ticket is made of strings and integers only")
    }

    /// The card it is for.
    pub fn card(&self) -> CardId {
        self.card
    }

    /// Whether the blocks may be read or written.
    pub fn kind(&self) -> OperationKind {
        self.operation_kind
    }

    /// The blocks' numbers in the pool of who offers them.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Which parts of each block.
    pub fn parts(&self) -> Range<u32> {
        self.parts.0..self.parts.1
    }

    /// The same offer, of which only these blocks are to be read: who has the first ones already leaves them out. The
    /// offer completes with the rest. `None` if there are no such places, or none are left.
    pub fn select_blocks(&self, places: Range<usize>) -> Option<Self> {
        let blocks = self.blocks.get(places).filter(|blocks| !blocks.is_empty())?.to_vec();
        Some(Self { blocks, ..self.clone() })
    }

    pub(super) fn notification_key(&self) -> &str {
        &self.notification_key
    }
}

/// A ticket as it was read, before its values were looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    card: CardId,
    operation_kind: OperationKind,
    #[serde(deserialize_with = "blocks")]
    blocks: List<u32>,
    parts: (u32, u32),
    #[serde(deserialize_with = "notification_key")]
    notification_key: String,
}

impl TryFrom<Object<Raw>> for BlockTicket {
    type Error = MetadataError;

    fn try_from(Object(raw): Object<Raw>) -> Result<Self, MetadataError> {
        let refused = |field, reason: String| Err(MetadataError::Field { field, reason });
        match raw.blocks.count {
            0 => return refused("blocks", "there are none".to_owned()),
            1..=MAX_DESCRIPTORS => {}
            count => {
                return refused("blocks", format!("{count} are more than the limit of {MAX_DESCRIPTORS}"));
            }
        }
        if raw.parts.0 >= raw.parts.1 {
            return refused("parts", format!("{} to {} are none", raw.parts.0, raw.parts.1));
        }
        let (len, max) = (raw.notification_key.len(), MAX_NOTIFICATION_KEY_BYTES);
        if len == 0 || len > max {
            return Err(MetadataError::NotificationKey { len, max });
        }
        let Raw { card, operation_kind, blocks, parts, notification_key } = raw;
        Ok(Self { card, operation_kind, blocks: blocks.items, parts, notification_key })
    }
}

fn blocks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<List<u32>, D::Error> {
    json::list(deserializer, "blocks", MAX_DESCRIPTORS)
}

fn notification_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    json::text(deserializer, "notification_key")
}

impl fmt::Debug for BlockTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockTicket")
            .field("card", &self.card)
            .field("operation_kind", &self.operation_kind)
            .field("blocks", &self.blocks.len())
            .field("parts", &self.parts)
            .field("notification_key", &format_args!("[{} bytes]", self.notification_key.len()))
            .finish()
    }
}
