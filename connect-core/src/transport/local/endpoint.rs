//! Where peers find this connector: [`Endpoint`], a listening socket in a private directory; and [`dial`].

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::geteuid;
use uuid::Uuid;

use super::blob::MAX_PATH;
use super::config::LocalConfig;
use crate::transport::TransportError;

/// What the private directories begin with.
const PREFIX: &str = "connect-local-";

/// The socket's name inside its directory.
const SOCKET: &str = "socket";

/// Entries looked at for what killed connectors left: a temporary directory may hold a great many others.
const SWEPT: usize = 4096;

/// A directory younger than this may not be locked yet: its maker does so within microseconds.
const SETTLED: Duration = Duration::from_secs(10);

/// A listening socket. Dropping it removes it from the file system.
#[derive(Debug)]
pub(super) struct Endpoint {
    listener: UnixListener,
    dir: PathBuf,
    /// A forked child that drops its copy must not remove the parent's socket.
    owner: u32,
    /// Tells other connectors that this directory is in use, see [`sweep`]. The kernel lets go of it however
    /// this process ends.
    _lock: Flock<fs::File>,
    /// Given up for a moment when file descriptors run out, see [`accept`](Self::accept).
    spare: Option<fs::File>,
}

impl Endpoint {
    pub(super) fn new(config: &LocalConfig) -> Result<Self, TransportError> {
        let bases = match config.chosen_socket_dir() {
            Some(dir) => vec![dir.to_owned()],
            // The first is on a file system in memory and cleaned at log-out, but only set in a session and
            // closed to other users; the last is for a temporary directory with a very long path.
            None => std::env::var_os("XDG_RUNTIME_DIR")
                .map(PathBuf::from)
                .into_iter()
                .filter(|dir| dir.is_absolute() && !config.allows_other_users())
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
        sweep(&base);
        DirBuilder::new().mode(dir_mode).create(&dir)?;
        let bind = || {
            let lock = lock(&dir)?;
            // The process's umask may have taken bits away.
            fs::set_permissions(&dir, Permissions::from_mode(dir_mode))?;
            let listener = UnixListener::bind(dir.join(SOCKET))?;
            fs::set_permissions(dir.join(SOCKET), Permissions::from_mode(socket_mode))?;
            listener.set_nonblocking(true)?;
            Ok((listener, lock))
        };
        match bind() {
            Ok((listener, lock)) => {
                Ok(Self { listener, dir, owner: std::process::id(), _lock: lock, spare: spare() })
            }
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
        Err(Errno::EACCES | Errno::EPERM) => Err(TransportError::Refused(format!(
            "{} is closed to this user; the peer must allow other users",
            path.display()
        ))),
        Err(error) => Err(TransportError::Resource {
            what: "connecting to a peer",
            reason: format!("{}: {error}", path.display()),
        }),
    }
}

/// Removes what connectors of this user left in `base` that were killed. Best effort.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.take(SWEPT).flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // A symbolic link is not a directory here. Another user's can't be removed, so is not looked at.
        let Ok(metadata) = entry.metadata() else { continue };
        let ours = metadata.is_dir() && metadata.uid() == geteuid().as_raw();
        let old = metadata.modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age > SETTLED));
        if ours && old && lock(&entry.path()).is_ok() {
            remove(&entry.path());
        }
    }
}

fn lock(dir: &Path) -> io::Result<Flock<fs::File>> {
    Flock::lock(fs::File::open(dir)?, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into())
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
    fn what_a_killed_connector_left_is_removed_by_the_next() {
        let base = std::env::temp_dir().join(format!("sweep-{}", Uuid::new_v4().simple()));
        fs::create_dir(&base).unwrap();
        let config = LocalConfig::default().socket_dir(&base);
        let live = Endpoint::new(&config).unwrap();
        let (left, fresh) = (base.join(format!("{PREFIX}left")), base.join(format!("{PREFIX}fresh")));
        for dir in [&left, &fresh] {
            fs::create_dir(dir).unwrap();
            drop(UnixListener::bind(dir.join(SOCKET)).unwrap());
        }
        let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        for dir in [&left, &live.dir] {
            fs::File::open(dir).unwrap().set_modified(hour_ago).unwrap();
        }
        let next = Endpoint::new(&config).unwrap();
        assert!(!left.exists() && fresh.exists() && live.path().exists());
        drop((live, next));
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn a_directory_that_is_too_deep_is_refused_with_its_reason() {
        let config = LocalConfig::default().socket_dir("/tmp/".to_owned() + &"d".repeat(100));
        let error = Endpoint::new(&config).unwrap_err().to_string();
        assert!(error.contains("too long"), "{error}");
    }
}
