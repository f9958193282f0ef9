//! [`BlockCard`]: what a peer learns of a pool, once.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::layout::Placed;
use super::{BlockLayout, BlockPart, MAX_PARTS, MAX_RANGES};
use crate::Region;
use crate::wire::json::{self, List, Object};
use crate::wire::{MAX_DOCUMENT_BYTES, MetadataError, SerializedDescriptor};

/// Largest card: an agent's blob, and 120 bytes for each of the most parts.
pub const MAX_CARD_BYTES: usize = MAX_DOCUMENT_BYTES;

/// The version this library writes, and the only one it reads.
const VERSION: u64 = 1;

/// Where a pool's blocks are, and how to reach the agent that serves them. Made by [`BlockPool::card`](super::BlockPool::card).
///
/// A value from a peer is checked as far as it can be: its parts lie within its ranges and do not overlap. Over NIXL it
/// is a key to the whole pool: treat it like a password. `Debug` shows neither addresses nor the blob.
#[derive(Clone, PartialEq, Eq)]
pub struct BlockCard {
    id: CardId,
    placed: Placed,
    nixl_metadata: String,
}

/// Names a card: tickets are for one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CardId([u8; 16]);

impl BlockCard {
    pub(super) fn new(placed: &Placed, nixl_metadata: String) -> Self {
        let mut card = Self { id: CardId([0; 16]), placed: placed.clone(), nixl_metadata };
        card.id = CardId::of(&card.to_json());
        card
    }

    #[cfg(test)]
    pub(crate) fn for_tests(layout: BlockLayout, ranges: Vec<Region>, nixl_metadata: String) -> Self {
        Self::new(&Placed::new(layout, ranges).unwrap(), nixl_metadata)
    }

    /// Reads a card.
    ///
    /// # Errors
    /// Anything but a consistent card of at most [`MAX_CARD_BYTES`]; the error names the field.
    pub fn from_json(document: &str) -> Result<Self, MetadataError> {
        let Object(probe) = json::parse::<Object<VersionProbe>>(document.as_bytes(), MAX_CARD_BYTES)?;
        if probe.version != VERSION {
            return Err(MetadataError::Version { found: probe.version, supported: VERSION });
        }
        json::parse::<Object<Raw>>(document.as_bytes(), MAX_CARD_BYTES)?.try_into()
    }

    /// Writes the card.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a card is made of strings and integers only")
    }

    /// What tickets name it by: the first 128 bits of its JSON's BLAKE3 hash.
    pub fn id(&self) -> CardId {
        self.id
    }

    /// How the pool's memory is cut.
    pub fn layout(&self) -> &BlockLayout {
        &self.placed.layout
    }

    /// The agent blob, still encoded.
    pub(super) fn nixl_metadata(&self) -> &str {
        &self.nixl_metadata
    }

    pub(super) fn placed(&self) -> &Placed {
        &self.placed
    }
}

impl CardId {
    fn of(document: &str) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(document.as_bytes()).as_bytes()[..16]);
        Self(id)
    }
}

impl Serialize for BlockCard {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields<'a> {
            version: u64,
            blocks: u32,
            ranges: Vec<SerializedDescriptor>,
            parts: &'a [BlockPart],
            nixl_metadata: &'a str,
        }
        let layout = &self.placed.layout;
        Fields {
            version: VERSION,
            blocks: layout.blocks(),
            ranges: self.placed.ranges().iter().copied().map(SerializedDescriptor::from).collect(),
            parts: layout.parts(),
            nixl_metadata: &self.nixl_metadata,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for BlockCard {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Object::<Raw>::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

#[derive(Deserialize)]
struct VersionProbe {
    #[serde(deserialize_with = "version")]
    version: u64,
}

/// A card as it was read, before its values were looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(deserialize_with = "version")]
    version: u64,
    blocks: u32,
    #[serde(deserialize_with = "ranges")]
    ranges: List<SerializedDescriptor>,
    #[serde(deserialize_with = "parts")]
    parts: List<BlockPart>,
    #[serde(deserialize_with = "nixl_metadata")]
    nixl_metadata: String,
}

impl TryFrom<Object<Raw>> for BlockCard {
    type Error = MetadataError;

    fn try_from(Object(raw): Object<Raw>) -> Result<Self, MetadataError> {
        if raw.version != VERSION {
            return Err(MetadataError::Version { found: raw.version, supported: VERSION });
        }
        for (field, count, max) in
            [("ranges", raw.ranges.count, MAX_RANGES), ("parts", raw.parts.count, MAX_PARTS)]
        {
            if count > max {
                let reason = format!("{count} are more than the limit of {max}");
                return Err(MetadataError::Field { field, reason });
            }
        }
        let (len, max) = (raw.nixl_metadata.len(), MAX_DOCUMENT_BYTES);
        if len > max {
            return Err(MetadataError::TooLarge { field: "nixl_metadata", len, max });
        }
        let ranges: Vec<Region> = raw.ranges.items.iter().map(SerializedDescriptor::region).collect();
        let lengths = ranges.iter().map(Region::len).collect();
        let layout = BlockLayout::new(raw.blocks, raw.parts.items, lengths);
        let placed = layout.and_then(|layout| Placed::new(layout, ranges));
        let refused =
            |error: super::BlockError| MetadataError::Field { field: "parts", reason: error.to_string() };
        Ok(Self::new(&placed.map_err(refused)?, raw.nixl_metadata))
    }
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    json::unsigned(deserializer, "version")
}

fn ranges<'de, D: Deserializer<'de>>(deserializer: D) -> Result<List<SerializedDescriptor>, D::Error> {
    json::list(deserializer, "ranges", MAX_RANGES)
}

fn parts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<List<BlockPart>, D::Error> {
    json::list(deserializer, "parts", MAX_PARTS)
}

fn nixl_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    json::text(deserializer, "nixl_metadata")
}

impl fmt::Debug for BlockCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layout = self.layout();
        f.debug_struct("BlockCard")
            .field("id", &self.id)
            .field("blocks", &layout.blocks())
            .field("block_bytes", &layout.block_bytes())
            .finish_non_exhaustive()
    }
}

/// 32 characters of hex.
impl fmt::Display for CardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for CardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for CardId {
    type Err = MetadataError;

    fn from_str(text: &str) -> Result<Self, MetadataError> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        let reason = || "not 32 digits of lower-case hex".to_owned();
        bytes.map(Self).ok_or_else(|| MetadataError::Field { field: "card", reason: reason() })
    }
}

impl Serialize for CardId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CardId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        json::text(deserializer, "card")?.parse().map_err(serde::de::Error::custom)
    }
}
