//! What can go wrong: [`CheckpointError`].

use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::rendezvous::RendezvousError;
use crate::wire::{DigestMismatch, MetadataError};

/// Why a checkpoint can't be served or received. Each message names the file or the tensor, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The system refused.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no safetensors file, or a damaged one.
    #[error("{path} is not a whole safetensors file: {reason}; fetch it again", path = path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The index of a checkpoint of several files is damaged, or does not fit its files.
    #[error("{path} is not an index of these files: {reason}; fetch it again with its files", path = path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another program is at the file: one that writes to what is to be served, or any to what is to be received.
    /// Wait for it.
    #[error("{path} is locked by another program or download; wait for it to end", path = path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file is not what it was when it was opened. Open it again.
    #[error("{path} was changed since it was opened: {reason}; open it again, and write new files beside old ones", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What changed.
        reason: String,
    },
    /// There is no tensor of this name.
    #[error("the checkpoint has no tensor {name:?}; its manifest lists them")]
    NoTensor {
        /// The name.
        name: String,
    },
    /// What a peer offers under this name is not what the manifest says. Nothing was transferred.
    #[error("tensor {name:?} is not the one of the manifest: {reason}; ask for a new manifest")]
    Mismatch {
        /// The tensor.
        name: String,
        /// What differs.
        reason: String,
    },
    /// An earlier receive of this tensor is under way, or its memory is not quiet yet. Wait for it.
    #[error("tensor {name:?} is being received already; wait for that to end")]
    Busy {
        /// The tensor.
        name: String,
    },
    /// The download is not complete. [`Download::missing`](super::Download::missing) says what to ask for.
    #[error("{count} tensors have not arrived yet, {first:?} among them; receive what `missing` lists")]
    Incomplete {
        /// How many.
        count: usize,
        /// One of them.
        first: String,
    },
    /// The manifest is malformed.
    #[error("manifest refused: {reason}; ask the peer for it again")]
    Manifest {
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor arrived that is not what was sent. Have it sent again.
    #[error(transparent)]
    Digest(#[from] DigestMismatch),
    /// The tensors make no valid envelope: one name twice, say.
    #[error("envelope refused: {0}")]
    Envelope(#[from] MetadataError),
    /// Nothing could be put under a key, or got from there.
    #[error(transparent)]
    Rendezvous(#[from] RendezvousError),
    /// The operation failed.
    #[error(transparent)]
    Operation(#[from] Error),
}

impl CheckpointError {
    /// Whether the same call can succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Locked { .. } | Self::Busy { .. } => true,
            Self::Rendezvous(error) => error.is_retryable(),
            Self::Operation(error) => error.is_retryable(),
            _ => false,
        }
    }

    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
