//! A folder as a side channel: a file for each document.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;
use uuid::Uuid;

use super::channel::{ChannelError, SideChannel};
use crate::wire::MAX_ENVELOPE_BYTES;

/// Files are called by their key's hash, which is as long for every key and has no slashes, and the time at which they
/// were put. One that is being written or was taken begins with a dot; renaming is what makes both happen at once.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        // It may have been there. Who else can write to it could put documents into it, which would be believed.
        let found = fs::metadata(path)?;
        if found.uid() != nix::unistd::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            let path = path.display();
            let reason = format!(
                "{path} is another user's, or others can write to it; remedy: chmod 700, or a folder of your own"
            );
            return Err(io::Error::new(ErrorKind::PermissionDenied, reason));
        }
        Ok(Self(path.to_owned()))
    }

    fn own(&self) -> PathBuf {
        self.0.join(format!(".{}", Uuid::new_v4()))
    }

    fn read_and_remove(path: &Path) -> Result<String, ChannelError> {
        let mut document = String::new();
        // What is no file is not waited for.
        let flags = (OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let read =
            opened.and_then(|file| file.take(MAX_ENVELOPE_BYTES as u64 + 1).read_to_string(&mut document));
        fs::remove_file(path)?;
        read?;
        Ok(document)
    }
}

impl SideChannel for Folder {
    fn put(&self, key: &str, document: &str) -> Result<(), ChannelError> {
        let written = self.own();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("{}-{:020}-{}", prefix(key), since.as_nanos(), Uuid::new_v4());
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&written)?;
        let put = file.write_all(document.as_bytes()).and_then(|()| fs::rename(&written, self.0.join(name)));
        if put.is_err() {
            let _ = fs::remove_file(&written); // the first error is the one to tell
        }
        Ok(put?)
    }

    fn take(&self, key: &str) -> Result<Option<String>, ChannelError> {
        let prefix = prefix(key);
        let names = fs::read_dir(&self.0)?.map(|entry| Ok(entry?.file_name()));
        let mut names: Vec<_> = names.collect::<io::Result<_>>()?;
        names.retain(|name| name.to_str().is_some_and(|name| name.starts_with(&prefix)));
        names.sort_unstable();
        for name in names {
            let taken = self.own();
            match fs::rename(self.0.join(name), &taken) {
                Ok(()) => return Self::read_and_remove(&taken).map(Some),
                // Somebody else was faster.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}

fn prefix(key: &str) -> String {
    blake3::hash(key.as_bytes()).to_hex().to_string()
}
