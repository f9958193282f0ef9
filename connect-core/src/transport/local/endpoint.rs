//! Where peers find this connector: [`Endpoint`], a listening socket in a private directory; and [`dial`].

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use uuid::Uuid;

use super::blob::MAX_PATH;
use super::config::LocalConfig;
use crate::transport::TransportError;

/// What the private directories begin with.
const PREFIX: &str = "connect-local-";

/// The socket's name inside its directory.
const SOCKET: &str = "socket";

/// A listening socket. Dropping it removes it from the file system.
#[derive(Debug)]
pub(super) struct Endpoint {
    listener: UnixListener,
    dir: PathBuf,
    /// A forked child that drops its copy must not remove the parent's socket.
    owner: u32,
    /// Given up for a moment when file descriptors run out, see [`accept`](Self::accept).
    spare: Option<fs::File>,
}

impl Endpoint {
    pub(super) fn new(config: &LocalConfig) -> Result<Self, TransportError> {
        let bases = match config.chosen_socket_dir() {
            Some(dir) => vec![dir.to_owned()],
            // The first is private, on a file system in memory and cleaned at log-out, but only set in a
            // session; the last is for a temporary directory with a very long path.
            None => std::env::var_os("XDG_RUNTIME_DIR")
                .map(PathBuf::from)
                .into_iter()
                .filter(|dir| dir.is_absolute())
                .chain([std::env::temp_dir(), PathBuf::from("/tmp")])
                .collect(),
        };
        let mut failures = String::new();
        for base in bases {
            match Self::below(&base, config.allows_other_users()) {
                Ok(endpoint) => return Ok(endpoint),
                Err(error) => failures += &format!("{}{}: {error}", separator(&failures), base.display()),
            }
        }
        Err(TransportError::Resource { what: "making a socket for peers", reason: failures })
    }

    fn below(base: &Path, others: bool) -> io::Result<Self> {
        let base = std::path::absolute(base)?;
        let dir = base.join(format!("{PREFIX}{}", Uuid::new_v4().simple()));
        if dir.as_os_str().len() + 1 + SOCKET.len() > MAX_PATH {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("too long: a socket's path may have {MAX_PATH} bytes"),
            ));
        }
        let (dir_mode, socket_mode) = if others { (0o711, 0o666) } else { (0o700, 0o600) };
        DirBuilder::new().mode(dir_mode).create(&dir)?;
        let bind = || {
            // The process's umask may have taken bits away.
            fs::set_permissions(&dir, Permissions::from_mode(dir_mode))?;
            let listener = UnixListener::bind(dir.join(SOCKET))?;
            fs::set_permissions(dir.join(SOCKET), Permissions::from_mode(socket_mode))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        match bind() {
            Ok(listener) => Ok(Self { listener, dir, owner: std::process::id(), spare: spare() }),
            Err(error) => {
                remove(&dir);
                Err(error)
            }
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The next connection, if one waits.
    ///
    /// When the process has no file descriptor left, a waiting connection would keep the listener ready and
    /// the driver spinning. So one descriptor is kept in reserve, to accept it and hang up.
    pub(super) fn accept(&mut self) -> Option<UnixStream> {
        match self.listener.accept() {
            Ok((stream, _)) => Some(stream),
            Err(error) if is_out_of_descriptors(&error) && self.spare.take().is_some() => {
                tracing::warn!(%error, "no file descriptor left: a peer's connection was closed");
                drop(self.listener.accept());
                self.spare = spare();
                None
            }
            Err(_) => None,
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if self.owner == std::process::id() {
            remove(&self.dir);
        }
    }
}

/// Connects without waiting.
pub(super) fn dial(path: &Path) -> Result<OwnedFd, TransportError> {
    let resource = |error| TransportError::resource("connecting to a peer", error);
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(resource)?;
    let address = UnixAddr::new(path).map_err(resource)?;
    match connect(socket.as_raw_fd(), &address) {
        Ok(()) => Ok(socket),
        Err(error @ (Errno::ENOENT | Errno::ECONNREFUSED | Errno::ENOTDIR)) => {
            Err(TransportError::PeerLost(format!(
                "nobody listens at {}: the process has ended, or its files are not visible from here ({error})",
                path.display()
            )))
        }
        Err(error) => Err(TransportError::Resource {
            what: "connecting to a peer",
            reason: format!("{}: {error}", path.display()),
        }),
    }
}

fn spare() -> Option<fs::File> {
    fs::File::open("/dev/null").ok()
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE))
}

/// Best effort: what is left behind is an empty directory, and there is nobody to tell.
fn remove(dir: &Path) {
    let _ = fs::remove_file(dir.join(SOCKET));
    let _ = fs::remove_dir(dir);
}

fn separator(text: &str) -> &'static str {
    if text.is_empty() { "" } else { "; " }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_private_and_vanishes_on_drop() {
        let endpoint = Endpoint::new(&LocalConfig::default()).unwrap();
        let path = endpoint.path();
        let mode = fs::metadata(path.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        drop(dial(&path).unwrap());
        drop(endpoint);
        assert!(!path.parent().unwrap().exists());
        assert!(matches!(dial(&path), Err(TransportError::PeerLost(_))));
    }

    #[test]
    fn a_directory_that_is_too_deep_is_refused_with_its_reason() {
        let config = LocalConfig::default().socket_dir("/tmp/".to_owned() + &"d".repeat(100));
        let error = Endpoint::new(&config).unwrap_err().to_string();
        assert!(error.contains("too long"), "{error}");
    }
}
