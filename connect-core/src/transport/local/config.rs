//! What can be chosen about the `local` transport: [`LocalConfig`].

use std::path::{Path, PathBuf};

use super::LocalTransport;
use crate::transport::{Transport, TransportFactory};

/// Settings of a [`LocalTransport`]. The defaults serve processes of the same user on this host.
///
/// ```
/// use connect_core::transport::local::{DataPath, LocalConfig};
///
/// let factory = LocalConfig::default().data_path(DataPath::Stream).factory();
/// # drop(factory);
/// ```
#[derive(Debug, Clone, Default)]
pub struct LocalConfig {
    socket_dir: Option<PathBuf>,
    allow_other_users: bool,
    data_path: DataPath,
    /// Lets tests of one process take the path between processes.
    #[cfg(any(test, fuzzing))]
    pub(super) never_direct: bool,
}

/// How bytes move between two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum DataPath {
    /// The fastest that works: a plain copy inside one process, cross-memory attach between processes of
    /// the same user where the kernel allows it, the socket elsewhere.
    #[default]
    Auto,
    /// Always the socket. The serving process then enforces bounds, direction and revocation itself.
    Stream,
}

impl LocalConfig {
    /// Where the connector makes the private directory that holds its socket. Unless set, that is
    /// `$XDG_RUNTIME_DIR` or, where it can't be used, the directory for temporary files.
    ///
    /// Peers must see it under the same path: containers need a shared mount. It must be short, because a
    /// socket's path may have 107 bytes and about 35 of them are needed below it.
    #[must_use]
    pub fn socket_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.socket_dir = Some(dir.into());
        self
    }

    /// Serves, and talks to, processes of other users as well. Bytes to and from them are always streamed.
    #[must_use]
    pub fn allow_other_users(mut self, allow: bool) -> Self {
        self.allow_other_users = allow;
        self
    }

    /// How bytes move.
    #[must_use]
    pub fn data_path(mut self, path: DataPath) -> Self {
        self.data_path = path;
        self
    }

    /// What builds the transport on its driver thread.
    pub fn factory(self) -> TransportFactory {
        Box::new(move |context| {
            LocalTransport::new(self, context).map(|transport| Box::new(transport) as Box<dyn Transport>)
        })
    }

    pub(super) fn chosen_socket_dir(&self) -> Option<&Path> {
        self.socket_dir.as_deref()
    }

    pub(super) fn allows_other_users(&self) -> bool {
        self.allow_other_users
    }

    pub(super) fn may_attach(&self) -> bool {
        self.data_path == DataPath::Auto
    }

    pub(super) fn may_copy_directly(&self) -> bool {
        #[cfg(any(test, fuzzing))]
        if self.never_direct {
            return false;
        }
        true
    }
}
