//! The active side: peers, connections to them, and transfers. The steps of a transfer are in `transfer.rs`.

use std::collections::{HashMap, HashSet};
use std::mem;

use super::attach::{Source, Target};
use super::blob::Address;
use super::copy::{Copy, withdrawn};
use super::endpoint::dial;
use super::frame::{Frame, Hello, Kind};
use super::link::{Broken, Link, Received};
use super::node::{FRAME_COST, Greeted, Node, READ_BUDGET, Watched};
use super::transfer::{Active, Stage};
use crate::OperationKind;
use crate::transport::{PeerId, TransferId, TransportError};

/// Peers remembered without a connection: far more than one host runs.
const MAX_PEERS: usize = 4096;

/// Messages that wait for a peer's greeting.
const MAX_UNSENT: usize = 256;

/// The active side of the transport.
#[derive(Debug, Default)]
pub(super) struct Client {
    peers: HashMap<PeerId, Peer>,
    by_address: HashMap<Address, PeerId>,
    pub(super) conns: HashMap<u64, ClientConn>,
    pub(super) transfers: HashMap<TransferId, Active>,
    /// Transfers that have something to copy right now.
    pub(super) copying: HashSet<TransferId>,
    next_peer: u64,
    pub(super) last_transfer: u64,
    /// A transfer changed after the driver last looked at all of them.
    pub(super) news: bool,
}

#[derive(Debug)]
struct Peer {
    address: Address,
    conn: Option<u64>,
}

/// A connection to a serving peer.
#[derive(Debug)]
pub(super) struct ClientConn {
    pub(super) watched: Watched,
    peer: PeerId,
    /// Who we expect there.
    address: Address,
    /// Who is there; `None` until it said so.
    pub(super) server: Option<Greeted>,
    /// Transfers on this connection, and those that wait for its WELCOME.
    pub(super) transfers: HashSet<TransferId>,
    pub(super) waiting: Vec<TransferId>,
    /// Messages that wait for its WELCOME.
    unsent: Vec<Vec<u8>>,
    /// How often it was pumped; tells a transfer whether somebody did so since its last poll.
    pub(super) pumps: u64,
}

impl Client {
    /// Learns of the peer that made `blob`.
    pub(super) fn connect(&mut self, node: &Node, blob: &[u8]) -> Result<(PeerId, String), TransportError> {
        let address = Address::decode(blob)?;
        if address.host != node.host {
            return Err(TransportError::Protocol(
                "the metadata was made on another host; the `local` transport works within one host".into(),
            ));
        }
        if !node.allows_worker(&address.worker_id) {
            return Err(TransportError::NotAllowed(address.worker_id));
        }
        let name = address.name();
        if let Some(&peer) = self.by_address.get(&address) {
            self.connection(node, peer)?;
            return Ok((peer, name));
        }
        let peer = PeerId(self.next_peer);
        let token = self.open(node, peer, &address)?;
        self.next_peer += 1;
        if self.peers.len() >= MAX_PEERS {
            self.peers.retain(|_, peer| peer.conn.is_some());
            self.by_address.retain(|_, peer| self.peers.contains_key(peer));
        }
        self.by_address.insert(address.clone(), peer);
        self.peers.insert(peer, Peer { address, conn: Some(token) });
        Ok((peer, name))
    }

    /// Drops a peer and its connection, unless transfers use them.
    pub(super) fn forget(&mut self, peer: PeerId) {
        let Some(known) = self.peers.get(&peer) else { return };
        let conn = known.conn.and_then(|token| self.conns.get(&token));
        if conn.is_some_and(|conn| !conn.transfers.is_empty() || !conn.waiting.is_empty()) {
            return;
        }
        if let Some(known) = self.peers.remove(&peer) {
            self.by_address.remove(&known.address);
            known.conn.and_then(|token| self.conns.remove(&token));
        }
    }

    /// A live connection to `peer`; a dead one is replaced once.
    pub(super) fn connection(&mut self, node: &Node, peer: PeerId) -> Result<u64, TransportError> {
        let Some(known) = self.peers.get(&peer) else {
            return Err(gone());
        };
        if let Some(token) = known.conn {
            // Finds out whether it is still alive.
            self.pump(node, token);
            if self.conns.contains_key(&token) {
                return Ok(token);
            }
        }
        let address = self.peers[&peer].address.clone();
        let token = self.open(node, peer, &address)?;
        if let Some(known) = self.peers.get_mut(&peer) {
            known.conn = Some(token);
        }
        Ok(token)
    }

    fn open(&mut self, node: &Node, peer: PeerId, address: &Address) -> Result<u64, TransportError> {
        let mut link = Link::new(dial(&address.path)?)?;
        if !node.allows_user(link.uid) {
            return Err(TransportError::Refused(format!(
                "worker {:?} belongs to another user (uid {}); both sides must allow other users",
                address.worker_id, link.uid
            )));
        }
        link.push(0, &Frame::Hello(node.hello()));
        let watched = node.poller.watch(link)?;
        let token = watched.token;
        let conn = ClientConn {
            watched,
            peer,
            address: address.clone(),
            server: None,
            transfers: HashSet::new(),
            waiting: vec![],
            unsent: vec![],
            pumps: 0,
        };
        self.conns.insert(token, conn);
        self.pump(node, token);
        Ok(token)
    }

    /// Reads and writes what can be read and written on one connection. Returns whether anything was.
    pub(super) fn pump(&mut self, node: &Node, token: u64) -> bool {
        // Taken out so that transfers and connection can be changed together.
        let Some(mut conn) = self.conns.remove(&token) else { return false };
        conn.pumps += 1;
        match self.pump_connection(node, &mut conn) {
            Ok(worked) => {
                node.poller.update(&mut conn.watched, true);
                self.conns.insert(token, conn);
                worked
            }
            Err(error) => {
                self.fail(conn, &error);
                true
            }
        }
    }

    fn pump_connection(&mut self, node: &Node, conn: &mut ClientConn) -> Result<bool, TransportError> {
        let received = self.receive(node, conn)?;
        match conn.watched.link.flush() {
            Ok(sent) => Ok(received || sent),
            Err(broken) => {
                // The peer may have said why before it closed.
                self.receive(node, conn)?;
                Err(conn.lost(broken))
            }
        }
    }

    fn receive(&mut self, node: &Node, conn: &mut ClientConn) -> Result<bool, TransportError> {
        let mut budget = READ_BUDGET;
        let mut worked = false;
        while budget > 0 {
            let greeted = conn.server.is_some();
            let cost = match conn.watched.link.receive(|kind| accepts(kind, greeted)) {
                Ok(Received::Idle) => break,
                Ok(Received::Payload { request, bytes }) => {
                    self.received(conn, TransferId(request));
                    bytes
                }
                Ok(Received::Frame(0, Frame::Refused(reason))) => {
                    return Err(TransportError::Refused(reason));
                }
                Ok(Received::Frame(_, Frame::Welcome(hello))) => {
                    self.welcomed(node, conn, &hello)?;
                    FRAME_COST
                }
                Ok(Received::Frame(request, frame)) => {
                    self.answered(node, conn, TransferId(request), frame)?;
                    FRAME_COST
                }
                Err(broken) => return Err(conn.lost(broken)),
            };
            budget = budget.saturating_sub(cost);
            worked = true;
        }
        Ok(worked)
    }

    fn welcomed(&mut self, node: &Node, conn: &mut ClientConn, hello: &Hello) -> Result<(), TransportError> {
        if hello.worker_id != conn.address.worker_id || hello.incarnation != conn.address.incarnation {
            return Err(TransportError::PeerLost(format!(
                "{} is gone; {} answers in its place",
                conn.address.name(),
                hello.name()
            )));
        }
        let server = node.greet(&conn.watched.link, hello);
        tracing::debug!(peer = %server.name, direct = server.direct, attach = server.attach, "connected");
        conn.server = Some(server);
        for id in mem::take(&mut conn.waiting) {
            if let Some(active) = self.transfers.get_mut(&id) {
                active.request(node, conn, id);
            }
        }
        for message in mem::take(&mut conn.unsent) {
            conn.watched.link.push(0, &Frame::Message(message));
        }
        self.news = true;
        Ok(())
    }

    /// Sends a message, at once or after the greeting.
    pub(super) fn notify(&mut self, node: &Node, peer: PeerId, message: &[u8]) -> Result<(), TransportError> {
        let token = self.connection(node, peer)?;
        let Some(conn) = self.conns.get_mut(&token) else { return Err(gone()) };
        if conn.watched.link.is_backlogged() || conn.unsent.len() >= MAX_UNSENT {
            return Err(TransportError::Resource {
                what: "sending a message",
                reason: format!("{} does not read what it is sent", conn.address.name()),
            });
        }
        match conn.server {
            Some(_) => conn.watched.link.push(0, &Frame::Message(message.to_vec())),
            None => conn.unsent.push(message.to_vec()),
        }
        self.pump(node, token);
        Ok(())
    }

    /// Payload of a streamed read has arrived.
    fn received(&mut self, conn: &mut ClientConn, id: TransferId) {
        let link = &mut conn.watched.link;
        let Some(active) = self.transfers.get_mut(&id) else { return };
        active.advanced = true;
        self.news = true;
        if link.sinks.get(&id.0).is_some_and(|sink| sink.left() == 0) {
            link.sinks.remove(&id.0);
            link.push(id.0, &Frame::Done);
            active.stage = Stage::Finishing;
        }
    }

    /// The server answered a request.
    fn answered(
        &mut self,
        node: &Node,
        conn: &mut ClientConn,
        id: TransferId,
        frame: Frame,
    ) -> Result<(), TransportError> {
        // No request was sent before the greeting, so nothing can be answered.
        if conn.server.is_none() {
            return Err(conn.violation("an answer before the greeting"));
        }
        // What was released is of no interest any more.
        let Some(active) = self.transfers.get_mut(&id) else { return Ok(()) };
        if active.conn != conn.watched.token {
            return Err(conn.violation("an answer to another connection's request"));
        }
        active.advanced = true;
        self.news = true;
        let link = &mut conn.watched.link;
        let server = conn.server.as_ref();
        match (frame, &active.stage, active.kind) {
            (Frame::GrantAttach, Stage::Requested { attach: true }, OperationKind::Read) => {
                let copy = server.and_then(|server| {
                    Copy::new(
                        node,
                        server,
                        link.pid,
                        (OperationKind::Read, id.0),
                        &active.local,
                        &active.remote,
                    )
                });
                if let Some(copy) = copy {
                    active.stage = Stage::Copying(copy);
                    self.copying.insert(id);
                } else {
                    link.push(id.0, &Frame::Abort);
                    active.end(Stage::Failed(withdrawn()));
                }
            }
            (Frame::GrantStream, Stage::Requested { .. }, OperationKind::Read) => {
                link.sinks.insert(id.0, Target::of(&active.local));
                active.stage = Stage::Receiving;
            }
            (Frame::GrantStream, Stage::Requested { .. }, OperationKind::Write) => {
                link.stream(id.0, Source::of(&active.local));
                active.stage = Stage::Sending;
            }
            (Frame::Ok, Stage::Finishing, OperationKind::Read)
            | (Frame::Ok, Stage::Requested { attach: true }, OperationKind::Write) => {
                active.end(Stage::Complete);
            }
            (Frame::Ok, Stage::Sending, OperationKind::Write) if !link.is_streaming(id.0) => {
                active.end(Stage::Complete);
            }
            // The answers to what was sent before an ABORT, and to the ABORT itself.
            (Frame::GrantStream | Frame::GrantAttach, Stage::Withdrawing, _) => {}
            (Frame::Ok | Frame::Aborted, Stage::Withdrawing, _) => active.end(Stage::Failed(withdrawn())),
            (Frame::Refused(reason), stage, _) if !stage.is_final() => {
                link.cancel_stream(id.0);
                link.sinks.remove(&id.0);
                active.end(Stage::Failed(TransportError::Refused(reason)));
            }
            (Frame::Revoked, stage, _) if !stage.is_final() => {
                if matches!(stage, Stage::Copying(_)) {
                    // The server waits for this before it lets go of the memory.
                    link.push(id.0, &Frame::Abort);
                    self.copying.remove(&id);
                }
                link.cancel_stream(id.0);
                link.sinks.remove(&id.0);
                active.end(Stage::Failed(withdrawn()));
            }
            (_, stage, _) if stage.is_final() => {}
            (frame, ..) => return Err(conn.violation(&format!("{frame:?} does not fit its request"))),
        }
        Ok(())
    }

    /// A connection is lost, and all that depended on it.
    fn fail(&mut self, conn: ClientConn, error: &TransportError) {
        tracing::debug!(peer = %conn.address.name(), %error, "connection to a peer ended");
        for id in &conn.transfers {
            self.copying.remove(id);
            if let Some(active) = self.transfers.get_mut(id)
                && !active.stage.is_final()
            {
                active.end(Stage::Failed(error.clone()));
            }
        }
        if let Some(peer) = self.peers.get_mut(&conn.peer)
            && peer.conn == Some(conn.watched.token)
        {
            peer.conn = None;
        }
        self.news = true;
    }
}

impl ClientConn {
    fn lost(&self, broken: Broken) -> TransportError {
        let name = self.address.name();
        match broken {
            Broken::Violation(reason) => {
                TransportError::Protocol(format!("{name} broke the protocol: {reason}"))
            }
            broken => TransportError::PeerLost(format!("{name}: {broken}")),
        }
    }

    fn violation(&self, reason: &str) -> TransportError {
        TransportError::Protocol(format!("{} broke the protocol: {reason}", self.address.name()))
    }
}

fn gone() -> TransportError {
    TransportError::PeerLost("the peer was forgotten; load its metadata again".into())
}

/// What a server may send.
fn accepts(kind: Kind, greeted: bool) -> bool {
    match kind {
        Kind::Welcome => !greeted,
        Kind::Refused => true,
        Kind::GrantAttach | Kind::GrantStream | Kind::Data | Kind::Ok | Kind::Revoked | Kind::Aborted => {
            greeted
        }
        Kind::Hello | Kind::Read | Kind::Write | Kind::Done | Kind::Abort | Kind::Message => false,
    }
}
