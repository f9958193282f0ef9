//! What both sides of the transport share: who this connector is ([`Node`]), how it waits ([`Poller`]), and how
//! it may reach the memory of a peer ([`Greeted`]).

use std::cell::Cell;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::unistd::geteuid;
use uuid::Uuid;

use super::attach;
use super::config::LocalConfig;
use super::frame::{Hello, NONCE};
use super::lease::LeaseKey;
use super::link::Link;
use crate::OperationKind;
use crate::transport::{TransportContext, TransportError};

/// Bytes copied in one go: about a millisecond, the longest that one call of the driver may take. Long enough
/// that a system call per slice does not show.
pub(super) const SLICE: u64 = 4 * 1024 * 1024;

/// Payload received, or frames handled, in one go before other connections get their turn.
pub(super) const READ_BUDGET: u64 = SLICE;

/// What handling one frame counts against [`READ_BUDGET`]: a frame takes about as long as copying this much.
pub(super) const FRAME_COST: u64 = 16 * 1024;

/// This connector.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) context: TransportContext,
    pub(super) config: LocalConfig,
    /// The running kernel.
    pub(super) host: String,
    pub(super) pid: i32,
    uid: u32,
    /// Lies at one address for the life of this value, for peers to find there.
    nonce: Box<[u8; NONCE]>,
    pub(super) poller: Poller,
}

/// A peer that has said who it is.
#[derive(Debug)]
pub(super) struct Greeted {
    /// Worker id and incarnation, joined.
    pub(super) name: String,
    nonce: [u8; NONCE],
    nonce_addr: u64,
    /// It runs in this very process.
    pub(super) direct: bool,
    /// We can, and are willing to, copy out of its memory.
    pub(super) attach: bool,
    /// It may copy out of ours.
    pub(super) admitted: bool,
}

impl Node {
    pub(super) fn new(config: LocalConfig, context: TransportContext) -> Result<Self, TransportError> {
        let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(|error| TransportError::resource("reading this host's boot id", error))?;
        Ok(Self {
            context,
            config,
            host: host.trim().to_owned(),
            pid: std::process::id() as i32,
            uid: geteuid().as_raw(),
            nonce: Box::new(*Uuid::new_v4().as_bytes()),
            poller: Poller::new()?,
        })
    }

    pub(super) fn hello(&self) -> Hello {
        Hello {
            worker_id: self.context.worker_id.clone(),
            incarnation: self.context.incarnation.clone(),
            nonce_addr: self.nonce.as_ptr() as u64,
            nonce: *self.nonce,
        }
    }

    /// Whether this connector talks to processes of that user.
    pub(super) fn allows_user(&self, uid: u32) -> bool {
        self.is_own_user(uid) || self.config.allows_other_users()
    }

    pub(super) fn is_own_user(&self, uid: u32) -> bool {
        uid == self.uid
    }

    /// Whether it talks to that worker. Exact, where [`TransportContext::allows`] also takes an agent's name
    /// with an incarnation at its end: here worker ids come by themselves.
    pub(super) fn allows_worker(&self, worker_id: &str) -> bool {
        self.context.allowed_workers.as_ref().is_none_or(|workers| workers.iter().any(|w| w == worker_id))
    }

    /// Finds out how bytes can move between this connector and the one that said `hello` on `link`.
    pub(super) fn greet(&self, link: &Link, hello: &Hello) -> Greeted {
        let admitted = self.is_own_user(link.uid) && self.config.may_attach();
        let direct = admitted && link.pid == self.pid && self.config.may_copy_directly();
        Greeted {
            name: hello.name(),
            nonce: hello.nonce,
            nonce_addr: hello.nonce_addr,
            direct,
            attach: direct || (admitted && attach::process_holds(link.pid, hello.nonce_addr, &hello.nonce)),
            admitted,
        }
    }

    /// The lease of memory of ours that `peer` may copy out of.
    pub(super) fn lease_to(&self, peer: &Greeted, request: (OperationKind, u64)) -> LeaseKey {
        LeaseKey { owner: *self.nonce, borrower: peer.nonce, request }
    }

    /// The lease of memory of `peer` that we may copy out of.
    pub(super) fn lease_from(&self, peer: &Greeted, request: (OperationKind, u64)) -> LeaseKey {
        LeaseKey { owner: peer.nonce, borrower: *self.nonce, request }
    }
}

impl Greeted {
    /// Whether the process at the other end of `link` is still the program that greeted: it may have replaced
    /// itself (`exec`), and its memory with it.
    pub(super) fn is_still_there(&self, link: &Link) -> bool {
        self.direct || attach::process_holds(link.pid, self.nonce_addr, &self.nonce)
    }
}

/// The set of file descriptors to wait for; `epoll`, so that its cost does not grow with idle peers.
#[derive(Debug)]
pub(super) struct Poller {
    pub(super) epoll: Epoll,
    next_token: Cell<u64>,
}

/// The waker's token.
pub(super) const WAKER: u64 = 0;

/// The listener's token.
pub(super) const LISTENER: u64 = 1;

/// A connection that the poller watches.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) link: Link,
    pub(super) token: u64,
    interest: EpollFlags,
}

impl Poller {
    fn new() -> Result<Self, TransportError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        Ok(Self { epoll, next_token: Cell::new(LISTENER + 1) })
    }

    /// Watches something that only becomes readable.
    pub(super) fn watch_fd(&self, fd: impl AsFd, token: u64) -> Result<(), TransportError> {
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token)).map_err(failed)
    }

    /// Watches a connection. Closing it ends that.
    pub(super) fn watch(&self, link: Link) -> Result<Watched, TransportError> {
        let token = self.next_token.get();
        self.next_token.set(token + 1);
        self.watch_fd(&link, token)?;
        Ok(Watched { link, token, interest: EpollFlags::EPOLLIN })
    }

    /// Asks for what the connection can make use of now: room to write only when there is something to write.
    pub(super) fn update(&self, watched: &mut Watched, read: bool) {
        let mut interest = EpollFlags::empty();
        interest.set(EpollFlags::EPOLLIN, read);
        interest.set(EpollFlags::EPOLLOUT, watched.link.wants_write());
        if interest != watched.interest
            && self.epoll.modify(&watched.link, &mut EpollEvent::new(interest, watched.token)).is_ok()
        {
            watched.interest = interest;
        }
    }
}

fn failed(error: Errno) -> TransportError {
    TransportError::resource("setting up epoll", error)
}
