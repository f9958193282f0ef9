//! The unfinished file of a download, and who has which part of it: [`Part`] and [`Claim`].

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::fcntl::{FlockArg, OFlag};

use super::error::CheckpointError;
use super::file::{Bytes, Held, open_regular, reserve};
use super::header::{Header, PREFIX};
use super::manifest::{Manifest, ManifestTensor};
use super::pages::Pages;
use crate::driver::Registration;
use crate::wire::{Digest, DigestMismatch, TensorSpec, quoted};

/// What is known of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Missing,
    /// An operation has its bytes.
    InFlight,
    There,
}

/// A file with its header and its whole length, of which not all tensors are there yet.
pub(super) struct Part {
    pub(super) path: PathBuf,
    /// What it is called until it is whole.
    pub(super) unfinished: PathBuf,
    pub(super) file: Held,
    pub(super) pages: Arc<Pages>,
    /// With their places, which count from the start of the file.
    pub(super) tensors: Vec<(ManifestTensor, Range<u64>)>,
    pub(super) by_name: HashMap<String, usize>,
    pub(super) states: Mutex<Vec<State>>,
    pub(super) registration: OnceLock<Registration>,
}

impl Part {
    pub(super) fn new(path: &Path, manifest: &Manifest) -> Result<Self, CheckpointError> {
        let header = Header::lay_out(manifest.tensors(), manifest.metadata());
        let bytes = header.to_bytes().map_err(|reason| CheckpointError::Manifest { reason })?;
        let (data, unfinished) = (bytes.len() as u64, unfinished(path)?);
        let io = |action| CheckpointError::io(action, &unfinished);
        let mut options = OpenOptions::new();
        // Not through a link that somebody else left in the folder.
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        let file = open_regular(&unfinished, &mut options, OFlag::O_NOFOLLOW).map_err(io("opening"))?;
        let file = Held::lock(file, FlockArg::LockExclusiveNonblock, &unfinished)?;
        // Whoever had it until now may have finished, and given it its name.
        let (held, named) =
            (file.metadata().map_err(io("looking at"))?, fs::symlink_metadata(&unfinished).ok());
        if named.is_none_or(|named| (named.dev(), named.ino()) != (held.dev(), held.ino())) {
            return Err(CheckpointError::Locked { path: unfinished });
        }
        let len = data + header.data_len();
        let is_left = is_left(&file, &header, data).map_err(io("reading"))?;
        if !is_left {
            file.set_len(0).map_err(io("cutting"))?;
        }
        reserve(&file, len).map_err(io("making room for"))?;
        if !is_left {
            file.write_all_at(&bytes, 0).map_err(io("writing"))?;
        }
        let pages = Pages::map_writable(&file, len).map_err(io("mapping"))?;
        let tensors: Vec<_> =
            header.tensors.into_iter().map(|(t, at)| (t, data + at.start..data + at.end)).collect();
        let mut states = Vec::new();
        for (tensor, place) in &tensors {
            let is_there = match tensor.digest {
                _ if tensor.byte_len == 0 => true,
                Some(digest) if is_left => digest_of(&file, place).map_err(io("reading"))? == digest,
                _ => false,
            };
            states.push(if is_there { State::There } else { State::Missing });
        }
        let by_name = tensors.iter().enumerate().map(|(at, (tensor, _))| (tensor.name.clone(), at)).collect();
        let (path, pages, states) = (path.to_owned(), Arc::new(pages), Mutex::new(states));
        let registration = OnceLock::new();
        Ok(Self { path, unfinished, file, pages, tensors, by_name, states, registration })
    }

    pub(super) fn states(&self) -> MutexGuard<'_, Vec<State>> {
        // Every change is one assignment.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to the bytes of some tensors, until it is dropped. Those that have not arrived by then are missing again.
pub(super) struct Claim {
    part: Arc<Part>,
    tensors: Vec<usize>,
}

impl Claim {
    pub(super) fn new(part: &Arc<Part>, tensors: Vec<usize>) -> Result<Self, CheckpointError> {
        let mut states = part.states();
        if let Some(&at) = tensors.iter().find(|&&at| states[at] == State::InFlight) {
            return Err(CheckpointError::Busy { name: quoted(&part.tensors[at].0.name) });
        }
        tensors.iter().for_each(|&at| states[at] = State::InFlight);
        drop(states);
        Ok(Self { part: Arc::clone(part), tensors })
    }

    /// Checks what arrived; what is right is there from now on.
    pub(super) fn check(&self, specs: &[TensorSpec]) -> Result<(), CheckpointError> {
        let mut first_wrong = Ok(());
        for (&at, spec) in self.tensors.iter().zip(specs) {
            let (tensor, place) = &self.part.tensors[at];
            if let Some(expected) = tensor.digest.or(spec.digest) {
                let found = digest_of(&self.part.file, place);
                let found = found.map_err(CheckpointError::io("reading", &self.part.unfinished))?;
                if found != expected {
                    let name = quoted(&tensor.name);
                    first_wrong = first_wrong.and(Err(DigestMismatch { name, expected, found }.into()));
                    continue;
                }
            }
            self.part.states()[at] = State::There;
        }
        first_wrong
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut states = self.part.states();
        for &at in &self.tensors {
            let empty = self.part.tensors[at].0.byte_len == 0;
            if states[at] == State::InFlight {
                states[at] = if empty { State::There } else { State::Missing };
            }
        }
    }
}

fn digest_of(file: &File, place: &Range<u64>) -> io::Result<Digest> {
    Digest::of_reader(Bytes::new(file, place.start, place.end - place.start))
}

/// Whether a file is what an earlier download of the same tensors left.
fn is_left(file: &File, header: &Header, data: u64) -> io::Result<bool> {
    if file.metadata()?.len() != data + header.data_len() {
        return Ok(false);
    }
    let mut bytes = vec![0; data as usize];
    file.read_exact_at(&mut bytes, 0)?;
    let (len, json) = bytes.split_at(PREFIX);
    let is_len = len == (json.len() as u64).to_le_bytes();
    // Digests are the manifest's, and not in the file.
    let bare = |header: &Header| -> Vec<_> {
        header.tensors.iter().map(|(t, at)| (t.name.clone(), t.dtype, t.shape.clone(), at.clone())).collect()
    };
    Ok(is_len
        && Header::parse(json)
            .is_ok_and(|left| left.metadata == header.metadata && bare(&left) == bare(header)))
}

/// What a file is called until it is whole.
fn unfinished(path: &Path) -> Result<PathBuf, CheckpointError> {
    let nameless = || io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
    let name = path.file_name().ok_or_else(nameless).map_err(CheckpointError::io("receiving into", path))?;
    let mut part = OsString::from(".");
    part.push(name);
    part.push(".part");
    Ok(path.with_file_name(part))
}
