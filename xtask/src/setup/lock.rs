//! Two set-ups of one folder wait for each other: pip does not guard a virtual environment itself.

use std::fs::File;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::layout;

/// Holds until dropped; the kernel lets go of it if this process dies.
pub(crate) fn acquire() -> Result<Flock<File>> {
    let path = layout::home().join("lock");
    let file = File::create(&path).with_context(|| format!("could not create {}", path.display()))?;
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, error)) => return Err(error).with_context(|| format!("could not lock {}", path.display())),
    };
    println!("Another set-up is at work in {}; waiting for it", layout::home().display());
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("could not lock {}", path.display()))
}
