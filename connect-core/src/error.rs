//! Why things fail: [`Error`], the context it carries, and [`Failed`], which gives target memory back.

use std::fmt;
use std::time::Duration;

use crate::blocks::BlockError;
use crate::memory::MemoryError;
use crate::op::OperationName;
use crate::transport::TransportError;
use crate::wire::MetadataError;

/// Why an operation failed, and what to do about it.
///
/// The first cause is kept, with its source (P6). [`category`](Self::category) says whose side it is on, and
/// [`is_retryable`](Self::is_retryable) whether the same call can succeed later.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The memory handed in can't be used. The message names the remedy.
    #[error("memory refused: {0}")]
    Memory(#[from] MemoryError),
    /// The metadata document is malformed or not for this operation. Nothing was done with its addresses.
    #[error("metadata refused: {0}")]
    Metadata(#[from] MetadataError),
    /// A ticket, card, layout or lease of [`blocks`](crate::blocks) does not fit.
    #[error("blocks refused: {0}")]
    Blocks(#[from] BlockError),
    /// The transport failed. Look at the source: it tells a local shortage from a lost or refusing peer.
    #[error("{context} failed: {source}")]
    Transport {
        /// Which operation.
        context: Box<Context>,
        /// What the transport said.
        source: TransportError,
    },
    /// The deadline passed. The peer may be slow, stopped or gone; for a passive operation it may never
    /// have come. Retry with a longer deadline, or ask the peer for new metadata.
    #[error("{context} missed its deadline of {limit:?}")]
    DeadlineExceeded {
        /// Which operation.
        context: Box<Context>,
        /// The time it was given.
        limit: Duration,
    },
    /// This side cancelled the operation.
    #[error("{context} was cancelled: {outcome}")]
    #[non_exhaustive]
    Cancelled {
        /// Which operation.
        context: Box<Context>,
        /// What the cancel found, and left behind. Never [`Cancellation::EndedBefore`].
        outcome: Cancellation,
    },
    /// The operation was not started: with its memory, more than the limit could end up parked, because peers
    /// that vanished or stopped still hold that of earlier operations. Retry once
    /// [`Stats::parked_bytes`](crate::Stats::parked_bytes) has fallen, end those peers, or raise
    /// [`ConnectorBuilder::parked_limit`](crate::ConnectorBuilder::parked_limit).
    #[error(
        "{bytes} bytes were not taken: {parked} bytes are parked, and the limit is {limit}; retry when peers \
         have let go of them, end those peers, or raise `ConnectorBuilder::parked_limit`"
    )]
    #[non_exhaustive]
    ParkedLimit {
        /// Bytes of the operation that was refused.
        bytes: u64,
        /// Bytes parked when it was refused.
        parked: u64,
        /// The connector's limit.
        limit: u64,
    },
    /// A worker id that can't be used.
    #[error("worker id {id:?} can't be used: {reason}")]
    WorkerId {
        /// The id, shortened.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The transport could not be started on this machine. The source says what is missing.
    #[error("the connector could not be started: {source}")]
    Start {
        /// What the transport said.
        source: TransportError,
    },
    /// The connector is shut down, or its driver thread is gone.
    #[error("the connector is shut down")]
    ShutDown,
}

/// Whose side an [`Error`] is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCategory {
    /// A resource of this process: memory, file descriptors, a missing library.
    Local,
    /// The other side is gone, refused, or ended its offer.
    Peer,
    /// The wire between the two.
    Transport,
    /// A document or message that breaks the protocol.
    Protocol,
    /// Time ran out.
    Deadline,
    /// This side gave up.
    Cancelled,
}

impl fmt::Display for ErrorCategory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Peer => "peer",
            Self::Transport => "transport",
            Self::Protocol => "protocol",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
        })
    }
}

impl Error {
    /// Whose side the failure is on.
    pub fn category(&self) -> ErrorCategory {
        match self {
            Self::Memory(_) | Self::WorkerId { .. } | Self::ParkedLimit { .. } | Self::ShutDown => {
                ErrorCategory::Local
            }
            Self::Metadata(_) => ErrorCategory::Protocol,
            Self::Blocks(error) => error.category(),
            Self::Transport { source, .. } | Self::Start { source } => source.category(),
            Self::DeadlineExceeded { .. } => ErrorCategory::Deadline,
            Self::Cancelled { .. } => ErrorCategory::Cancelled,
        }
    }

    /// Whether the same call, with fresh metadata from the peer where that applies, can succeed later.
    ///
    /// Refused memory and malformed metadata fail the same way again; a missed deadline, a lost peer or a
    /// local shortage need not.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Memory(_)
            | Self::Metadata(_)
            | Self::Cancelled { .. }
            | Self::WorkerId { .. }
            | Self::ShutDown => false,
            Self::DeadlineExceeded { .. } | Self::ParkedLimit { .. } => true,
            Self::Blocks(error) => error.is_retryable(),
            Self::Transport { source, .. } | Self::Start { source } => source.is_retryable(),
        }
    }

    /// Which operation failed; `None` when it was refused before it began.
    pub fn context(&self) -> Option<&Context> {
        match self {
            Self::Transport { context, .. }
            | Self::DeadlineExceeded { context, .. }
            | Self::Cancelled { context, .. } => Some(context),
            _ => None,
        }
    }
}

/// What a cancel found, and left behind.
///
/// ```
/// use connect_core::{Cancellation, Connector};
///
/// let connector = Connector::local()?;
/// let cancelled = connector.create_writable(vec![0u8; 8]).wait()?.cancel().wait();
/// assert_eq!(Cancellation::of(&cancelled), Cancellation::Drained);
/// assert!(cancelled.unwrap_err().memory.returned().is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cancellation {
    /// The transport had not taken the operation yet. Nobody could reach the memory; a target comes back.
    NeverStarted,
    /// The operation was under way, and nothing touches its memory any more. A target comes back; its content
    /// is unspecified.
    Drained,
    /// The operation is under way, and its memory may still be touched. The connector keeps that, counted in
    /// [`Stats::parked_bytes`](crate::Stats::parked_bytes), and frees it when nothing touches it any more.
    Parked,
    /// The operation had ended before, in success or with another error: the result says which.
    EndedBefore,
}

impl Cancellation {
    /// What became of a cancel with this result.
    pub fn of<T, E: AsRef<Error>>(result: &Result<T, E>) -> Self {
        match result.as_ref().map_err(AsRef::as_ref) {
            Err(Error::Cancelled { outcome, .. }) => *outcome,
            _ => Self::EndedBefore,
        }
    }
}

impl fmt::Display for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NeverStarted => "it had not started",
            Self::Drained => "nothing touches its memory any more",
            Self::Parked => "its memory is parked until nothing touches it",
            Self::EndedBefore => "it had ended before",
        })
    }
}

impl AsRef<Error> for Error {
    fn as_ref(&self) -> &Error {
        self
    }
}

impl<M> AsRef<Error> for Failed<M> {
    fn as_ref(&self) -> &Error {
        &self.error
    }
}

/// Which operation failed, on what, and after how long.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Context {
    /// The operation.
    pub operation: OperationName,
    /// Its number within the connector, as the logs name it.
    pub id: u64,
    /// The transport: `local`, `nixl`.
    pub transport: &'static str,
    /// The other side's name, where it is known.
    pub peer: Option<String>,
    /// Bytes it was to move.
    pub bytes: u64,
    /// Time since it was created.
    pub elapsed: Duration,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{} of {} bytes over {}", self.operation, self.id, self.bytes, self.transport)?;
        if let Some(peer) = &self.peer {
            write!(f, " with {peer}")?;
        }
        write!(f, " after {:.3} s", self.elapsed.as_secs_f64())
    }
}

/// A failed operation over targets: the error, and what became of the memory.
///
/// `?` turns it into a plain [`Error`] where the memory does not matter.
pub struct Failed<M> {
    /// Why.
    pub error: Error,
    /// Where the target memory is now.
    pub memory: Recovered<M>,
}

/// Where target memory is after a failure (P1).
#[non_exhaustive]
pub enum Recovered<M> {
    /// Nothing touches it any more. Its content is unspecified: a transfer may have begun.
    Returned(M),
    /// The transport could not prove that a transfer has ended. The connector keeps the memory, counted in
    /// [`Stats::parked_bytes`](crate::Stats::parked_bytes), and frees it when that is proven.
    Parked,
}

impl<M> Recovered<M> {
    /// The memory, if it came back.
    pub fn returned(self) -> Option<M> {
        match self {
            Self::Returned(memory) => Some(memory),
            Self::Parked => None,
        }
    }

    /// Whether the connector still holds it.
    pub fn is_parked(&self) -> bool {
        matches!(self, Self::Parked)
    }

    /// The same with the memory converted.
    pub fn map<N>(self, convert: impl FnOnce(M) -> N) -> Recovered<N> {
        match self {
            Self::Returned(memory) => Recovered::Returned(convert(memory)),
            Self::Parked => Recovered::Parked,
        }
    }
}

impl<M> fmt::Debug for Recovered<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_parked() { "Parked" } else { "Returned" })
    }
}

impl<M> fmt::Debug for Failed<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failed").field("error", &self.error).field("memory", &self.memory).finish()
    }
}

impl<M> fmt::Display for Failed<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)?;
        if self.memory.is_parked() {
            f.write_str(" (its target memory is parked until the transport is quiet)")?;
        }
        Ok(())
    }
}

impl<M> std::error::Error for Failed<M> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}

impl<M> From<Failed<M>> for Error {
    fn from(failed: Failed<M>) -> Self {
        failed.error
    }
}
