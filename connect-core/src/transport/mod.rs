//! What the driver asks of a transport: the [`Transport`] trait and its vocabulary.
//!
//! A transport lives on one thread, the connector's driver thread: it is built there, called there and
//! dropped there, and need not be `Send`. No call may block for longer than one slice of a copy takes; a
//! transfer that needs more returns [`TransferState::Pending`] and goes on at the next
//! [`poll`](Transport::poll).
//!
//! The trait is not stable yet: it may change in any release until a transport outside this crate needs it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::error::ErrorCategory;
use crate::stats::Counters;
use crate::{Device, OperationKind, Region};

pub(crate) mod closed;
pub mod fault;
pub mod local;
#[cfg(feature = "nixl")]
pub mod nixl;

/// Moves bytes between this process and its peers, and carries notifications.
///
/// # Safety
/// What a transport says about memory must be true, because memory is handed out and freed on its word:
/// * after [`TransferState::Complete`] of a read every byte of the local regions has been written, and
///   likewise after the notification of a writable offer that this transport itself wrote;
/// * after [`Quiescence::Quiet`] neither the transport nor a peer through it touches the regions again.
pub unsafe trait Transport {
    /// A short lower-case name: `local`, `nixl`.
    fn name(&self) -> &'static str;

    /// The engine underneath, where there is a choice: `UCX` for NIXL.
    fn backend(&self) -> &str {
        self.name()
    }

    /// Whether memory on `device` can be reached at all.
    fn check_device(&self, device: Device) -> Result<(), TransportError>;

    /// Gets ready for operations over parts of `region`, so that they need not get ready each for itself. This by
    /// itself makes nothing reachable. A transport that registers nothing has nothing to do.
    ///
    /// # Safety
    /// From this call until [`deregister`](Self::deregister) says [`Quiescence::Quiet`], or the transport is dropped,
    /// the region must be memory that can be read and written, at this address. What of it is touched, and when, is
    /// still said by `offer` and `begin` alone.
    unsafe fn register(&mut self, id: RegistrationId, region: Region) -> Result<(), TransportError> {
        let _ = (id, region);
        Ok(())
    }

    /// Ends a registration over which no operation is left. `Busy` means that a peer may still reach its memory;
    /// call again later. After `Quiet`, and if there is none of that id, it is forgotten.
    fn deregister(&mut self, id: RegistrationId) -> Quiescence {
        let _ = id;
        Quiescence::Quiet
    }

    /// The blob that leads a peer to memory that is registered: what [`offer`](Self::offer) returns for parts of it, as
    /// long as nothing changes in between. An engine whose blobs are keys makes the memory reachable by this.
    ///
    /// # Errors
    /// Unless implemented: this transport describes nothing but offers.
    fn describe(&mut self, regions: &[Region]) -> Result<Vec<u8>, TransportError> {
        let _ = regions;
        Err(TransportError::Unavailable(format!("{} describes nothing but offers", self.name())))
    }

    /// Makes `regions` reachable for the holder of `key`, and returns the blob that tells a peer how to get
    /// here (it becomes `nixl_metadata`).
    ///
    /// # Safety
    /// From this call until [`end_offer`](Self::end_offer) or [`offer_is_quiet`](Self::offer_is_quiet) says
    /// [`Quiescence::Quiet`], or the transport is dropped, the regions must be memory as
    /// [`SourceMemory`](crate::SourceMemory) (for `Read`) or [`TargetMemory`](crate::TargetMemory) (for
    /// `Write`) demands.
    unsafe fn offer(&mut self, offer: &Offer<'_>) -> Result<(OfferId, Vec<u8>), TransportError>;

    /// Ends an offer. `completed` says that its notification has come, after which the peer is done with
    /// the memory.
    fn end_offer(&mut self, id: OfferId, completed: bool) -> Quiescence;

    /// Asks again about an offer whose end was [`Quiescence::Busy`]. After `Quiet` the id is forgotten.
    fn offer_is_quiet(&mut self, id: OfferId) -> Quiescence;

    /// Learns of the peer that made `blob`, and returns a handle and its name. Loading the same blob again
    /// is cheap. Must refuse a damaged or foreign blob before any address in it is used.
    fn connect(&mut self, blob: &[u8]) -> Result<(PeerId, String), TransportError>;

    /// Sends a peer a message of at most [`MAX_MESSAGE_BYTES`], which arrives there as [`TransportEvent::Message`], once
    /// or, if the peer is gone or slow, not at all. It completes no operation, whatever it says.
    ///
    /// # Errors
    /// Unless implemented: this transport carries no messages.
    fn notify(&mut self, peer: PeerId, message: &[u8]) -> Result<(), TransportError> {
        let _ = (peer, message);
        Err(TransportError::Unavailable(format!("{} carries no messages", self.name())))
    }

    /// Forgets a peer that no new transfer will name. Transfers in flight with it go on.
    fn forget(&mut self, peer: PeerId);

    /// Prepares a transfer. The first slice may be posted here or by the first [`poll`](Self::poll).
    ///
    /// # Safety
    /// From this call until [`release`](Self::release) says [`Quiescence::Quiet`], or the transport is
    /// dropped with no transfer in flight, the local regions must be memory as
    /// [`TargetMemory`](crate::TargetMemory) (for `Read`) or [`SourceMemory`](crate::SourceMemory) (for
    /// `Write`) demands.
    unsafe fn begin(&mut self, transfer: &Transfer<'_>) -> Result<TransferId, TransportError>;

    /// Moves a transfer on. After an error or [`TransferState::Complete`] nothing more happens to it.
    fn poll(&mut self, id: TransferId) -> Result<TransferState, TransportError>;

    /// Ends a transfer in whatever state it is. `Busy` means that its memory may still be touched; call
    /// again later. After `Quiet` the id is forgotten.
    fn release(&mut self, id: TransferId) -> Quiescence;

    /// Whether a transfer may still move bytes in a way that dropping the transport would not end.
    fn has_transfers_in_flight(&self) -> bool;

    /// How long memory of offers that are not known to be quiet must be kept after the transport was dropped: the
    /// time in which a peer may not have heard of its end.
    fn linger(&self) -> Duration {
        Duration::ZERO
    }

    /// Drives whatever is not a transfer of ours (incoming requests, notifications) and appends what
    /// happened to `events`. Returns whether there was anything to do.
    fn progress(&mut self, events: &mut Vec<TransportEvent>) -> bool;

    /// Sleeps until something may have happened, the waker is called, or `timeout` passes.
    fn wait(&mut self, timeout: Option<Duration>);

    /// Ends a [`wait`](Self::wait) from another thread. A call before the wait ends the next one.
    fn waker(&self) -> Arc<dyn Fn() + Send + Sync>;

    /// Whether [`wait`](Self::wait) returns by itself when a peer does something. If not, the driver polls.
    fn is_event_driven(&self) -> bool;
}

/// Builds a transport on the driver thread that will own it.
pub type TransportFactory =
    Box<dyn FnOnce(&TransportContext) -> Result<Box<dyn Transport>, TransportError> + Send>;

/// Longest message from one peer to another.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// Characters of an incarnation: 48 random bits, so that two incarnations of one name never meet.
pub(crate) const INCARNATION_LEN: usize = 12;

/// What a transport is told about its connector.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TransportContext {
    /// The worker's name, chosen by the user or random.
    pub worker_id: String,
    /// Sets this incarnation of the worker apart from earlier ones of the same name (P4).
    pub incarnation: String,
    /// Workers to talk to; `None` means all.
    pub allowed_workers: Option<Vec<String>>,
    /// What the connector counts.
    #[cfg_attr(not(feature = "nixl"), expect(dead_code, reason = "`local` has nothing to count"))]
    pub(crate) counters: Arc<Counters>,
}

impl TransportContext {
    /// Whether a peer whose agent or worker is called `name` may be talked to: it is one of the allowed
    /// workers, or the name of an agent of one of them.
    ///
    /// An agent is called after its worker, with a number behind it (the original), or an incarnation and perhaps
    /// an `r` and a number (this library).
    pub fn allows(&self, name: &str) -> bool {
        let is_number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        let is_incarnation = |s: &str| s.len() == INCARNATION_LEN && s.bytes().all(|b| b.is_ascii_hexdigit());
        let is_suffix = |suffix: &str| match suffix.split_once('-') {
            Some((incarnation, number)) => {
                is_incarnation(incarnation) && number.strip_prefix('r').is_some_and(is_number)
            }
            None => is_number(suffix) || is_incarnation(suffix),
        };
        self.allowed_workers.as_ref().is_none_or(|workers| {
            workers.iter().any(|worker| {
                name.strip_prefix(worker.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.strip_prefix('-').is_some_and(is_suffix))
            })
        })
    }
}

/// Memory to make reachable.
#[derive(Debug)]
pub struct Offer<'a> {
    /// `Read` lets peers read the regions, `Write` lets them write.
    pub kind: OperationKind,
    /// What to expose.
    pub regions: &'a [Region],
    /// The notification that ends the offer; unguessable.
    pub key: &'a str,
}

/// Bytes to move.
#[derive(Debug)]
pub struct Transfer<'a> {
    /// The peer that offered the memory.
    pub peer: PeerId,
    /// `Read` pulls `remote` into `local`, `Write` pushes `local` into `remote`.
    pub kind: OperationKind,
    /// This side's memory; as many regions as `remote`, each of the same length.
    pub local: &'a [Region],
    /// The peer's memory.
    pub remote: &'a [Region],
    /// The notification to deliver with the last byte.
    pub key: &'a str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u64);
    };
}
id!(
    /// Names memory that stays registered beyond single operations.
    RegistrationId
);
id!(
    /// Names an offer to its transport.
    OfferId
);
id!(
    /// Names a transfer to its transport.
    TransferId
);
id!(
    /// Names a peer to its transport.
    PeerId
);

/// How far a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferState {
    /// Not done. `advanced` says that this poll got something done, so that polling on pays.
    Pending {
        /// Something happened since the last poll.
        advanced: bool,
    },
    /// Every byte is where it belongs, and the peer knows or will know.
    Complete,
}

/// Whether memory can still be touched by the transport or a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quiescence {
    /// It can't.
    Quiet,
    /// It can, or nobody knows.
    Busy,
}

/// Something that happened without being asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransportEvent {
    /// A notification arrived. Any peer can send anything: match the bytes exactly.
    Notification {
        /// Who sent it, as far as the transport knows.
        from: String,
        /// What it says.
        body: Vec<u8>,
    },
    /// A peer sent a message. Any peer can send anything.
    Message {
        /// Who sent it, as far as the transport knows.
        from: String,
        /// What it says.
        body: Vec<u8>,
    },
    /// Whoever had begun to take an offer died or gave up, and the transport knows. The driver ends the offer:
    /// who made it wants its memory back, and can offer again.
    OfferFailed {
        /// Which.
        id: OfferId,
        /// Why.
        error: TransportError,
    },
}

/// What a transport reports when something goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The engine can't be used here: a library is missing, too old or incomplete. The message says where
    /// it was looked for and how to get it.
    #[error("transport unavailable: {0}")]
    Unavailable(String),
    /// The transport can't reach memory of this kind. Copy it to a device it can reach, or use another
    /// transport.
    #[error("memory on {device} is out of reach: {reason}")]
    UnsupportedDevice {
        /// Where the memory is.
        device: Device,
        /// Why that does not work.
        reason: String,
    },
    /// A resource of this machine ran out or was denied.
    #[error("{what}: {reason}")]
    Resource {
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        reason: String,
    },
    /// The peer is gone. Ask whoever sent the metadata for a live one.
    #[error("peer lost: {0}")]
    PeerLost(String),
    /// The peer answered, and said no: it does not know the offer (it ended, expired or was taken already),
    /// or the request does not fit it.
    #[error("peer refused: {0}")]
    Refused(String),
    /// The peer began to take an offer and gave up: it was cancelled, or its deadline passed. Offer again if it
    /// should have another try.
    #[error("peer let go: {0}")]
    LetGo(String),
    /// A blob or message that is damaged, hostile, or of another transport or version.
    #[error("{0}")]
    Protocol(String),
    /// This connector does not talk to that worker. Add it to the allow-list if it should.
    #[error("worker {0:?} is not on this connector's allow-list")]
    NotAllowed(String),
    /// The engine failed and says no more than this.
    #[error("{call} failed: {status}")]
    Engine {
        /// Which call of the engine.
        call: &'static str,
        /// What it returned.
        status: String,
    },
}

impl TransportError {
    /// Wraps an error of the operating system.
    pub fn resource(what: &'static str, error: impl Into<io::Error>) -> Self {
        Self::Resource { what, reason: error.into().to_string() }
    }

    /// Whose side the failure is on.
    pub fn category(&self) -> ErrorCategory {
        match self {
            Self::Unavailable(_)
            | Self::UnsupportedDevice { .. }
            | Self::Resource { .. }
            | Self::NotAllowed(_) => ErrorCategory::Local,
            Self::PeerLost(_) | Self::Refused(_) | Self::LetGo(_) => ErrorCategory::Peer,
            Self::Protocol(_) => ErrorCategory::Protocol,
            Self::Engine { .. } => ErrorCategory::Transport,
        }
    }

    /// Whether the same call can succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Resource { .. } | Self::PeerLost(_) | Self::LetGo(_) | Self::Engine { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allow_list_matches_workers_and_their_agents_and_nobody_else() {
        let context = TransportContext {
            worker_id: "me".to_owned(),
            incarnation: "0".repeat(INCARNATION_LEN),
            allowed_workers: Some(vec!["prefill".to_owned()]),
            counters: Arc::default(),
        };
        for name in ["prefill", "prefill-1", "prefill-0123456789ab", "prefill-0123456789ab-r7"] {
            assert!(context.allows(name), "{name}");
        }
        for name in [
            "prefill2",
            "prefill-",
            "prefill-0123456789ab-7",
            "prefill-evil",
            "prefill-1-evil",
            "prefil",
            "",
            "x-prefill-1",
        ] {
            assert!(!context.allows(name), "{name}");
        }
        assert!(TransportContext { allowed_workers: None, ..context }.allows("anybody"));
    }
}
