//! Why a KV cache can't be handed off.

use std::time::Duration;

use crate::blocks::BlockError;
use crate::error::{Error, ErrorCategory};
use crate::transport::TransportError;
use crate::wire::MetadataError;

/// Why a hand-off failed, and whose side it is on. What the caller does then, compute the prompt again or fail the
/// request, is the caller's policy: no block of a failed hand-off is ever used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// The peer's pool holds other caches than this one. Nothing was moved, and no address was looked at.
    #[error("the peer's pool is incompatible: {field} is {theirs} there and {ours} here")]
    Incompatible {
        /// What differs.
        field: String,
        /// Its value here.
        ours: String,
        /// Its value there.
        theirs: String,
    },
    /// A card, ticket or message that is damaged or hostile.
    #[error("refused: {0}")]
    Malformed(#[from] MetadataError),
    /// Blocks that are not there, or do not fit. A stale card is one of these: ask the peer for its card again.
    #[error("{0}")]
    Blocks(#[from] BlockError),
    /// A ticket of an engine whose card was never given to [`HandOff::meet`](super::HandOff::meet), or that has
    /// restarted since (P4).
    #[error("engine {engine} is unknown here; exchange cards first")]
    UnknownEngine {
        /// Its name.
        engine: String,
    },
    /// The owner has given the blocks up, or this side has not heard of the owner for a whole lease. What was read may be
    /// another request's by now, and is not used.
    #[error("the lease of {request} ended: {reason}")]
    LeaseExpired {
        /// What the ticket calls it.
        request: String,
        /// Who found out, and how.
        reason: &'static str,
    },
    /// The other side gave the request up.
    #[error("the other side gave {request} up")]
    Aborted {
        /// What the ticket calls it.
        request: String,
    },
    /// Nothing came within the deadline.
    #[error("{request} missed its deadline of {limit:?}")]
    DeadlineExceeded {
        /// What the ticket calls it.
        request: String,
        /// The time it was given.
        limit: Duration,
    },
    /// Moving the bytes failed.
    #[error(transparent)]
    Transfer(#[from] Error),
    /// The hand-off's thread has ended.
    #[error("the hand-off is shut down")]
    ShutDown,
}

impl KvError {
    /// Whose side the failure is on.
    pub fn category(&self) -> ErrorCategory {
        match self {
            Self::Incompatible { .. } | Self::Malformed(_) => ErrorCategory::Protocol,
            Self::Blocks(error) => error.category(),
            Self::UnknownEngine { .. } | Self::LeaseExpired { .. } | Self::Aborted { .. } => {
                ErrorCategory::Peer
            }
            Self::DeadlineExceeded { .. } => ErrorCategory::Deadline,
            Self::Transfer(error) => error.category(),
            Self::ShutDown => ErrorCategory::Local,
        }
    }

    /// Whether another hand-off of the same request, with a fresh ticket and card, can succeed.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Incompatible { .. } | Self::Malformed(_) | Self::Aborted { .. } | Self::ShutDown => false,
            Self::Blocks(error) => error.is_retryable(),
            Self::UnknownEngine { .. } | Self::LeaseExpired { .. } | Self::DeadlineExceeded { .. } => true,
            // An offer that is gone is a lease that ended.
            Self::Transfer(Error::Transport { source: TransportError::Refused(_), .. }) => true,
            Self::Transfer(error) => error.is_retryable(),
        }
    }
}
