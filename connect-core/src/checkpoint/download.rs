//! [`Download`]: tensors received straight into a new safetensors file.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::CheckpointError;
use super::manifest::{Manifest, ManifestTensor};
use super::pages::Writable;
use super::part::{Claim, Part, State};
use crate::accelerator::Accelerators;
use crate::connector::Connector;
use crate::error::Error;
use crate::layout::{self, LayoutError};
use crate::op::Report;
use crate::task::Task;
use crate::wire::{TensorEnvelope, TensorSpec, quoted};

/// A safetensors file that is being received.
///
/// Until [`finish`](Self::finish) it has another name (`.<name>.part` in the same folder), with its header and its
/// whole length from the start. Dropping it keeps that file, and a later [`begin`](Self::begin) goes on with it.
pub struct Download {
    part: Arc<Part>,
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
        let part = match Part::new(path.as_ref(), manifest) {
            Ok(part) => Arc::new(part),
            Err(error) => return Task::ready(Err(error)),
        };
        let (region, owner) = (part.pages.region(), Arc::clone(&part.pages) as _);
        let (registration, registered) = connector.register(region, Accelerators::new(), owner);
        // Set once, here. The claim of an operation keeps it, so that it outlives the transfer.
        let _ = part.registration.set(registration);
        let download = Self { part, connector: connector.clone() };
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
        let states = self.part.states();
        let tensors = self.part.tensors.iter().zip(&*states);
        tensors.filter(|(_, state)| **state != State::There).map(|((t, _), _)| t.name.as_str()).collect()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let states = self.part.states();
        let there = || {
            let tensors = self.part.tensors.iter().zip(&*states);
            tensors.filter(|(_, state)| **state == State::There).map(|((tensor, _), _)| tensor.byte_len)
        };
        Progress {
            bytes: there().sum(),
            total_bytes: self.part.tensors.iter().map(|(tensor, _)| tensor.byte_len).sum(),
            tensors: there().count(),
            total_tensors: states.len(),
        }
    }

    /// Writes everything to the disk, and gives the file its name; one of that name is replaced. Blocks.
    ///
    /// # Errors
    /// [`CheckpointError::Incomplete`], [`CheckpointError::Io`]. The file keeps its other name then; unless the action is
    /// "writing the name into": then it has its name, which a power cut may take from it again.
    pub fn finish(self) -> Result<PathBuf, CheckpointError> {
        if let [first, ..] = self.missing()[..] {
            return Err(CheckpointError::Incomplete { count: self.missing().len(), first: quoted(first) });
        }
        let Part { path, unfinished, file, pages, .. } = &*self.part;
        let written = pages.flush().and_then(|()| file.sync_all());
        written.map_err(CheckpointError::io("writing", unfinished))?;
        // The name is on the disk only with the folder.
        let folder = folder(path);
        let opened = File::open(folder).map_err(CheckpointError::io("opening", folder))?;
        fs::rename(unfinished, path).map_err(CheckpointError::io("renaming to", path))?;
        opened.sync_all().map_err(CheckpointError::io("writing the name into", folder))?;
        Ok(path.clone())
    }

    /// Memory for an envelope's tensors, and which they are.
    fn target(
        &self,
        envelope: &TensorEnvelope,
    ) -> Result<(Writable<Claim>, Vec<TensorSpec>), CheckpointError> {
        let whole = self.part.pages.region();
        let peer: Vec<u64> = envelope.metadata().descriptors().iter().map(|d| d.size()).collect();
        let (mut regions, mut claimed) = (Vec::new(), Vec::new());
        for spec in envelope.tensors() {
            let name = || quoted(&spec.name);
            let at = *self
                .part
                .by_name
                .get(&spec.name)
                .ok_or_else(|| CheckpointError::NoTensor { name: name() })?;
            let (tensor, place) = &self.part.tensors[at];
            if let Some(reason) = difference(tensor, spec) {
                return Err(CheckpointError::Mismatch { name: name(), reason });
            }
            if spec.byte_len > 0 {
                let region = whole.slice(place.clone()).map_err(Error::from)?;
                let pieces = layout::split_to_match(&[region], &peer[spec.descriptors()]);
                let reason = |error: LayoutError| CheckpointError::Mismatch {
                    name: name(),
                    reason: error.to_string(),
                };
                regions.extend(pieces.map_err(reason)?);
            }
            claimed.push(at);
        }
        let claim = Claim::new(&self.part, claimed)?;
        Ok((Writable::new(regions, Arc::clone(&self.part.pages), claim), envelope.tensors().to_vec()))
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = self.progress();
        f.debug_struct("Download").field("path", &self.part.path).field("progress", &progress).finish()
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

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
