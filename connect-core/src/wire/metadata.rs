//! [`RdmaMetadata`]: the document by which a peer reaches what an operation offers.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use super::blob::{self, MAX_BLOB_BYTES};
use super::descriptor::{RawDescriptor, SerializedDescriptor};
use super::json::{self, List, Object};
use super::{MetadataError, OperationKind};
use crate::memory::MAX_DESCRIPTORS;
use crate::memory::Region;

/// Largest document.
///
/// At the most descriptors these take 5 MB, the agent's blob 3 MB (44 bytes for each region), and twice
/// that in hex. What is larger was not written by a peer.
pub const MAX_DOCUMENT_BYTES: usize = 16 << 20;

/// Longest notification key. Peers write a UUID of 36 characters; some append to it.
pub const MAX_NOTIFICATION_KEY_BYTES: usize = 64 << 10;

/// What the passive side of a transfer hands to its peer, over any channel: where the memory is, how to
/// reach the agent that serves it, and the key to report completion with.
///
/// On the wire this is exactly the model of the Python original, in both directions. A value is always
/// valid: it has 1 to [`MAX_DESCRIPTORS`] descriptors, none of them null, empty or wrapping around, and a
/// notification key. What a value does not vouch for is the agent blob; [`decode_blob`](Self::decode_blob)
/// checks its encoding, and the transport its content.
///
/// Whoever holds a document can reach the memory it describes, so treat it like a password: `Debug` shows
/// neither addresses, nor the blob, nor the key. Take it from an authenticated channel only.
///
/// ```
/// use connect_core::wire::RdmaMetadata;
/// use connect_core::{Device, OperationKind, Region};
///
/// let region = Region::new(Device::CPU, 0x1000, 48)?;
/// let offer = RdmaMetadata::new(OperationKind::Read, &[region], b"agent", "a key".to_owned())?;
/// let received = RdmaMetadata::from_json(&offer.to_json())?;
/// assert_eq!(received, offer);
/// assert_eq!(received.decode_blob()?, b"agent");
/// received.check_against(OperationKind::Read, &[region])?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
// The fields are in the order in which the original writes them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Object<RawMetadata>")]
pub struct RdmaMetadata {
    descriptors: Vec<SerializedDescriptor>,
    nixl_metadata: String,
    notification_key: String,
    operation_kind: OperationKind,
}

impl RdmaMetadata {
    /// A document that offers `regions`, reachable through the agent described by `blob`, to be read or to
    /// be written. Whoever completes the transfer reports it by `notification_key`.
    ///
    /// # Errors
    /// No regions or more than [`MAX_DESCRIPTORS`], a blob of more than [`MAX_BLOB_BYTES`], or a key that is
    /// empty or longer than [`MAX_NOTIFICATION_KEY_BYTES`]: no peer would take such a document.
    pub fn new(
        kind: OperationKind,
        regions: &[Region],
        blob: &[u8],
        notification_key: String,
    ) -> Result<Self, MetadataError> {
        Self::with_encoded_blob(kind, regions, encode_blob(blob)?, notification_key)
    }

    /// The same with a blob that [`encode_blob`] has encoded.
    pub(crate) fn with_encoded_blob(
        kind: OperationKind,
        regions: &[Region],
        nixl_metadata: String,
        notification_key: String,
    ) -> Result<Self, MetadataError> {
        // Before the list is built, so that a list too long is not copied either.
        check_count(regions.len())?;
        let descriptors = regions.iter().copied().map(SerializedDescriptor::from).collect();
        Self::checked(kind, descriptors, nixl_metadata, notification_key)
    }

    /// Reads a document.
    ///
    /// # Errors
    /// Anything but a valid document of at most [`MAX_DOCUMENT_BYTES`]: the error names the field, and the
    /// descriptor by its index. Ask the peer for its version; the same document will not pass later.
    pub fn from_json(document: &str) -> Result<Self, MetadataError> {
        Self::from_slice(document.as_bytes())
    }

    /// Reads a document from bytes.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json), and also bytes that are not UTF-8.
    pub fn from_slice(document: &[u8]) -> Result<Self, MetadataError> {
        json::parse::<Object<RawMetadata>>(document, MAX_DOCUMENT_BYTES)?.try_into()
    }

    /// Writes the document, byte for byte as the Python original's `model_dump_json` does.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a document is made of strings and integers only")
    }

    /// The same document with the agent blob in hex, as peers from before the `b64:` prefix need it.
    ///
    /// # Errors
    /// The blob of a document from a peer is not what it claims to be, or in hex it is too large.
    pub fn with_hex_encoding(mut self) -> Result<Self, MetadataError> {
        self.nixl_metadata = blob::to_hex(&self.nixl_metadata)?;
        check_encoded(&self.nixl_metadata)?;
        Ok(self)
    }

    /// Whether the memory may be read or written.
    pub fn kind(&self) -> OperationKind {
        self.operation_kind
    }

    /// What the active side sends, exactly, once it is done.
    pub fn notification_key(&self) -> &str {
        &self.notification_key
    }

    /// The memory on offer, in the order in which the other side's descriptors are matched to it.
    pub fn descriptors(&self) -> &[SerializedDescriptor] {
        &self.descriptors
    }

    /// The memory on offer, as regions.
    pub fn regions(&self) -> Vec<Region> {
        self.descriptors.iter().map(SerializedDescriptor::region).collect()
    }

    /// The agent blob, still encoded.
    pub fn nixl_metadata(&self) -> &str {
        &self.nixl_metadata
    }

    /// Bytes on offer, over all descriptors.
    pub fn total_bytes(&self) -> u64 {
        // A value is only made of descriptors whose sum fits.
        self.descriptors.iter().map(SerializedDescriptor::size).sum()
    }

    /// The agent blob, decoded and inflated. At most [`MAX_BLOB_BYTES`] are, whatever the document says.
    ///
    /// # Errors
    /// It is not strict base64 (or, without the `b64:` prefix, hex) of exactly one zlib stream, or it is too
    /// large.
    pub fn decode_blob(&self) -> Result<Vec<u8>, MetadataError> {
        blob::decode(&self.nixl_metadata)
    }

    /// Checks that an operation over `local` memory fits this document: the direction is the one offered,
    /// and the descriptors match one to one in number and length. Where the memory is, on either side, is for the
    /// transport to say.
    ///
    /// # Errors
    /// [`WrongKind`](MetadataError::WrongKind), [`CountMismatch`](MetadataError::CountMismatch) or
    /// [`LengthMismatch`](MetadataError::LengthMismatch).
    pub fn check_against(&self, wanted: OperationKind, local: &[Region]) -> Result<(), MetadataError> {
        if self.operation_kind != wanted {
            return Err(MetadataError::WrongKind { offered: self.operation_kind, wanted });
        }
        if self.descriptors.len() != local.len() {
            return Err(MetadataError::CountMismatch { local: local.len(), remote: self.descriptors.len() });
        }
        for (index, (remote, local)) in self.descriptors.iter().zip(local).enumerate() {
            if remote.size() != local.len() {
                return Err(MetadataError::LengthMismatch {
                    index,
                    local: local.len(),
                    remote: remote.size(),
                });
            }
        }
        Ok(())
    }

    /// The one way to a value: every rule that is not a single descriptor's own.
    pub(super) fn checked(
        operation_kind: OperationKind,
        descriptors: Vec<SerializedDescriptor>,
        nixl_metadata: String,
        notification_key: String,
    ) -> Result<Self, MetadataError> {
        check_count(descriptors.len())?;
        let total = descriptors.iter().try_fold(0u64, |sum, descriptor| sum.checked_add(descriptor.size()));
        if total.is_none() {
            return Err(MetadataError::TotalOverflow);
        }
        check_encoded(&nixl_metadata)?;
        let (len, max) = (notification_key.len(), MAX_NOTIFICATION_KEY_BYTES);
        if len == 0 || len > max {
            return Err(MetadataError::NotificationKey { len, max });
        }
        Ok(Self { descriptors, nixl_metadata, notification_key, operation_kind })
    }
}

/// An agent blob as documents carry it.
pub(crate) fn encode_blob(blob: &[u8]) -> Result<String, MetadataError> {
    let (len, max) = (blob.len(), MAX_BLOB_BYTES);
    if len > max {
        return Err(MetadataError::TooLarge { field: "the agent blob", len, max });
    }
    Ok(blob::encode(blob))
}

fn check_count(count: usize) -> Result<(), MetadataError> {
    match count {
        0 => Err(MetadataError::NoDescriptors),
        1..=MAX_DESCRIPTORS => Ok(()),
        _ => Err(MetadataError::TooManyDescriptors { count, max: MAX_DESCRIPTORS }),
    }
}

/// Documents also arrive inside others, where [`MAX_DOCUMENT_BYTES`] was not checked.
fn check_encoded(nixl_metadata: &str) -> Result<(), MetadataError> {
    let (len, max) = (nixl_metadata.len(), MAX_DOCUMENT_BYTES);
    if len > max {
        return Err(MetadataError::TooLarge { field: "nixl_metadata", len, max });
    }
    Ok(())
}

impl fmt::Debug for RdmaMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RdmaMetadata")
            .field("operation_kind", &self.operation_kind)
            .field("descriptors", &self.descriptors.len())
            .field("total_bytes", &self.total_bytes())
            .field("nixl_metadata", &format_args!("[{} bytes]", self.nixl_metadata.len()))
            .field("notification_key", &format_args!("[{} bytes]", self.notification_key.len()))
            .finish()
    }
}

/// A document as it was read, before its values were looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMetadata {
    #[serde(deserialize_with = "descriptors")]
    descriptors: List<Object<RawDescriptor>>,
    #[serde(deserialize_with = "nixl_metadata")]
    nixl_metadata: String,
    #[serde(deserialize_with = "notification_key")]
    notification_key: String,
    #[serde(deserialize_with = "operation_kind")]
    operation_kind: u64,
}

impl TryFrom<Object<RawMetadata>> for RdmaMetadata {
    type Error = MetadataError;

    fn try_from(Object(raw): Object<RawMetadata>) -> Result<Self, MetadataError> {
        let value = raw.operation_kind;
        let kind = OperationKind::from_value(value).ok_or(MetadataError::UnknownKind { value })?;
        check_count(raw.descriptors.count)?;
        let numbered = raw.descriptors.items.into_iter().enumerate();
        let descriptors = numbered.map(|(index, Object(raw))| raw.check(index)).collect::<Result<_, _>>()?;
        Self::checked(kind, descriptors, raw.nixl_metadata, raw.notification_key)
    }
}

fn descriptors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<List<Object<RawDescriptor>>, D::Error> {
    json::list(deserializer, "descriptors", MAX_DESCRIPTORS)
}

fn nixl_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    json::text(deserializer, "nixl_metadata")
}

fn notification_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    json::text(deserializer, "notification_key")
}

fn operation_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    json::unsigned(deserializer, "operation_kind")
}

#[cfg(test)]
mod tests;
