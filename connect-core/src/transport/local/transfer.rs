//! The steps of one transfer, as its client sees them: begin, poll, release.
//!
//! ```text
//! read,  attach:  READ -> GRANT_ATTACH,  copy,  DONE -> OK
//! read,  stream:  READ -> GRANT_STREAM, DATA...,  DONE -> OK
//! write, attach:  WRITE,  the server copies  -> OK
//! write, stream:  WRITE -> GRANT_STREAM,  DATA...  -> OK
//! ```
//! Complete is what the server has answered OK to (P3): until then it may have withdrawn the offer.

use std::mem;
use std::sync::Arc;

use super::attach::Source;
use super::client::{Client, ClientConn};
use super::copy::{Copy, withdrawn};
use super::cursor::total;
use super::frame::{Frame, MAX_KEY, MAX_REGIONS, Request};
use super::lease::Lease;
use super::node::{Node, SLICE};
use crate::transport::{Quiescence, Transfer, TransferId, TransferState, TransportError};
use crate::{OperationKind, Region};

/// Unsent requests on one connection, in bytes: dozens of the largest, hundreds of thousands of ordinary ones.
const MAX_QUEUED: usize = 64 * 1024 * 1024;

/// A transfer in whatever state.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) conn: u64,
    pub(super) kind: OperationKind,
    key: Vec<u8>,
    pub(super) local: Arc<[Region]>,
    pub(super) remote: Arc<[Region]>,
    pub(super) stage: Stage,
    /// What a server in this process copies out of.
    lease: Option<Lease>,
    /// The connection's `pumps` at the last poll.
    seen: u64,
    /// Something happened since the last poll.
    pub(super) advanced: bool,
}

/// How far a transfer is.
#[derive(Debug)]
pub(super) enum Stage {
    /// The server has not said WELCOME yet.
    Waiting,
    /// The request is sent. `attach`: it may have made the server read our memory.
    Requested {
        attach: bool,
    },
    /// We copy out of the server's memory.
    Copying(Copy),
    /// The server streams to us.
    Receiving,
    /// We stream to the server.
    Sending,
    /// Read: every byte is here; the server has yet to confirm that they were good.
    Finishing,
    /// Write: given up, but the server may still be reading our memory.
    Withdrawing,
    Complete,
    Failed(TransportError),
}

impl Client {
    /// Starts a transfer.
    pub(super) fn begin(
        &mut self,
        node: &Node,
        transfer: &Transfer<'_>,
    ) -> Result<TransferId, TransportError> {
        check(transfer)?;
        let token = self.connection(node, transfer.peer)?;
        // From 1: request 0 is the connection itself.
        self.last_transfer += 1;
        let id = TransferId(self.last_transfer);
        let Some(conn) = self.conns.get_mut(&token) else {
            return Err(TransportError::PeerLost("the connection ended".into()));
        };
        if conn.watched.link.backlog() > MAX_QUEUED {
            return Err(TransportError::Resource {
                what: "sending a request",
                reason: format!("the peer leaves more than {MAX_QUEUED} bytes of requests unread"),
            });
        }
        let mut active = Active {
            conn: token,
            kind: transfer.kind,
            key: transfer.key.as_bytes().to_vec(),
            local: transfer.local.into(),
            remote: transfer.remote.into(),
            stage: Stage::Waiting,
            lease: None,
            seen: conn.pumps,
            advanced: true,
        };
        conn.transfers.insert(id);
        if conn.server.is_some() {
            active.request(node, conn, id);
        } else {
            conn.waiting.push(id);
        }
        self.transfers.insert(id, active);
        self.pump(node, token);
        Ok(id)
    }

    /// Moves a transfer on by at most one slice.
    pub(super) fn poll(&mut self, node: &Node, id: TransferId) -> Result<TransferState, TransportError> {
        self.catch_up(node, id);
        if self.copying.contains(&id) {
            self.copy_slice(node, id);
        }
        let Some(active) = self.transfers.get_mut(&id) else {
            return Err(TransportError::Protocol(format!("transfer {} is not known", id.0)));
        };
        match &active.stage {
            Stage::Complete => Ok(TransferState::Complete),
            Stage::Failed(error) => Err(error.clone()),
            _ => Ok(TransferState::Pending { advanced: mem::take(&mut active.advanced) }),
        }
    }

    /// Ends a transfer.
    pub(super) fn release(&mut self, node: &Node, id: TransferId) -> Quiescence {
        self.catch_up(node, id);
        let Some(active) = self.transfers.get_mut(&id) else { return Quiescence::Quiet };
        let token = active.conn;
        if let Some(conn) = self.conns.get_mut(&token)
            && !active.stage.is_final()
            && !matches!(active.stage, Stage::Withdrawing)
        {
            self.copying.remove(&id);
            active.withdraw(conn, id);
            self.pump(node, token);
        }
        self.forget_if_quiet(id)
    }

    fn forget_if_quiet(&mut self, id: TransferId) -> Quiescence {
        let Some(active) = self.transfers.get(&id) else { return Quiescence::Quiet };
        if let Some(conn) = self.conns.get_mut(&active.conn) {
            if !active.stage.is_final() || conn.watched.link.is_streaming(id.0) {
                return Quiescence::Busy;
            }
            conn.transfers.remove(&id);
        }
        self.copying.remove(&id);
        self.transfers.remove(&id);
        Quiescence::Quiet
    }

    /// Pumps the transfer's connection, unless somebody did since the transfer was looked at last: so polling
    /// many transfers of one connection costs one system call and not one for each.
    fn catch_up(&mut self, node: &Node, id: TransferId) {
        let Some(active) = self.transfers.get_mut(&id) else { return };
        let Some(conn) = self.conns.get(&active.conn) else { return };
        let (token, behind) = (active.conn, active.seen != conn.pumps);
        active.seen = conn.pumps + u64::from(!behind);
        let unfinished = !active.stage.is_final() || conn.watched.link.is_streaming(id.0);
        if !behind && unfinished {
            self.pump(node, token);
        }
    }

    fn copy_slice(&mut self, node: &Node, id: TransferId) {
        let Some(active) = self.transfers.get_mut(&id) else { return };
        let Stage::Copying(copy) = &mut active.stage else { return };
        let token = active.conn;
        let Some(conn) = self.conns.get_mut(&token) else { return };
        let link = &mut conn.watched.link;
        active.advanced = true;
        match copy.slice(SLICE) {
            Ok(_) if !copy.is_done() => return,
            Ok(_) => {
                link.push(id.0, &Frame::Done);
                active.stage = Stage::Finishing;
            }
            Err(error) => {
                link.push(id.0, &Frame::Abort);
                active.end(Stage::Failed(error));
            }
        }
        self.copying.remove(&id);
        self.pump(node, token);
    }
}

impl Active {
    /// Sends the request.
    pub(super) fn request(&mut self, node: &Node, conn: &mut ClientConn, id: TransferId) {
        let Some(server) = &conn.server else { return };
        let attach = match self.kind {
            OperationKind::Read => server.attach,
            OperationKind::Write => server.admitted,
        };
        let request = Request { attach, key: mem::take(&mut self.key), regions: Arc::clone(&self.remote) };
        let frame = match self.kind {
            OperationKind::Read => Frame::Read(request),
            OperationKind::Write => {
                if server.direct {
                    self.lease = Some(Lease::grant(
                        node.lease_to(server, (OperationKind::Write, id.0)),
                        Source::of(&self.local),
                    ));
                }
                Frame::Write(request, Arc::clone(&self.local))
            }
        };
        conn.watched.link.push(id.0, &frame);
        self.stage = Stage::Requested { attach };
    }

    /// Ends the transfer, and with it whatever makes use of its memory in this process.
    pub(super) fn end(&mut self, stage: Stage) {
        self.stage = stage;
        self.lease = None;
    }

    /// Gives the transfer up.
    fn withdraw(&mut self, conn: &mut ClientConn, id: TransferId) {
        if matches!(self.stage, Stage::Waiting) {
            conn.waiting.retain(|waiting| *waiting != id);
            return self.end(Stage::Failed(withdrawn()));
        }
        let link = &mut conn.watched.link;
        link.sinks.remove(&id.0);
        link.cancel_stream(id.0);
        link.push(id.0, &Frame::Abort);
        // A server in another process may be copying out of our memory until it says otherwise. One in this
        // process can't without the lease, which ends here.
        let copied_from = matches!(
            (self.kind, &self.stage, &self.lease),
            (OperationKind::Write, Stage::Requested { attach: true }, None)
        );
        self.end(if copied_from { Stage::Withdrawing } else { Stage::Failed(withdrawn()) });
    }
}

impl Stage {
    /// Whether nothing more happens to the transfer. A DATA frame of it may still be on its way.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Complete | Self::Failed(_))
    }
}

fn check(transfer: &Transfer<'_>) -> Result<(), TransportError> {
    let refuse = |reason: String| Err(TransportError::Protocol(reason));
    check_regions(transfer.local)?;
    check_regions(transfer.remote)?;
    check_key(transfer.key)?;
    if transfer.local.len() != transfer.remote.len() {
        return refuse(format!(
            "{} regions here, {} at the peer",
            transfer.local.len(),
            transfer.remote.len()
        ));
    }
    let unequal = transfer.local.iter().zip(transfer.remote).position(|(l, r)| l.len() != r.len());
    unequal.map_or(Ok(()), |index| refuse(format!("region {index} differs in length from the peer's")))
}

/// What one operation may consist of.
pub(super) fn check_regions(regions: &[Region]) -> Result<(), TransportError> {
    if regions.is_empty() || regions.len() > MAX_REGIONS {
        return Err(TransportError::Protocol(format!(
            "{} regions; an operation has 1 to {MAX_REGIONS}",
            regions.len()
        )));
    }
    if total(regions).is_none() {
        return Err(TransportError::Protocol("the regions together overflow the address space".into()));
    }
    regions.iter().try_for_each(|region| super::check_device(region.device()))
}

/// What a notification key may be.
pub(super) fn check_key(key: &str) -> Result<(), TransportError> {
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(TransportError::Protocol(format!(
            "the notification key has {} bytes; it must have 1 to {MAX_KEY}",
            key.len()
        )));
    }
    Ok(())
}
