//! One safetensors file that is open to be read: [`Source`].

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::ops::Deref;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, posix_fallocate};
use nix::sys::statvfs::fstatvfs;

use super::error::CheckpointError;
use super::header::{Header, MAX_HEADER_BYTES, PREFIX};

/// An open file and what it was when it was opened.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    file: Held,
    stamp: Stamp,
    /// Where its data begins.
    pub(super) data: u64,
}

/// What changes when a file is written to or cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { len: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

impl Source {
    /// Opens a file, locks it against those who ask before they write, and reads its header.
    pub(super) fn open(path: &Path) -> Result<(Self, Header), CheckpointError> {
        let io = |action| CheckpointError::io(action, path);
        let file =
            open_regular(path, OpenOptions::new().read(true), OFlag::empty()).map_err(io("opening"))?;
        let file = Held::lock(file, FlockArg::LockSharedNonblock, path)?;
        let stamp = Stamp::of(&file.metadata().map_err(io("looking at"))?);
        let damaged = |reason| CheckpointError::Header { path: path.to_owned(), reason };
        let mut prefix = [0; PREFIX];
        if stamp.len < PREFIX as u64 {
            return Err(damaged(format!("it has {} bytes", stamp.len)));
        }
        file.read_exact_at(&mut prefix, 0).map_err(io("reading"))?;
        let (len, rest) = (u64::from_le_bytes(prefix), stamp.len - PREFIX as u64);
        if len > rest || len > MAX_HEADER_BYTES as u64 {
            let reason = format!("its header claims {len} bytes of {rest}, and may have {MAX_HEADER_BYTES}");
            return Err(damaged(reason));
        }
        let mut json = vec![0; len as usize];
        file.read_exact_at(&mut json, PREFIX as u64).map_err(io("reading"))?;
        let header = Header::parse(&json).map_err(damaged)?;
        let (has, needs) = (rest - len, header.data_len());
        if has != needs {
            return Err(damaged(format!("its tensors take {needs} bytes, and there are {has}")));
        }
        Ok((Self { path: path.to_owned(), file, stamp, data: PREFIX as u64 + len }, header))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn len(&self) -> u64 {
        self.stamp.len
    }

    /// # Errors
    /// [`CheckpointError::Changed`].
    pub(super) fn check_unchanged(&self) -> Result<(), CheckpointError> {
        let now = Stamp::of(&self.file.metadata().map_err(CheckpointError::io("looking at", &self.path))?);
        let reason = match () {
            () if now.len != self.stamp.len => format!("it had {} bytes and has {}", self.stamp.len, now.len),
            () if now.modified != self.stamp.modified => "it was written to".to_owned(),
            () => return Ok(()),
        };
        Err(CheckpointError::Changed { path: self.path.clone(), reason })
    }
}

/// Opens what is a file and nothing else: a pipe of that name would be waited for without end.
pub(super) fn open_regular(path: &Path, options: &mut OpenOptions, flags: OFlag) -> io::Result<File> {
    let file = options.custom_flags((OFlag::O_NONBLOCK | flags).bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// A file, locked where its file system knows locks.
#[derive(Debug)]
pub(super) enum Held {
    /// Always some, until it is dropped.
    Locked(Option<Flock<File>>),
    /// Some network file systems have no locks. What the docs say of other programs then holds for all of them.
    Unlocked(File),
}

impl Held {
    /// Takes an advisory lock, or says that somebody has it.
    pub(super) fn lock(file: File, how: FlockArg, path: &Path) -> Result<Self, CheckpointError> {
        match Flock::lock(file, how) {
            Ok(locked) => Ok(Self::Locked(Some(locked))),
            Err((_, Errno::EWOULDBLOCK)) => Err(CheckpointError::Locked { path: path.to_owned() }),
            Err((file, Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::ENOLCK)) => {
                tracing::warn!(path = %path.display(), "its file system has no locks; nothing keeps others off it");
                Ok(Self::Unlocked(file))
            }
            Err((_, error)) => Err(CheckpointError::io("locking", path)(error.into())),
        }
    }
}

impl Drop for Held {
    /// `Flock` panics when a file system refuses to unlock, and a driver thread may be the one that drops this.
    fn drop(&mut self) {
        if let Self::Locked(locked) = self
            && let Some(Err((locked, error))) = locked.take().map(Flock::unlock)
        {
            tracing::warn!(%error, "a file can't be unlocked; it stays open");
            std::mem::forget(locked);
        }
    }
}

impl Deref for Held {
    type Target = File;

    fn deref(&self) -> &File {
        match self {
            Self::Locked(file) => file.as_ref().expect("it is dropped once"),
            Self::Unlocked(file) => file,
        }
    }
}

/// Some bytes of a file, read by system calls: one that was cut is an error and no signal.
pub(super) struct Bytes<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl<'a> Bytes<'a> {
    pub(super) fn new(file: &'a File, start: u64, len: u64) -> Self {
        Self { file, at: start, end: start + len }
    }
}

impl Read for Bytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min((self.end - self.at).try_into().unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        if read == 0 && wanted > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file was cut"));
        }
        self.at += read as u64;
        Ok(read)
    }
}

/// Makes a file that long, with its blocks: a full disk is an error now, and not a signal when the first byte arrives, where
/// the file system writes in place.
pub(super) fn reserve(file: &File, len: u64) -> io::Result<()> {
    let signed = i64::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    // Asked first: a file system that runs out of blocks on the way keeps those that it gave.
    let (disk, has) = (fstatvfs(file)?, file.metadata()?.blocks() * BLOCK);
    if len.saturating_sub(has) > disk.blocks_available().saturating_mul(disk.fragment_size()) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    loop {
        match posix_fallocate(file, 0, signed) {
            // A signal that somebody handles, such as a profiler's.
            Err(Errno::EINTR) => {}
            done => return Ok(done?),
        }
    }
}

/// What `st_blocks` counts.
const BLOCK: u64 = 512;
