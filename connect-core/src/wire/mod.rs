//! The documents that travel over the user's side channel, and their bounded codecs.
//!
//! A document is input from somebody else. Each reader here checks the length before it parses, bounds
//! every list and everything that is inflated, takes no number for another, and refuses what it does not
//! know by name; what it returns is valid, and stays so (P5). Whether the agent inside is the right one is
//! for the transport to find out.

pub(crate) mod blob;
mod descriptor;
mod digest;
mod envelope;
mod error;
mod extra;
#[cfg(test)]
mod golden;
pub(crate) mod json;
mod media;
mod metadata;
mod mm_kwargs;
mod tensor;
mod transfer_spec;

pub use crate::memory::MAX_DESCRIPTORS;
pub use blob::MAX_BLOB_BYTES;
pub use descriptor::SerializedDescriptor;
pub use digest::{Digest, DigestMismatch};
pub use envelope::{ENVELOPE_VERSION, MAX_ENVELOPE_BYTES, MAX_TENSORS, TensorEnvelope};
pub use error::MetadataError;
#[cfg(feature = "safetensors")]
pub(crate) use json::{parse, quoted};
pub use media::{MEDIA_TENSOR_NAME, MediaDescriptor};
pub(crate) use metadata::encode_blob;
pub use metadata::{MAX_DOCUMENT_BYTES, MAX_NOTIFICATION_KEY_BYTES, RdmaMetadata};
pub use mm_kwargs::{MM_KWARGS_ITEM_NAME, MmKwargsTransfer};
pub use tensor::{MAX_DIMS, MAX_TENSOR_NAME_BYTES, TensorSpec};
pub use transfer_spec::EMBEDDINGS_TENSOR_NAME;

use crate::op::OperationKind;
