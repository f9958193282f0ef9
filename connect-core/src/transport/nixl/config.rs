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
}

/// Who drives NIXL while nothing of ours is in flight, so that peers are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NixlProgress {
    /// NIXL's own thread, which sleeps until something arrives and looks around at this interval besides.
    /// 10 ms by default: 0.4 % of a core when idle, and a small read is answered within 30 us. The
    /// original's choice, an interval of zero, spins one core for each agent.
    Thread(Duration),
    /// Only the connector's driver thread, while it has operations. The fastest on many cores while both
    /// sides are busy, but a peer waits for up to a millisecond when this side is idle.
    Driver,
}

impl Default for NixlConfig {
    fn default() -> Self {
        Self {
            library: None,
            backend: "UCX".to_owned(),
            params: BTreeMap::new(),
            progress: NixlProgress::Thread(Duration::from_millis(10)),
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
    pub fn param(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.params.insert(key.into(), value.into());
        self
    }

    /// Who drives NIXL while nothing is in flight.
    pub fn progress(mut self, progress: NixlProgress) -> Self {
        self.progress = progress;
        self
    }

    /// Builds the transport on a connector's driver thread.
    pub fn factory(self) -> TransportFactory {
        Box::new(move |context| Ok(Box::new(NixlTransport::new(self, context)?)))
    }
}
