//! The passive side: connections of clients, and what they ask for. The offers themselves, and what is granted
//! on them, are in `grant.rs`.
//!
//! A request is granted only on an offer of ours, and an offer has one grant at most. So what a client can
//! make us remember is bounded by what we offered.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::endpoint::Endpoint;
use super::frame::{Frame, Hello, Kind};
use super::grant::{Asking, Grant, Offers, Work};
use super::link::{Broken, Link, Received};
use super::node::{FRAME_COST, Greeted, Node, READ_BUDGET, SLICE, Watched};
use crate::transport::{OfferId, Quiescence, TransportError, TransportEvent};

/// Connections accepted by one call, so that a crowd of new peers does not keep the old ones waiting.
const ACCEPTS: usize = 16;

/// Connections in all. A host runs fewer connectors, and processes may have 1024 files open by default.
const MAX_CONNECTIONS: usize = 512;

/// Connections of one process: one for each of its connectors that has business with us.
const MAX_PER_PROCESS: usize = 64;

/// Connections of one foreign user, who may have many processes.
const MAX_PER_FOREIGN_USER: usize = 64;

/// What one pull counts at least against the slice that all of them share in one call: small copies cost a
/// system call, which takes as long as copying this much.
const PULL_COST: u64 = 16 * 1024;

/// The passive side of the transport.
#[derive(Debug, Default)]
pub(super) struct Server {
    pub(super) offers: Offers,
    pub(super) conns: HashMap<u64, ServerConn>,
    /// Writes that we copy out of their client's memory: (connection, request), in turn.
    pulls: VecDeque<(u64, u64)>,
}

/// A connection of a client.
#[derive(Debug)]
pub(super) struct ServerConn {
    watched: Watched,
    /// Who is there; `None` until it said so.
    client: Option<Greeted>,
    grants: HashMap<u64, Grant>,
}

impl ServerConn {
    /// Who is there, for messages.
    fn name(&self) -> &str {
        self.client.as_ref().map_or("a peer", |client| &client.name)
    }
}

impl Server {
    /// Accepts connections that wait.
    pub(super) fn accept(&mut self, node: &Node, endpoint: &mut Endpoint) -> bool {
        let mut worked = false;
        for _ in 0..ACCEPTS {
            let Some(stream) = endpoint.accept() else { break };
            worked = true;
            if let Err(reason) = self.admit(node, stream) {
                tracing::debug!(%reason, "connection refused");
            }
        }
        worked
    }

    /// Takes a connection in, within the limits.
    pub(super) fn admit(&mut self, node: &Node, stream: UnixStream) -> Result<(), TransportError> {
        let failed = |error| TransportError::resource("accepting a peer", error);
        stream.set_nonblocking(true).map_err(failed)?;
        let link = Link::new(OwnedFd::from(stream))?;
        let refuse = |reason: &str| Err(TransportError::Refused(format!("{reason} (pid {})", link.pid)));
        if !node.allows_user(link.uid) {
            return refuse("a process of another user");
        }
        let links = || self.conns.values().map(|conn| &conn.watched.link);
        if self.conns.len() >= MAX_CONNECTIONS {
            return refuse("too many connections");
        }
        if links().filter(|other| other.pid == link.pid).count() >= MAX_PER_PROCESS {
            return refuse("too many connections of one process");
        }
        if !node.is_own_user(link.uid)
            && links().filter(|other| other.uid == link.uid).count() >= MAX_PER_FOREIGN_USER
        {
            return refuse("too many connections of one user");
        }
        let watched = node.poller.watch(link)?;
        self.conns.insert(watched.token, ServerConn { watched, client: None, grants: HashMap::new() });
        Ok(())
    }

    /// Reads and writes what can be read and written on one connection. Returns whether anything was.
    pub(super) fn pump(&mut self, node: &Node, token: u64, events: &mut Vec<TransportEvent>) -> bool {
        // Taken out so that offers and connection can be changed together.
        let Some(mut conn) = self.conns.remove(&token) else { return false };
        match self.pump_connection(node, &mut conn, events) {
            Ok(worked) => {
                settle(&mut self.offers, &mut conn);
                let read = !conn.watched.link.is_backlogged();
                node.poller.update(&mut conn.watched, read);
                self.conns.insert(token, conn);
                worked
            }
            Err(broken) => {
                self.close(conn, &broken, events);
                true
            }
        }
    }

    fn pump_connection(
        &mut self,
        node: &Node,
        conn: &mut ServerConn,
        events: &mut Vec<TransportEvent>,
    ) -> Result<bool, Broken> {
        let mut budget = READ_BUDGET;
        let mut worked = conn.watched.link.flush()?;
        // A backlog that the flush after it makes room for must not end the loop: nothing else would call again.
        while budget > 0 && !conn.watched.link.is_backlogged() {
            let idle = self.receive(node, conn, &mut budget, events)?;
            worked |= budget < READ_BUDGET;
            worked |= conn.watched.link.flush()?;
            if idle {
                break;
            }
        }
        Ok(worked)
    }

    /// Handles what has arrived, within the budget. Returns whether that was all.
    fn receive(
        &mut self,
        node: &Node,
        conn: &mut ServerConn,
        budget: &mut u64,
        events: &mut Vec<TransportEvent>,
    ) -> Result<bool, Broken> {
        while *budget > 0 && !conn.watched.link.is_backlogged() {
            let greeted = conn.client.is_some();
            let cost = match conn.watched.link.receive(|kind| accepts(kind, greeted))? {
                Received::Idle => {
                    self.complete_pulls(conn, events);
                    return Ok(true);
                }
                Received::Payload { request, bytes } => {
                    self.received(conn, request, events);
                    bytes
                }
                Received::Frame(_, Frame::Hello(hello)) => {
                    greet(node, conn, &hello)?;
                    FRAME_COST
                }
                Received::Frame(request, frame) => {
                    self.requested(node, conn, request, frame, events)?;
                    FRAME_COST
                }
            };
            *budget = budget.saturating_sub(cost);
        }
        Ok(false)
    }

    fn requested(
        &mut self,
        node: &Node,
        conn: &mut ServerConn,
        id: u64,
        frame: Frame,
        events: &mut Vec<TransportEvent>,
    ) -> Result<(), Broken> {
        let Some(client) = &conn.client else { return Ok(()) };
        let mut asking = Asking { node, client, watched: &mut conn.watched, id };
        match frame {
            Frame::Read(_) | Frame::Write(..) if conn.grants.contains_key(&id) || id == 0 => {
                return Err(Broken::violation("a request number is used twice"));
            }
            Frame::Read(request) => match self.offers.grant_read(&mut asking, &request) {
                Ok(grant) => drop(conn.grants.insert(id, grant)),
                Err(reason) => conn.watched.link.push(id, &Frame::Refused(reason)),
            },
            Frame::Write(request, sources) => {
                match self.offers.grant_write(&mut asking, &request, &sources) {
                    Ok(grant) => {
                        if matches!(grant.work, Work::Pulling(_)) {
                            self.pulls.push_back((conn.watched.token, id));
                        }
                        conn.grants.insert(id, grant);
                    }
                    Err(reason) => conn.watched.link.push(id, &Frame::Refused(reason)),
                }
            }
            Frame::Done => match conn.grants.get(&id) {
                None => conn.watched.link.push(id, &Frame::Revoked),
                Some(grant) if grant.is_read() && !conn.watched.link.is_streaming(id) => {
                    self.complete(conn, id, events);
                }
                Some(_) => return Err(Broken::violation("DONE before the end")),
            },
            Frame::Message(body) => {
                events.push(TransportEvent::Message { from: client.name.clone(), body });
            }
            Frame::Abort => {
                let error =
                    TransportError::LetGo(format!("{}: it was cancelled or out of time", conn.name()));
                self.abandon(conn, id, error, events);
                conn.watched.link.push(id, &Frame::Aborted);
            }
            _ => return Err(Broken::violation("not a request")),
        }
        Ok(())
    }

    /// Payload of a streamed write has arrived.
    fn received(&mut self, conn: &mut ServerConn, id: u64, events: &mut Vec<TransportEvent>) {
        if conn.watched.link.sinks.get(&id).is_some_and(|sink| sink.left() == 0) {
            self.complete(conn, id, events);
        }
    }

    /// A request has all its bytes: the offer is taken, its owner hears of it, and so does the client. If the
    /// offer was withdrawn, the client has been told already.
    fn complete(&mut self, conn: &mut ServerConn, id: u64, events: &mut Vec<TransportEvent>) {
        conn.watched.link.sinks.remove(&id);
        let (Some(grant), Some(client)) = (conn.grants.remove(&id), &conn.client) else { return };
        if let Some(key) = self.offers.take(grant.offer) {
            events.push(TransportEvent::Notification { from: client.name.clone(), body: key });
            conn.watched.link.push(id, &Frame::Ok);
        }
    }

    /// Completes the writes whose last byte was copied before the connection was found empty. Had the client
    /// given up and freed the memory before that byte was copied, its ABORT or the end of its connection would
    /// have been read by now.
    fn complete_pulls(&mut self, conn: &mut ServerConn, events: &mut Vec<TransportEvent>) {
        let copied = |(id, grant): (&u64, &Grant)| match &grant.work {
            Work::Pulling(copy) if copy.is_done() => Some(*id),
            _ => None,
        };
        let ready: Vec<u64> = conn.grants.iter().filter_map(copied).collect();
        for id in ready {
            let link = &conn.watched.link;
            if conn.client.as_ref().is_some_and(|client| client.is_still_there(link)) {
                self.complete(conn, id, events);
            } else {
                let reason = "its memory has changed hands";
                let error = TransportError::PeerLost(format!("{}: {reason}", conn.name()));
                self.abandon(conn, id, error, events);
                conn.watched.link.push(id, &Frame::Refused(reason.into()));
            }
        }
    }

    /// A request ends without success; whoever made the offer hears of that now, and not by its deadline.
    fn abandon(
        &mut self,
        conn: &mut ServerConn,
        id: u64,
        error: TransportError,
        events: &mut Vec<TransportEvent>,
    ) {
        let Some(grant) = conn.grants.get_mut(&id) else { return };
        self.offers.fail(grant.offer, error, events);
        let link = &mut conn.watched.link;
        link.sinks.remove(&id);
        if link.cancel_stream(id) == Quiescence::Busy {
            grant.work = Work::Draining;
        } else if let Some(grant) = conn.grants.remove(&id) {
            self.offers.let_go(grant.offer);
        }
    }

    fn close(&mut self, conn: ServerConn, broken: &Broken, events: &mut Vec<TransportEvent>) {
        let name = conn.name();
        tracing::debug!(pid = conn.watched.link.pid, peer = name, reason = %broken, "connection ended");
        for grant in conn.grants.values() {
            self.offers.fail(grant.offer, TransportError::PeerLost(format!("{name}: {broken}")), events);
            self.offers.let_go(grant.offer);
        }
    }

    /// Copies one slice, shared by all writes that have something to copy.
    pub(super) fn pull(&mut self, node: &Node, events: &mut Vec<TransportEvent>) -> bool {
        let mut budget = SLICE;
        let mut worked = false;
        for _ in 0..self.pulls.len() {
            if budget == 0 {
                break;
            }
            let Some((token, id)) = self.pulls.pop_front() else { break };
            let Some(conn) = self.conns.get_mut(&token) else { continue };
            let Some(Grant { work: Work::Pulling(copy), .. }) = conn.grants.get_mut(&id) else { continue };
            worked = true;
            if !copy.is_done() {
                match copy.slice(budget) {
                    Ok(copied) => budget = budget.saturating_sub(copied.max(PULL_COST)),
                    Err(error) => {
                        let reason = format!("copying out of the writer's memory: {error}");
                        let lost = TransportError::PeerLost(format!("{}: {reason}", conn.name()));
                        conn.watched.link.push(id, &Frame::Refused(reason));
                        if let Some(grant) = conn.grants.remove(&id) {
                            self.offers.fail(grant.offer, lost, events);
                            self.offers.let_go(grant.offer);
                        }
                        self.pump(node, token, events);
                        continue;
                    }
                }
                if !copy.is_done() {
                    self.pulls.push_back((token, id));
                    continue;
                }
            }
            // Completes it, unless the client has said more than one call handles; a backlog makes the poller
            // call again.
            self.pump(node, token, events);
            if let Some(conn) = self.conns.get(&token)
                && conn.grants.contains_key(&id)
                && !conn.watched.link.is_backlogged()
            {
                self.pulls.push_back((token, id));
            }
        }
        worked
    }

    /// Whether [`pull`](Self::pull) has something to copy.
    pub(super) fn has_pulls(&self) -> bool {
        !self.pulls.is_empty()
    }

    /// Ends an offer.
    pub(super) fn end_offer(&mut self, node: &Node, id: OfferId) -> Quiescence {
        let Some((token, request)) = self.offers.end(id) else { return self.offers.forget_if_quiet(id) };
        let Some(conn) = self.conns.get_mut(&token) else { return self.offers.forget_if_quiet(id) };
        let link = &mut conn.watched.link;
        if let Some(grant) = conn.grants.get_mut(&request) {
            let quiet = match &mut grant.work {
                Work::Attached(lease) => lease.take().is_some(),
                Work::Streaming | Work::Draining => {
                    grant.work = Work::Draining;
                    link.cancel_stream(request) == Quiescence::Quiet
                }
                Work::Pulling(_) | Work::Receiving => {
                    link.sinks.remove(&request);
                    true
                }
            };
            if quiet {
                conn.grants.remove(&request);
                self.offers.let_go(id);
            }
        }
        link.push(request, &Frame::Revoked);
        // What can't be written now is written when the driver comes by, who also learns of a lost connection.
        let _ = link.flush();
        settle(&mut self.offers, conn);
        node.poller.update(&mut conn.watched, true);
        self.offers.forget_if_quiet(id)
    }
}

/// Frees the offers whose last DATA frame is out by now.
fn settle(offers: &mut Offers, conn: &mut ServerConn) {
    let link = &conn.watched.link;
    conn.grants.retain(|id, grant| {
        let settled = matches!(grant.work, Work::Draining) && !link.is_streaming(*id);
        if settled {
            offers.let_go(grant.offer);
        }
        !settled
    });
}

fn greet(node: &Node, conn: &mut ServerConn, hello: &Hello) -> Result<(), Broken> {
    let link = &mut conn.watched.link;
    if !node.allows_worker(&hello.worker_id) {
        let reason = format!("worker {:?} is not on the peer's allow-list", hello.worker_id);
        link.push(0, &Frame::Refused(reason.clone()));
        let _ = link.flush();
        return Err(Broken::violation(&reason));
    }
    conn.client = Some(node.greet(link, hello));
    link.push(0, &Frame::Welcome(node.hello()));
    Ok(())
}

/// What a client may send.
fn accepts(kind: Kind, greeted: bool) -> bool {
    match kind {
        Kind::Hello => !greeted,
        Kind::Read | Kind::Write | Kind::Data | Kind::Done | Kind::Abort | Kind::Message => greeted,
        _ => false,
    }
}
