//! Why a document from a peer was refused.

use crate::memory::MemoryError;
use crate::{OperationKind, ParseDeviceError};

/// Why a metadata document or tensor envelope was refused. Nothing was done with the addresses in it (P5).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// Not JSON, or JSON of another shape: a field is missing, unknown, or of the wrong type.
    #[error("not a valid document: {0}")]
    Json(String),
    /// The document is larger than any real one.
    #[error("{field} has {len} bytes, more than the limit of {max}")]
    TooLarge {
        /// What is too large.
        field: &'static str,
        /// How large it is, as far as it was read.
        len: usize,
        /// How large it may be.
        max: usize,
    },
    /// A descriptor's device is unknown.
    #[error("descriptor {index}: {source}")]
    Device {
        /// Which descriptor.
        index: usize,
        /// What is wrong with the name.
        source: ParseDeviceError,
    },
    /// A descriptor's range is null, empty or wraps around.
    #[error("descriptor {index}: {source}")]
    Range {
        /// Which descriptor.
        index: usize,
        /// What is wrong with it.
        source: MemoryError,
    },
    /// The descriptors' lengths add up to more than 64 bits can count.
    #[error("the descriptors' sizes add up to 2^64 bytes or more")]
    TotalOverflow,
    /// The document's kind of operation is none.
    #[error("operation_kind {value} is neither 1 (READ) nor 2 (WRITE)")]
    UnknownKind {
        /// The value in the document.
        value: u64,
    },
    /// There are no descriptors.
    #[error("the document has no descriptors")]
    NoDescriptors,
    /// More descriptors than an operation takes.
    #[error("{count} descriptors are more than the limit of {max}")]
    TooManyDescriptors {
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// The notification key is empty or too long.
    #[error("the notification key has {len} bytes; it must have 1 to {max}")]
    NotificationKey {
        /// Its length.
        len: usize,
        /// The longest accepted.
        max: usize,
    },
    /// The blob in `nixl_metadata` is not base64 or hex of a zlib stream.
    #[error("nixl_metadata is not {expected}: {reason}")]
    Encoding {
        /// The layer that failed: `base64`, `hex`, `zlib`.
        expected: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The document offers the other direction: a read needs a readable operation's metadata, a write a
    /// writable one's.
    #[error("this document allows {offered}, but the operation is a {wanted}")]
    WrongKind {
        /// What the document allows.
        offered: OperationKind,
        /// What the operation does.
        wanted: OperationKind,
    },
    /// Local and remote descriptors differ in number.
    #[error("the peer offers {remote} descriptors, but {local} are given here; they must match one to one")]
    CountMismatch {
        /// Descriptors on this side.
        local: usize,
        /// Descriptors in the document.
        remote: usize,
    },
    /// A pair of descriptors differs in length.
    #[error("descriptor {index} has {remote} bytes at the peer, but {local} here; they must be equal")]
    LengthMismatch {
        /// Which pair.
        index: usize,
        /// Bytes on this side.
        local: u64,
        /// Bytes in the document.
        remote: u64,
    },
    /// The envelope's version is not one this library reads.
    #[error("envelope version {found} is not supported (this library reads {supported})")]
    Version {
        /// The version in the document.
        found: u64,
        /// The version this library reads.
        supported: u64,
    },
    /// The envelope contradicts itself or the operation it is used for.
    #[error("tensor {name:?}: {reason}")]
    Tensor {
        /// Which tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A receiver that requires digests got a tensor without one.
    #[error("tensor {name:?} has no digest, and this receiver takes none without")]
    DigestMissing {
        /// Which tensor.
        name: String,
    },
    /// More tensors than an envelope takes.
    #[error("{count} tensors are more than the limit of {max}")]
    TooManyTensors {
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// The envelope has descriptors that belong to none of its tensors.
    #[error("the tensors cover {covered} descriptors, but the document has {count}")]
    DescriptorsLeftOver {
        /// Descriptors that belong to a tensor.
        covered: usize,
        /// Descriptors there are.
        count: usize,
    },
    /// A field's value is none of those it may have.
    #[error("{field}: {reason}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}
