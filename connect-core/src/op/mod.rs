//! The four operations: their vocabulary here, their handles and their state machine in the modules below.

mod active;
mod fan_out;
mod passive;
pub(crate) mod pending;
pub(crate) mod slot;
pub(crate) mod state;

use std::fmt;
use std::time::Duration;

pub use active::{ReadOperation, WriteOperation};
pub use fan_out::{All, FanOut};
pub use passive::{ReadableOperation, WritableOperation};
pub use pending::{Completion, Pending};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What the passive side of a transfer allows: to be read, or to be written.
///
/// The values are those of the Python original, and what `operation_kind` holds on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum OperationKind {
    /// A peer reads the memory.
    Read = 1,
    /// A peer writes the memory.
    Write = 2,
}

impl OperationKind {
    /// The kind with this value on the wire.
    pub const fn from_value(value: u64) -> Option<Self> {
        match value {
            1 => Some(Self::Read),
            2 => Some(Self::Write),
            _ => None,
        }
    }
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "READ",
            Self::Write => "WRITE",
        })
    }
}

impl Serialize for OperationKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(*self as u8)
    }
}

impl<'de> Deserialize<'de> for OperationKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = u64::deserialize(deserializer)?;
        Self::from_value(value).ok_or_else(|| {
            serde::de::Error::custom(format_args!("operation_kind {value} is neither 1 (READ) nor 2 (WRITE)"))
        })
    }
}

/// How far an operation is. Values, names and meaning are those of the Python original.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OperationStatus {
    /// Created, but the transport does not know it yet.
    Uninitialized = 0,
    /// A passive operation waits for its peer; an active one is posted.
    Initialized = 1,
    /// Bytes are moving.
    InProgress = 2,
    /// Every byte arrived. Final.
    Complete = 3,
    /// This side gave up. Final.
    Cancelled = 4,
    /// It failed. Final.
    Errored = 5,
}

impl OperationStatus {
    /// Whether the status will never change again.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Complete | Self::Cancelled | Self::Errored)
    }
}

impl fmt::Display for OperationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uninitialized => "UNINITIALIZED",
            Self::Initialized => "INITIALIZED",
            Self::InProgress => "IN_PROGRESS",
            Self::Complete => "COMPLETE",
            Self::Cancelled => "CANCELLED",
            Self::Errored => "ERRORED",
        })
    }
}

/// Which of the four operations, or one of the requests that move nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OperationName {
    /// Memory a peer may read.
    Readable,
    /// Memory a peer may write.
    Writable,
    /// Reads a peer's readable memory.
    Read,
    /// Writes a peer's writable memory.
    Write,
    /// Gets to know a peer.
    Connect,
    /// Registers memory for many operations.
    Register,
    /// Describes registered memory to peers.
    Describe,
    /// Sends a peer a message.
    Notify,
    /// Waits for a slot of a slab.
    Take,
    /// Waits for work on an accelerator's thread.
    Prepare,
    /// Ends the connector.
    ShutDown,
}

impl OperationName {
    /// Whether bytes come into this side's memory.
    pub(crate) const fn is_incoming(self) -> bool {
        matches!(self, Self::Read | Self::Writable)
    }

    /// The direction of the bytes.
    pub(crate) const fn kind(self) -> OperationKind {
        match self {
            Self::Writable | Self::Write => OperationKind::Write,
            Self::Readable | Self::Read => OperationKind::Read,
            // These move nothing.
            Self::Connect
            | Self::Register
            | Self::Describe
            | Self::Notify
            | Self::Take
            | Self::Prepare
            | Self::ShutDown => OperationKind::Read,
        }
    }
}

impl fmt::Display for OperationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Readable => "readable",
            Self::Writable => "writable",
            Self::Read => "read",
            Self::Write => "write",
            Self::Connect => "connect",
            Self::Register => "register",
            Self::Describe => "describe",
            Self::Notify => "notify",
            Self::Take => "take",
            Self::Prepare => "prepare",
            Self::ShutDown => "shutdown",
        })
    }
}

/// What a completed operation did, and how long each part of it took.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Bytes moved.
    pub bytes: u64,
    /// Descriptors they were moved in.
    pub descriptors: usize,
    /// The other side's name. A passive operation learns it with the notification.
    pub peer: Option<String>,
    /// The engine that moved the bytes: `local`, or for NIXL its backend, `UCX`.
    pub backend: String,
    /// From the call to the moment the driver thread took it up.
    pub queued: Duration,
    /// From there until it was posted (active) or offered (passive): registration, connection, preparation.
    pub posting: Duration,
    /// From there until completion: for an active operation the transfer itself.
    pub transfer: Duration,
    /// All of it.
    pub total: Duration,
}

impl Report {
    /// Bytes per second of the transfer part, in units of 10^9.
    pub fn gigabytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.transfer.as_secs_f64().max(1e-9) / 1e9
    }
}

/// What a completed operation over targets gives back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received<M> {
    /// The memory, filled.
    pub memory: M,
    /// What was moved, and how long it took.
    pub report: Report,
}
