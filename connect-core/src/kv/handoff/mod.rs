//! [`HandOff`]: hand-offs of one engine, as their owner and as their taker.

mod fetch;
mod message;
mod node;
mod offer;
mod owner;
mod push;
mod taker;
#[cfg(test)]
mod tests;
mod ticket;
mod watch;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::blocks::RemoteBlocks;
use crate::kv::{KvError, KvPool, PoolCard, TransferSummary};
use crate::transport::TransportError;

pub use fetch::{Fetched, KvFailed, Tracked};
pub use node::HandOffStats;
use node::{Input, Node};
pub use offer::{Ended, Offer, Streaming};
pub use owner::Outcome;
pub use push::{Expected, PushPlan};
#[cfg(test)]
pub(super) use ticket::golden_ticket;
pub use ticket::{KvTicket, PushTicket};

/// How hand-offs behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandOffConfig {
    /// How long an owner holds blocks for a taker that it does not hear of, and how long a taker trusts what it read of
    /// an owner that it does not hear of. Six heartbeats are sent in it. 30 s unless set.
    pub lease: Duration,
    /// How long a taker waits for all of a hand-off, prefill included. 2 minutes unless set.
    pub deadline: Duration,
    /// How often one line about the transfers of that time is logged, at the level INFO, if there were any. Every 10 s
    /// unless set; `None` for never.
    pub summary_every: Option<Duration>,
}

impl Default for HandOffConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            deadline: Duration::from_secs(120),
            summary_every: Some(Duration::from_secs(10)),
        }
    }
}

impl HandOffConfig {
    /// With another lease.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        Self { lease, ..self }
    }

    /// With another deadline.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// With a line about transfers so often, or never.
    #[must_use]
    pub fn summary_every(self, every: impl Into<Option<Duration>>) -> Self {
        Self { summary_every: every.into(), ..self }
    }
}

/// Hands off the caches of one engine, and takes those of others. Clones share it; its thread ends with the last, and with
/// it the hand-offs it owns.
#[derive(Clone)]
pub struct HandOff {
    shared: Arc<Shared>,
}

/// What handles and the thread share. The thread has a weak one.
struct Shared {
    node: Arc<Node>,
    pool: KvPool,
    config: HandOffConfig,
    peers: Mutex<HashMap<String, RemoteBlocks>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.node.send(Input::End);
    }
}

impl HandOff {
    /// Starts the thread that keeps the leases of a pool's hand-offs.
    ///
    /// # Errors
    /// [`KvError::Transfer`] with [`Error::Start`](crate::Error::Start) when the system has no more threads.
    pub fn start(pool: KvPool, config: HandOffConfig) -> Result<Self, KvError> {
        let node = Node::start(&pool, config).map_err(|error| {
            let source = TransportError::Resource { what: "a hand-off's thread", reason: error.to_string() };
            KvError::from(crate::Error::Start { source })
        })?;
        Ok(Self { shared: Arc::new(Shared { node, pool, config, peers: Mutex::default() }) })
    }

    /// The pool.
    pub fn pool(&self) -> &KvPool {
        &self.shared.pool
    }

    /// The engine's name.
    pub fn engine(&self) -> String {
        self.shared.pool.engine()
    }

    /// Learns of a peer, or of its new card. Each side of a hand-off must have met the other: the owner answers to where
    /// this card says.
    ///
    /// # Errors
    /// [`KvError::Incompatible`] names the field that differs; [`KvError::Malformed`].
    pub fn meet(&self, card: &PoolCard) -> Result<(), KvError> {
        let observer = &self.shared.node.observer;
        let remote = self.shared.pool.remote(card).inspect_err(|error| observer.failed(error))?;
        self.shared.node.send(Input::Meet(card.engine().to_owned(), remote.clone()));
        lock(&self.shared.peers).insert(card.engine().to_owned(), remote);
        Ok(())
    }

    /// What became of its hand-offs so far.
    pub fn stats(&self) -> HandOffStats {
        self.shared.node.stats()
    }

    /// What its transfers have been like so far, in numbers and as one line.
    pub fn summary(&self) -> TransferSummary {
        self.shared.node.observer.summary()
    }

    /// Sets the gauges of [`metrics`](crate::kv::metrics) to what is so now. The hand-off's thread does so once a second.
    #[cfg(feature = "metrics")]
    pub fn publish_metrics(&self) {
        let node = &self.shared.node;
        node.observer.set_levels(node.stats().leases, self.shared.pool.counts());
    }

    fn remote(&self, engine: &str) -> Result<RemoteBlocks, KvError> {
        let known = lock(&self.shared.peers).get(engine).cloned();
        known.ok_or_else(|| KvError::UnknownEngine { engine: crate::wire::json::quoted(engine) })
    }
}

/// A poisoned lock means a panic between plain assignments; what it guards is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for HandOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandOff").field("pool", &self.shared.pool).field("stats", &self.stats()).finish()
    }
}
