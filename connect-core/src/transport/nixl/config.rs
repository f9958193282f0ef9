//! [`NixlConfig`]: which library, which backend, with which parameters.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::NixlTransport;
use crate::transport::TransportFactory;

/// Configures the NIXL transport.
///
/// ```no_run
/// use connect_core::Connector;
/// use connect_core::transport::nixl::NixlConfig;
///
/// let connector = Connector::builder()
///     .nixl(NixlConfig::default().backend("UCX").param("num_workers", "2"))
///     .build()?;
/// # Ok::<(), connect_core::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a configuration does nothing by itself"]
pub struct NixlConfig {
    pub(super) library: Option<PathBuf>,
    pub(super) backend: String,
    pub(super) params: BTreeMap<String, String>,
    pub(super) progress: NixlProgress,
    pub(super) agent_lifetime: Option<Duration>,
}

/// Who drives NIXL, so that peers are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NixlProgress {
    /// The connector's driver thread. The default: a small read takes 20 to 30 us on two cores. What open offers cost
    /// while nothing happens, and how long a peer that comes after a pause waits until this side looks, is a matter
    /// of [`Polling`](crate::Polling).
    Driver,
    /// NIXL's own thread, which sleeps until something arrives and looks around at this interval besides; 10 ms
    /// is a good one. It answers the first peer after a pause at once, but it shares the cores with the driver
    /// thread: a small read takes 30 to 80 us on two cores. The original's choice, an interval of zero,
    /// spins one core for each agent.
    Thread(Duration),
}

impl Default for NixlConfig {
    fn default() -> Self {
        Self {
            library: None,
            backend: "UCX".to_owned(),
            params: BTreeMap::new(),
            progress: NixlProgress::Driver,
            agent_lifetime: None,
        }
    }
}

impl NixlConfig {
    /// Uses this `libnixl_capi.so` (or the one in this folder) and looks nowhere else.
    pub fn library(mut self, path: impl Into<PathBuf>) -> Self {
        self.library = Some(path.into());
        self
    }

    /// The NIXL backend, by the name of its plugin; `UCX` unless set.
    pub fn backend(mut self, name: impl Into<String>) -> Self {
        self.backend = name.into();
        self
    }

    /// Sets a parameter of the backend; the rest keep the plugin's defaults.
    ///
    /// One of UCX's is worth knowing: within one host, NIXL 1.5.1 moves bytes through memory, but its control messages
    /// over TCP's loopback, as its UCX does while it is to report failures of peers. With
    /// `("ucx_error_handling_mode", "none")` on both sides these go through memory, too, and a 4 KiB read takes 10 to
    /// 12 us instead of 22 to 25 (two cores, measured in one run). A peer's death is then noticed by this library's
    /// own signs of life and by deadlines alone, and its tests of killed peers do not cover that.
    pub fn param(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.params.insert(key.into(), value.into());
        self
    }

    /// Who drives NIXL; [`NixlProgress::Driver`] unless set.
    pub fn progress(mut self, progress: NixlProgress) -> Self {
        self.progress = progress;
        self
    }

    /// Retires the connector's agent at this age; never unless set.
    ///
    /// NIXL can't take one document back: a peer that keeps it can use it again for as long as the agent lives, also
    /// after its operation completed, and over TCP such a read ends this process if the memory was unmapped
    /// meanwhile. With an agent's end all of its documents end. Operations that are open keep their agent; new
    /// ones go to the next, which costs 40 ms once.
    pub fn agent_lifetime(mut self, lifetime: Duration) -> Self {
        self.agent_lifetime = Some(lifetime);
        self
    }

    /// Builds the transport on a connector's driver thread.
    pub fn factory(self) -> TransportFactory {
        Box::new(move |context| Ok(Box::new(NixlTransport::new(self, context)?)))
    }
}
