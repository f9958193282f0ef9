//! One copy, slice by slice, out of a peer's memory into ours: [`Copy`]. Readers and the serving side of a write
//! both use it, so target memory is only ever written by the process that owns it.

use std::sync::Arc;

use nix::errno::Errno;

use super::attach::{Remote, Target};
use super::lease::Borrowed;
use super::node::{Greeted, Node};
use crate::transport::TransportError;
use crate::{OperationKind, Region};

/// A copy that is under way.
#[derive(Debug)]
pub(super) struct Copy {
    target: Target,
    origin: Origin,
}

/// Where the bytes are.
#[derive(Debug)]
enum Origin {
    /// In this process, under a lease.
    Direct(Borrowed),
    /// In another process.
    Attach { pid: i32, remote: Remote },
}

impl Copy {
    /// Prepares a copy from `remote`, memory of `peer` in process `pid`, to `local`; as many regions on either
    /// side, of the same lengths. `None`: a peer in this process has ended the lease already.
    pub(super) fn new(
        node: &Node,
        peer: &Greeted,
        pid: i32,
        request: (OperationKind, u64),
        local: &Arc<[Region]>,
        remote: &Arc<[Region]>,
    ) -> Option<Self> {
        let origin = if peer.direct {
            Origin::Direct(Borrowed::find(&node.lease_from(peer, request))?)
        } else {
            Origin::Attach { pid, remote: Remote::of(remote) }
        };
        Some(Self { target: Target::of(local), origin })
    }

    /// Copies the next bytes, at most `max`; returns how many. Not to be called when it [is done](Self::is_done).
    pub(super) fn slice(&mut self, max: u64) -> Result<u64, TransportError> {
        let copied = match &mut self.origin {
            Origin::Direct(lease) => lease.copy_into(&mut self.target, max).ok_or_else(withdrawn)?,
            Origin::Attach { pid, remote } => {
                self.target.copy_from_process(*pid, remote, max).map_err(attach_error)?
            }
        };
        // Neither way returns nothing without an error; were it to happen, it would happen forever.
        if copied == 0 {
            return Err(TransportError::PeerLost("its memory gave no bytes".into()));
        }
        Ok(copied)
    }

    /// Whether every byte is here.
    pub(super) fn is_done(&self) -> bool {
        self.target.left() == 0
    }
}

/// What a transfer fails with when its offer, or a pull when its write, ended under it.
pub(super) fn withdrawn() -> TransportError {
    TransportError::Refused("the offer was withdrawn".into())
}

/// Why copying out of a process failed that could be read when it said hello.
fn attach_error(error: Errno) -> TransportError {
    match error {
        Errno::ESRCH => TransportError::PeerLost("its process has ended".into()),
        Errno::EFAULT => TransportError::PeerLost("the memory it named is not mapped any more".into()),
        Errno::EPERM | Errno::EACCES => TransportError::Refused(
            "the kernel no longer lets us read the peer's memory; `DataPath::Stream` does without".into(),
        ),
        error => TransportError::resource("reading a peer's memory", error),
    }
}
