//! [`ConnectorBuilder`]: what a connector can be told before it starts.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::{Callers, Connector, Core};
use crate::clock::Clock;
use crate::deadline::Deadline;
use crate::driver::{self, Deadlines, Polling};
use crate::error::Error;
use crate::stats::{self, Counters};
use crate::transport::local::LocalConfig;
use crate::transport::{INCARNATION_LEN, TransportContext, TransportError, TransportFactory};

/// Configures a [`Connector`].
#[must_use = "nothing is built before `build`"]
pub struct ConnectorBuilder {
    worker_id: Option<String>,
    deadline: Deadline,
    allowed_workers: Option<Vec<String>>,
    parked_limit: u64,
    polling: Polling,
    transport: TransportFactory,
}

impl Default for ConnectorBuilder {
    fn default() -> Self {
        Self {
            worker_id: None,
            deadline: Deadline::DEFAULT,
            allowed_workers: None,
            parked_limit: stats::DEFAULT_PARKED_LIMIT,
            polling: Polling::default(),
            transport: LocalConfig::default().factory(),
        }
    }
}

/// The longest worker id. Names travel in every blob and end up in logs; a UUID has 36 characters.
const MAX_WORKER_ID: usize = 128;

impl ConnectorBuilder {
    /// Names the worker; by default a random UUID in hex, as in the original. Peers see the name followed
    /// by a random incarnation, so that a restarted worker is never taken for its predecessor (P4).
    pub fn worker_id(mut self, id: impl Into<String>) -> Self {
        self.worker_id = Some(id.into());
        self
    }

    /// The deadline of operations that set none of their own; 30 s unless set.
    pub fn default_deadline(mut self, deadline: impl Into<Deadline>) -> Self {
        self.deadline = deadline.into();
        self
    }

    /// Talks to these workers only. Metadata of others is refused before an address in it is used.
    pub fn allow_workers<I: IntoIterator<Item = S>, S: Into<String>>(mut self, workers: I) -> Self {
        self.allowed_workers = Some(workers.into_iter().map(Into::into).collect());
        self
    }

    /// How much memory may be parked, in bytes; 16 GiB unless set, `u64::MAX` for no limit.
    ///
    /// Memory is parked while an operation has ended for its caller but a peer may still touch it. It is never
    /// freed early, so a peer that stopped can hold it for hours. The limit keeps that from eating the machine:
    /// an operation whose bytes would bring the parked ones above it is refused with [`Error::ParkedLimit`],
    /// and its memory comes back. Operations that are open already go on, and may still park theirs. While
    /// nothing is parked every operation is taken, whatever its size.
    pub fn parked_limit(mut self, bytes: u64) -> Self {
        self.parked_limit = bytes;
        self
    }

    /// How to trade processor time for latency; [`Polling::Balanced`] unless set.
    pub fn polling(mut self, polling: Polling) -> Self {
        self.polling = polling;
        self
    }

    /// Uses the embedded transport with this configuration.
    pub fn local(mut self, config: LocalConfig) -> Self {
        self.transport = config.factory();
        self
    }

    /// Uses NIXL, found at run time.
    #[cfg(feature = "nixl")]
    pub fn nixl(mut self, config: crate::transport::nixl::NixlConfig) -> Self {
        self.transport = config.factory();
        self
    }

    /// Uses a transport of your own. The [`Transport`](crate::transport::Transport) trait is not stable yet.
    pub fn transport(mut self, factory: TransportFactory) -> Self {
        self.transport = factory;
        self
    }

    /// Starts the connector. This blocks until the transport is up: microseconds for `local`, about half a
    /// second for the first NIXL agent of a process.
    ///
    /// # Errors
    /// [`Error::WorkerId`] for an unusable name, [`Error::Start`] when the transport can't be had here.
    pub fn build(self) -> Result<Connector, Error> {
        let worker_id = self.worker_id.unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string());
        check_worker_id(&worker_id)?;
        let incarnation = uuid::Uuid::new_v4().simple().to_string()[..INCARNATION_LEN].to_owned();
        let counters = Arc::new(Counters::new(self.parked_limit));
        let context = TransportContext {
            worker_id: worker_id.clone(),
            incarnation,
            allowed_workers: self.allowed_workers,
            counters: Arc::clone(&counters),
        };
        let deadlines = Deadlines::start("connect-deadline".to_owned()).map_err(|error| Error::Start {
            source: TransportError::resource("starting the deadline thread", error),
        })?;
        let (port, inbox) = driver::channel();
        let ready = driver::start(
            self.transport,
            context,
            self.polling,
            inbox,
            Arc::clone(&deadlines),
            Arc::clone(&counters),
        )
        .map_err(|source| {
            deadlines.close();
            Error::Start { source }
        })?;
        let core = Core {
            port,
            deadlines,
            counters,
            clock: Clock::Real,
            next_id: AtomicU64::new(1),
            worker_id,
            transport: ready.transport,
            backend: ready.backend,
            end: ready.end,
            mailbox: ready.mailbox,
            patience: Callers::default(),
        };
        Ok(Connector { core: Arc::new(core), deadline: self.deadline })
    }
}

impl fmt::Debug for ConnectorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectorBuilder")
            .field("worker_id", &self.worker_id)
            .field("deadline", &self.deadline)
            .field("allowed_workers", &self.allowed_workers)
            .field("parked_limit", &self.parked_limit)
            .field("polling", &self.polling)
            .finish_non_exhaustive()
    }
}

fn check_worker_id(id: &str) -> Result<(), Error> {
    let reason = if id.is_empty() {
        "it is empty"
    } else if id.len() > MAX_WORKER_ID {
        "it is longer than 128 bytes"
    } else if !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b)) {
        "it has characters other than letters, digits, '-', '_', '.' and ':'"
    } else {
        return Ok(());
    };
    Err(Error::WorkerId { id: id.chars().take(32).collect(), reason })
}
