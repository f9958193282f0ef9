//! [`Checkpoint`]: what there is to serve.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::OpenOptions;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use nix::fcntl::OFlag;

use super::MAX_HEADER_BYTES;
use super::error::CheckpointError;
use super::file::{Source, open_regular};
use super::index::Index;
use super::manifest::{Manifest, ManifestTensor};
use super::pages::Pages;
use crate::wire::{Digest, quoted};

/// The names that a folder is searched for.
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// A safetensors checkpoint of one or more files, open and mapped. Clones share the files.
#[derive(Clone)]
pub struct Checkpoint {
    pub(super) files: Arc<[Arc<Opened>]>,
    pub(super) tensors: Arc<[Arc<Entry>]>,
    by_name: Arc<HashMap<String, usize>>,
    metadata: BTreeMap<String, String>,
}

/// A file, and its bytes as memory.
pub(super) struct Opened {
    pub(super) source: Source,
    pub(super) pages: Pages,
}

/// A tensor and where it is.
pub(super) struct Entry {
    pub(super) tensor: ManifestTensor,
    /// Which of the files.
    pub(super) file: usize,
    /// Where it begins in that.
    pub(super) start: u64,
    digest: OnceLock<Digest>,
}

impl Checkpoint {
    /// Opens a safetensors file, the index of several (`….index.json`), or a folder with either under the usual name.
    ///
    /// Headers are read and checked whole; no tensor is read.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Header`], [`CheckpointError::Index`],
    /// [`CheckpointError::Locked`] while another program writes to a file and says so, [`CheckpointError::Changed`] when
    /// one wrote to it meanwhile; [`CheckpointError::Manifest`] for more tensors than a manifest takes (65,536).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        Self::open_with(path.as_ref(), Pages::map, "mapping")
    }

    /// The same with a copy of the files in memory: whatever happens to them then, it is served as it was.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`CheckpointError::Io`] when there is not so much memory.
    pub fn open_a_copy(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        Self::open_with(path.as_ref(), Pages::copy, "copying")
    }

    fn open_with(path: &Path, pages: MakePages, action: &'static str) -> Result<Self, CheckpointError> {
        let mut found = path.to_owned();
        if path.is_dir() {
            found = if path.join(INDEX).exists() { path.join(INDEX) } else { path.join(SINGLE) };
        }
        let mut parts = Parts::default();
        let open = |file: &Path| {
            let (source, header) = Source::open(file)?;
            let pages = pages(source.file(), source.len()).map_err(CheckpointError::io(action, file))?;
            // A copy of half of a change would be served as if it were whole.
            source.check_unchanged()?;
            Ok::<_, CheckpointError>((Opened { source, pages }, header))
        };
        if found.extension().is_some_and(|extension| extension == "json") {
            let index = read_index(&found)?;
            let folder = found.parent().unwrap_or(Path::new("."));
            for (file, names) in index.files {
                let (opened, header) = open(&folder.join(&file))?;
                let there: HashSet<&str> =
                    header.tensors.iter().map(|(tensor, _)| tensor.name.as_str()).collect();
                if let Some(missing) = names.iter().find(|name| !there.contains(name.as_str())) {
                    let reason = format!("{:?} has no tensor {:?}", quoted(&file), quoted(missing));
                    return Err(CheckpointError::Index { path: found, reason });
                }
                let wanted: HashSet<String> = names.into_iter().collect();
                parts.add(opened, header, |name| wanted.contains(name));
            }
        } else {
            let (opened, header) = open(&found)?;
            parts.add(opened, header, |_| true);
        }
        Self::new(parts)
    }

    fn new(parts: Parts) -> Result<Self, CheckpointError> {
        let tensors: Arc<[Arc<Entry>]> = parts.tensors.into();
        let by_name = tensors.iter().enumerate().map(|(at, entry)| (entry.tensor.name.clone(), at)).collect();
        let checkpoint =
            Self { files: parts.files.into(), tensors, by_name: Arc::new(by_name), metadata: parts.metadata };
        // Asks what must hold of all of them together.
        checkpoint.manifest()?;
        Ok(checkpoint)
    }

    /// The same with fewer tensors: those for which `wanted` says so.
    ///
    /// ```no_run
    /// # use connect_core::checkpoint::Checkpoint;
    /// let half = Checkpoint::open("model.safetensors")?.select(|tensor| tensor.name.starts_with("model.layers.0."));
    /// # Ok::<(), connect_core::checkpoint::CheckpointError>(())
    /// ```
    #[must_use]
    pub fn select(&self, wanted: impl Fn(&ManifestTensor) -> bool) -> Self {
        let tensors: Arc<[Arc<Entry>]> =
            self.tensors.iter().filter(|entry| wanted(&entry.tensor)).cloned().collect();
        let by_name = tensors.iter().enumerate().map(|(at, entry)| (entry.tensor.name.clone(), at)).collect();
        Self { tensors, by_name: Arc::new(by_name), ..self.clone() }
    }

    /// The tensors, file by file and in the order in which they lie there.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &ManifestTensor> {
        self.tensors.iter().map(|entry| &entry.tensor)
    }

    /// What the files say of themselves beside their tensors (`__metadata__`).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The names of tensors in groups of at most `bytes`, for offers one after another: a receiver that counts offers
    /// has a progress bar. A larger tensor is a group of its own; tensors without elements are left out.
    pub fn batches(&self, bytes: u64) -> Vec<Vec<&str>> {
        let mut batches: Vec<Vec<&str>> = Vec::new();
        let mut room = 0;
        for tensor in self.tensors().filter(|tensor| tensor.byte_len > 0) {
            match batches.last_mut() {
                Some(batch) if tensor.byte_len <= room => batch.push(&tensor.name),
                _ => {
                    batches.push(vec![&tensor.name]);
                    room = bytes;
                }
            }
            room = room.saturating_sub(tensor.byte_len);
        }
        batches
    }

    /// What a peer needs to know to receive it into a file.
    ///
    /// # Errors
    /// None: [`open`](Self::open) has asked the same.
    pub fn manifest(&self) -> Result<Manifest, CheckpointError> {
        Manifest::new(self.tensors().cloned().collect(), self.metadata.clone())
    }

    /// The same with what the tensors' bytes hash to, so that the receiver can check them, and resume. One pass over
    /// all bytes, once: later calls have the result at hand.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Changed`].
    pub fn manifest_with_digests(&self) -> Result<Manifest, CheckpointError> {
        let digested = self.tensors.iter().map(|entry| {
            let digest = Some(self.digest(entry)?);
            Ok(ManifestTensor { digest, ..entry.tensor.clone() })
        });
        Manifest::new(digested.collect::<Result<_, CheckpointError>>()?, self.metadata.clone())
    }

    /// A tensor's bytes, read from the file.
    ///
    /// # Errors
    /// [`CheckpointError::NoTensor`], [`CheckpointError::Io`].
    pub fn read(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let entry = self.entry(name)?;
        let mut bytes = Vec::new();
        let io = CheckpointError::io("reading", self.files[entry.file].source.path());
        self.reader(entry).read_to_end(&mut bytes).map_err(io)?;
        Ok(bytes)
    }

    /// Whether the files are what they were when they were opened, as far as length and time of the last change tell.
    ///
    /// # Errors
    /// [`CheckpointError::Changed`], [`CheckpointError::Io`].
    pub fn check_unchanged(&self) -> Result<(), CheckpointError> {
        let mut mapped = self.files.iter().filter(|opened| opened.pages.is_mapped());
        mapped.try_for_each(|opened| opened.source.check_unchanged())
    }

    pub(super) fn entry(&self, name: &str) -> Result<&Entry, CheckpointError> {
        let at = self.by_name.get(name).ok_or_else(|| CheckpointError::NoTensor { name: quoted(name) })?;
        Ok(&self.tensors[*at])
    }

    /// What a tensor's bytes hash to; looked at once.
    pub(super) fn digest(&self, entry: &Entry) -> Result<Digest, CheckpointError> {
        if let Some(digest) = entry.digest.get() {
            return Ok(*digest);
        }
        let source = &self.files[entry.file].source;
        let digest =
            Digest::of_reader(self.reader(entry)).map_err(CheckpointError::io("reading", source.path()))?;
        if self.files[entry.file].pages.is_mapped() {
            source.check_unchanged()?;
        }
        Ok(*entry.digest.get_or_init(|| digest))
    }

    fn reader(&self, entry: &Entry) -> Box<dyn Read + '_> {
        let opened = &self.files[entry.file];
        opened.pages.reader(opened.source.file(), entry.start, entry.tensor.byte_len)
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let files: Vec<_> = self.files.iter().map(|opened| opened.source.path()).collect();
        f.debug_struct("Checkpoint").field("files", &files).field("tensors", &self.tensors.len()).finish()
    }
}

type MakePages = fn(&std::fs::File, u64) -> std::io::Result<Pages>;

/// A checkpoint while it is being opened.
#[derive(Default)]
struct Parts {
    files: Vec<Arc<Opened>>,
    tensors: Vec<Arc<Entry>>,
    metadata: BTreeMap<String, String>,
}

impl Parts {
    /// Adds those tensors of a file that are wanted.
    fn add(&mut self, opened: Opened, header: super::header::Header, wanted: impl Fn(&str) -> bool) {
        let (file, data) = (self.files.len(), opened.source.data);
        for (tensor, range) in header.tensors {
            if wanted(&tensor.name) {
                let entry = Entry { tensor, file, start: data + range.start, digest: OnceLock::new() };
                self.tensors.push(Arc::new(entry));
            }
        }
        // The files of one checkpoint say the same; what the first says stands.
        for (key, text) in header.metadata {
            self.metadata.entry(key).or_insert(text);
        }
        self.files.push(Arc::new(opened));
    }
}

fn read_index(path: &Path) -> Result<Index, CheckpointError> {
    let io = |action| CheckpointError::io(action, path);
    let file = open_regular(path, OpenOptions::new().read(true), OFlag::empty()).map_err(io("opening"))?;
    let mut json = Vec::new();
    file.take(MAX_HEADER_BYTES as u64 + 1).read_to_end(&mut json).map_err(io("reading"))?;
    Index::parse(&json).map_err(|reason| CheckpointError::Index { path: path.to_owned(), reason })
}
