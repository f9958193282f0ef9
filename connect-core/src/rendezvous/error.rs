//! Why nothing was put or got: [`RendezvousError`].

use std::time::Duration;

use super::{ChannelError, MAX_KEY_BYTES};
use crate::error::Error;
use crate::wire::MetadataError;
pub(super) use crate::wire::json::quoted;

/// Why nothing was put under a key, or got from there. What fails after the envelope was taken is an error of the
/// operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RendezvousError {
    /// Nobody has put anything in time, or others have taken it.
    #[error(
        "nothing was under {key:?} for {waited:?}; check the key, put more offers, or set a longer deadline"
    )]
    NotThere {
        /// The key.
        key: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The side channel failed.
    #[error("the side channel failed for {key:?}: {source}; try again when it works")]
    Channel {
        /// The key.
        key: String,
        /// What it said.
        source: ChannelError,
    },
    /// What was under the key is no envelope. It is taken away.
    #[error("what was under {key:?} is no envelope: {source}; use keys that nobody else uses")]
    Envelope {
        /// The key.
        key: String,
        /// What is wrong with it.
        source: MetadataError,
    },
    /// A key that can't be used.
    #[error("a key has 1 to {MAX_KEY_BYTES} bytes, and this one {len}")]
    Key {
        /// Its length in bytes.
        len: usize,
    },
    /// Nothing to put: no offers were given.
    #[error("no offers were given; give one for each receiver")]
    NoOffers,
    /// The operation failed, for those who use this as the error of their offers.
    #[error(transparent)]
    Operation(#[from] Error),
}

impl RendezvousError {
    /// Whether the same call can succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotThere { .. } | Self::Channel { .. } => true,
            Self::Operation(error) => error.is_retryable(),
            _ => false,
        }
    }

    pub(super) fn channel(key: &str, source: ChannelError) -> Self {
        Self::Channel { key: quoted(key), source }
    }
}

pub(super) fn check_key(key: &str) -> Result<(), RendezvousError> {
    if (1..=MAX_KEY_BYTES).contains(&key.len()) {
        Ok(())
    } else {
        Err(RendezvousError::Key { len: key.len() })
    }
}
