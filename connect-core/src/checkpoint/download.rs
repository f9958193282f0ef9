//! [`Download`]: tensors received straight into a new safetensors file.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::fcntl::{FlockArg, OFlag};

use super::error::CheckpointError;
use super::file::{Bytes, Held, open_regular, reserve};
use super::header::{Header, PREFIX};
use super::manifest::{Manifest, ManifestTensor};
use super::pages::{Pages, Writable};
use crate::connector::Connector;
use crate::driver::Registration;
use crate::error::Error;
use crate::layout;
use crate::op::Report;
use crate::task::Task;
use crate::wire::{Digest, DigestMismatch, TensorEnvelope, TensorSpec, quoted};

/// A safetensors file that is being received.
///
/// Until [`finish`](Self::finish) it has another name (`.<name>.part` in the same folder), with its header and its
/// whole length from the start. Dropping it keeps that file, and a later [`begin`](Self::begin) goes on with it.
pub struct Download {
    shared: Arc<Shared>,
    connector: Connector,
}

/// How far a download is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of the tensors that are there.
    pub bytes: u64,
    /// Bytes of all tensors.
    pub total_bytes: u64,
    /// Tensors that are there.
    pub tensors: usize,
    /// All tensors.
    pub total_tensors: usize,
}

/// What is known of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Missing,
    /// An operation has its bytes.
    InFlight,
    There,
}

struct Shared {
    path: PathBuf,
    part: PathBuf,
    file: Held,
    pages: Arc<Pages>,
    /// With their places, which count from the start of the file.
    tensors: Vec<(ManifestTensor, Range<u64>)>,
    by_name: HashMap<String, usize>,
    states: Mutex<Vec<State>>,
    registration: OnceLock<Registration>,
}

impl Download {
    /// Makes the file for a manifest's tensors, or goes on with one that was left: of that, tensors are there whose
    /// bytes hash to what the manifest says.
    ///
    /// This reads what was left, on the calling thread.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], also when the disk has no room for all of it; [`CheckpointError::Locked`] while another
    /// download has the file; [`CheckpointError::Manifest`] for tensors that no safetensors file can hold;
    /// [`CheckpointError::Operation`].
    pub fn begin(
        connector: &Connector,
        path: impl AsRef<Path>,
        manifest: &Manifest,
    ) -> Task<Self, CheckpointError> {
        let shared = match Shared::new(path.as_ref(), manifest) {
            Ok(shared) => Arc::new(shared),
            Err(error) => return Task::ready(Err(error)),
        };
        let (region, owner) = (shared.pages.region(), Arc::clone(&shared.pages) as _);
        let (registration, registered) = connector.register(region, owner);
        // Set once, here. The claim of an operation keeps it, so that it outlives the transfer.
        let _ = shared.registration.set(registration);
        let download = Self { shared, connector: connector.clone() };
        Task::after(registered, |registered| {
            Task::ready(registered.map(|()| download).map_err(CheckpointError::from))
        })
    }

    /// Reads the tensors that a peer offers into their places. Tensors with a digest, in the envelope or in the
    /// manifest, are checked on the thread that waits or polls, and count as there only then.
    ///
    /// # Errors
    /// [`CheckpointError::NoTensor`], [`CheckpointError::Mismatch`] and [`CheckpointError::Busy`] before anything was
    /// transferred; [`CheckpointError::Digest`]; [`CheckpointError::Operation`]. What did not arrive stays missing.
    pub fn receive(&self, envelope: &TensorEnvelope) -> Task<Report, CheckpointError> {
        let (target, wanted) = match self.target(envelope) {
            Ok(target) => target,
            Err(error) => return Task::ready(Err(error)),
        };
        Task::after(self.connector.begin_read(envelope.metadata(), target), move |begun| match begun {
            Ok(operation) => Task::after(operation.wait_for_completion(), move |ended| {
                let received = ended.map_err(|failed| CheckpointError::from(failed.error));
                Task::ready(received.and_then(|received| {
                    received.memory.claim.check(&wanted)?;
                    Ok(received.report)
                }))
            }),
            Err(failed) => Task::ready(Err(failed.error.into())),
        })
    }

    /// The tensors that are not there yet: what to ask a peer for.
    pub fn missing(&self) -> Vec<&str> {
        let states = self.shared.states();
        let tensors = self.shared.tensors.iter().zip(&*states);
        tensors.filter(|(_, state)| **state != State::There).map(|((t, _), _)| t.name.as_str()).collect()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let states = self.shared.states();
        let there = || {
            let tensors = self.shared.tensors.iter().zip(&*states);
            tensors.filter(|(_, state)| **state == State::There).map(|((tensor, _), _)| tensor.byte_len)
        };
        Progress {
            bytes: there().sum(),
            total_bytes: self.shared.tensors.iter().map(|(tensor, _)| tensor.byte_len).sum(),
            tensors: there().count(),
            total_tensors: states.len(),
        }
    }

    /// Writes everything to the disk, and gives the file its name; one of that name is replaced. Blocks.
    ///
    /// # Errors
    /// [`CheckpointError::Incomplete`], [`CheckpointError::Io`]. The file keeps its other name then.
    pub fn finish(self) -> Result<PathBuf, CheckpointError> {
        if let [first, ..] = self.missing()[..] {
            return Err(CheckpointError::Incomplete { count: self.missing().len(), first: quoted(first) });
        }
        let Shared { path, part, file, pages, .. } = &*self.shared;
        let written = pages.flush().and_then(|()| file.sync_all());
        written.map_err(CheckpointError::io("writing", part))?;
        fs::rename(part, path).map_err(CheckpointError::io("renaming to", path))?;
        // The name is on the disk only with the folder.
        let folder = folder(path);
        File::open(folder).and_then(|f| f.sync_all()).map_err(CheckpointError::io("writing", folder))?;
        Ok(path.clone())
    }

    /// Memory for an envelope's tensors, and which they are.
    fn target(
        &self,
        envelope: &TensorEnvelope,
    ) -> Result<(Writable<Claim>, Vec<TensorSpec>), CheckpointError> {
        let whole = self.shared.pages.region();
        let peer: Vec<u64> = envelope.metadata().descriptors().iter().map(|d| d.size()).collect();
        let (mut regions, mut claimed) = (Vec::new(), Vec::new());
        for spec in envelope.tensors() {
            let name = || quoted(&spec.name);
            let at = *self
                .shared
                .by_name
                .get(&spec.name)
                .ok_or_else(|| CheckpointError::NoTensor { name: name() })?;
            let (tensor, place) = &self.shared.tensors[at];
            if let Some(reason) = difference(tensor, spec) {
                return Err(CheckpointError::Mismatch { name: name(), reason });
            }
            if spec.byte_len > 0 {
                let region = whole.slice(place.clone()).map_err(Error::from)?;
                let pieces = layout::split_to_match(&[region], &peer[spec.descriptors()]);
                let reason = |error: layout::LayoutError| CheckpointError::Mismatch {
                    name: name(),
                    reason: error.to_string(),
                };
                regions.extend(pieces.map_err(reason)?);
            }
            claimed.push(at);
        }
        let claim = Claim::new(&self.shared, claimed)?;
        Ok((Writable::new(regions, Arc::clone(&self.shared.pages), claim), envelope.tensors().to_vec()))
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = self.progress();
        f.debug_struct("Download").field("path", &self.shared.path).field("progress", &progress).finish()
    }
}

impl Shared {
    fn new(path: &Path, manifest: &Manifest) -> Result<Self, CheckpointError> {
        let header = Header::lay_out(manifest.tensors(), manifest.metadata());
        let bytes = header.to_bytes().map_err(|reason| CheckpointError::Manifest { reason })?;
        let (data, part) = (bytes.len() as u64, part(path)?);
        let io = |action| CheckpointError::io(action, &part);
        let mut options = OpenOptions::new();
        // Not through a link that somebody else left in the folder.
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        let file = open_regular(&part, &mut options, OFlag::O_NOFOLLOW).map_err(io("opening"))?;
        let file = Held::lock(file, FlockArg::LockExclusiveNonblock, &part)?;
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
        Ok(Self { path, part, file, pages, tensors, by_name, states, registration })
    }

    fn states(&self) -> MutexGuard<'_, Vec<State>> {
        // Every change is one assignment.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to the bytes of some tensors, until it is dropped. Those that have not arrived by then are missing again.
struct Claim {
    shared: Arc<Shared>,
    tensors: Vec<usize>,
}

impl Claim {
    fn new(shared: &Arc<Shared>, tensors: Vec<usize>) -> Result<Self, CheckpointError> {
        let mut states = shared.states();
        if let Some(&at) = tensors.iter().find(|&&at| states[at] == State::InFlight) {
            return Err(CheckpointError::Busy { name: quoted(&shared.tensors[at].0.name) });
        }
        tensors.iter().for_each(|&at| states[at] = State::InFlight);
        drop(states);
        Ok(Self { shared: Arc::clone(shared), tensors })
    }

    /// Checks what arrived; what is right is there from now on.
    fn check(&self, specs: &[TensorSpec]) -> Result<(), CheckpointError> {
        let mut first_wrong = Ok(());
        for (&at, spec) in self.tensors.iter().zip(specs) {
            let (tensor, place) = &self.shared.tensors[at];
            if let Some(expected) = tensor.digest.or(spec.digest) {
                let found = digest_of(&self.shared.file, place);
                let found = found.map_err(CheckpointError::io("reading", &self.shared.part))?;
                if found != expected {
                    let name = quoted(&tensor.name);
                    first_wrong = first_wrong.and(Err(DigestMismatch { name, expected, found }.into()));
                    continue;
                }
            }
            self.shared.states()[at] = State::There;
        }
        first_wrong
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut states = self.shared.states();
        for &at in &self.tensors {
            let empty = self.shared.tensors[at].0.byte_len == 0;
            if states[at] == State::InFlight {
                states[at] = if empty { State::There } else { State::Missing };
            }
        }
    }
}

/// What an offered tensor differs in from the one that is expected.
fn difference(expected: &ManifestTensor, offered: &TensorSpec) -> Option<String> {
    if expected.dtype != offered.dtype {
        return Some(format!("it has {} elements instead of {}", offered.dtype, expected.dtype));
    }
    if expected.shape != offered.shape {
        return Some(format!("it has shape {:?} instead of {:?}", offered.shape, expected.shape));
    }
    match (expected.digest, offered.digest) {
        (Some(expected), Some(offered)) if expected != offered => {
            Some("its bytes hash to something else".to_owned())
        }
        _ => None,
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
fn part(path: &Path) -> Result<PathBuf, CheckpointError> {
    let nameless = || io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
    let name = path.file_name().ok_or_else(nameless).map_err(CheckpointError::io("receiving into", path))?;
    let mut part = OsString::from(".");
    part.push(name);
    part.push(".part");
    Ok(path.with_file_name(part))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
