//! The embedded transport, [`LocalTransport`]: processes of one host, with no dependency to install.
//!
//! A Unix socket in a private directory carries control, notifications and liveness. The bytes take the fastest
//! way there is ([`DataPath`]):
//! * inside one process a plain copy, under a lease that its owner can end at any time;
//! * between processes of one user cross-memory attach (`process_vm_readv`), where the kernel permits it: each
//!   side proves it when a connection begins, by reading a random number out of the other's memory;
//! * elsewhere the socket, from memory to memory without a buffer of ours in between.
//!
//! Whoever owns a target writes it: a reader copies from the offering process, and the process that offers a
//! target copies from the writer. A process that is stopped or killed at any moment can't damage another's
//! memory, and whoever offered something hears at once that its taker died or gave up.
//!
//! # What an offer allows
//! The notification key is the capability: a request must name it, with the same regions and direction, and an
//! offer is taken once. On the socket the serving side enforces that and the end of the offer itself. Cross-memory
//! attach bypasses it once granted, and does not need it: the kernel lets processes of one user read each
//! other's memory as it lets them debug each other. Whoever must not be able to do that runs as another user,
//! whose bytes are always streamed ([`LocalConfig::allow_other_users`]).
//!
//! The worker ids that peers state are not proven: the process and user behind a connection come from the
//! kernel, but the allow-list keeps out mistakes, not another program of the same user.
//!
//! # Limits
//! The last step can't be certain for both sides: if a connection is lost after the serving side has completed
//! an offer and before its OK arrives, the client reports [`PeerLost`](TransportError::PeerLost).
//!
//! Dropping the transport ends everything: connections close, peers fail at once, leases end, and nothing here
//! or in a peer writes to memory of this process any more. A peer process that was copying from it may go on
//! for a slice or, while it is stopped, later; but it can't complete what it copied, because only this side
//! could have confirmed it.

mod attach;
mod blob;
mod client;
mod codec;
mod config;
mod copy;
mod cursor;
mod endpoint;
mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod grant;
mod lease;
mod link;
mod node;
mod serve;
#[cfg(test)]
mod tests;
mod transfer;

use std::sync::Arc;
use std::time::Duration;

use nix::sys::epoll::{EpollEvent, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

pub use config::{DataPath, LocalConfig};

use super::{
    Offer, OfferId, PeerId, Quiescence, Transfer, TransferId, TransferState, Transport, TransportContext,
    TransportError, TransportEvent,
};
use crate::{Device, Region};
use blob::{Address, MAX_NAME};
use client::Client;
use endpoint::Endpoint;
use node::{LISTENER, Node, WAKER};
use serve::Server;
use transfer::{check_key, check_regions};

/// What every blob of this transport begins with, so that another transport can refuse it by name.
pub(crate) const LOCAL_MARKER: &[u8] = b"connect-local";

/// Ready descriptors taken from the kernel at once. The rest is ready at the next call, and the kernel hands
/// them out in turn.
const EVENTS: usize = 64;

/// Moves bytes between processes of one host.
#[derive(Debug)]
pub struct LocalTransport {
    // Connections are closed before the node goes, whose nonce peers may look for.
    client: Client,
    server: Server,
    endpoint: Endpoint,
    waker: Arc<EventFd>,
    node: Node,
    blob: Vec<u8>,
    /// What [`wait`](Transport::wait) found for the next [`progress`](Transport::progress).
    ready: [EpollEvent; EVENTS],
    ready_len: usize,
}

impl LocalTransport {
    /// Opens a socket for peers.
    ///
    /// # Errors
    /// A name in `context` that is empty, longer than 256 bytes or has control characters, or a directory,
    /// socket or other descriptor that can't be made.
    pub fn new(config: LocalConfig, context: &TransportContext) -> Result<Self, TransportError> {
        for name in [&context.worker_id, &context.incarnation] {
            if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
                return Err(TransportError::Protocol(format!(
                    "{name:?} can't be a worker id or incarnation: it must have 1 to {MAX_NAME} bytes and no \
                     control characters",
                )));
            }
        }
        let node = Node::new(config, context.clone())?;
        let endpoint = Endpoint::new(&node.config)?;
        let waker = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| TransportError::resource("making a waker", error))?;
        node.poller.watch_fd(&waker, WAKER)?;
        node.poller.watch_fd(endpoint.listener(), LISTENER)?;
        let address = Address {
            host: node.host.clone(),
            path: endpoint.path(),
            worker_id: context.worker_id.clone(),
            incarnation: context.incarnation.clone(),
        };
        Ok(Self {
            client: Client::default(),
            server: Server::default(),
            endpoint,
            waker: Arc::new(waker),
            node,
            blob: address.encode(),
            ready: [EpollEvent::empty(); EVENTS],
            ready_len: 0,
        })
    }

    fn look(&mut self, timeout: EpollTimeout) {
        // An error here can only be an interruption: the descriptor and the buffer are ours.
        self.ready_len = self.node.poller.epoll.wait(&mut self.ready, timeout).unwrap_or(0);
    }
}

// SAFETY: `Complete` follows the last copied byte and the peer's OK; every `Source` and `Target` of an
// operation is dropped before it is called quiet (`attach.rs`).
unsafe impl Transport for LocalTransport {
    fn name(&self) -> &'static str {
        "local"
    }

    fn check_device(&self, device: Device) -> Result<(), TransportError> {
        check_device(device)
    }

    fn describe(&mut self, regions: &[Region]) -> Result<Vec<u8>, TransportError> {
        regions.iter().try_for_each(|region| check_device(region.device()))?;
        Ok(self.blob.clone())
    }

    unsafe fn offer(&mut self, offer: &Offer<'_>) -> Result<(OfferId, Vec<u8>), TransportError> {
        check_regions(offer.regions)?;
        check_key(offer.key)?;
        let id = self.server.offers.add(offer)?;
        Ok((id, self.blob.clone()))
    }

    fn end_offer(&mut self, id: OfferId, _completed: bool) -> Quiescence {
        self.server.end_offer(&self.node, id)
    }

    fn offer_is_quiet(&mut self, id: OfferId) -> Quiescence {
        self.server.offers.forget_if_quiet(id)
    }

    fn connect(&mut self, blob: &[u8]) -> Result<(PeerId, String), TransportError> {
        self.client.connect(&self.node, blob)
    }

    fn notify(&mut self, peer: PeerId, message: &[u8]) -> Result<(), TransportError> {
        self.client.notify(&self.node, peer, message)
    }

    fn forget(&mut self, peer: PeerId) {
        self.client.forget(peer);
    }

    unsafe fn begin(&mut self, transfer: &Transfer<'_>) -> Result<TransferId, TransportError> {
        self.client.begin(&self.node, transfer)
    }

    fn poll(&mut self, id: TransferId) -> Result<TransferState, TransportError> {
        self.client.poll(&self.node, id)
    }

    fn release(&mut self, id: TransferId) -> Quiescence {
        self.client.release(&self.node, id)
    }

    fn has_transfers_in_flight(&self) -> bool {
        // What is left after everything was released waits for a peer to confirm that it stopped.
        !self.client.transfers.is_empty()
    }

    fn progress(&mut self, events: &mut Vec<TransportEvent>) -> bool {
        if self.ready_len == 0 {
            self.look(EpollTimeout::ZERO);
        }
        let mut worked = false;
        let (ready, ready_len) = (self.ready, std::mem::take(&mut self.ready_len));
        for token in ready[..ready_len].iter().map(EpollEvent::data) {
            worked |= match token {
                // Stays up until a wait has seen it.
                WAKER => false,
                LISTENER => self.server.accept(&self.node, &mut self.endpoint),
                token => self.client.pump(&self.node, token) || self.server.pump(&self.node, token, events),
            };
        }
        worked |= self.server.pull(&self.node, events);
        // The caller looks at every transfer after this.
        worked | std::mem::take(&mut self.client.news)
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        let news = std::mem::take(&mut self.client.news);
        let busy = news || !self.client.copying.is_empty() || self.server.has_pulls();
        // Rounded up, lest the last fraction of a millisecond be spent spinning.
        let timeout = match timeout {
            _ if busy => EpollTimeout::ZERO,
            None => EpollTimeout::NONE,
            Some(timeout) => {
                EpollTimeout::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(EpollTimeout::MAX)
            }
        };
        self.look(timeout);
        if self.ready[..self.ready_len].iter().any(|event| event.data() == WAKER) {
            // Reading resets it; it can't be empty.
            let _ = self.waker.read();
        }
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let waker = Arc::clone(&self.waker);
        Arc::new(move || {
            // Fails only when a wake-up is pending 2^64 times over.
            let _ = waker.write(1);
        })
    }

    fn is_event_driven(&self) -> bool {
        true
    }
}

fn check_device(device: Device) -> Result<(), TransportError> {
    if device.is_cpu() {
        return Ok(());
    }
    Err(TransportError::UnsupportedDevice {
        device,
        reason: "the `local` transport moves system memory; copy it to the CPU, or use NIXL".into(),
    })
}
