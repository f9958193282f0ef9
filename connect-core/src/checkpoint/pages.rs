//! Files as memory: the only unsafe code of this module.
//!
//! # The contract that every unsafe block here relies on
//! The pages of a mapping are its until the last [`Arc`] of it is gone, and every operation holds one. No reference to
//! mapped bytes is ever made: they are read and written by the transport, as addresses. Others may change the file
//! behind them; then other bytes travel, or none (the module's docs say what happens), but nothing in this process
//! relies on what they are.
#![expect(unsafe_code, reason = "implements SourceMemory and TargetMemory for mapped files")]

use std::any::Any;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};

use super::file::Bytes;
use crate::pool::Mapping;
use crate::{Device, Region, SourceMemory, TargetMemory};

/// A file as memory.
pub(super) enum Pages {
    /// Its own pages.
    Mapped(MmapRaw),
    /// A copy, which nobody else can reach.
    Copied(Mapping),
}

impl Pages {
    /// Maps a file, to be read by peers.
    pub(super) fn map(file: &File, len: u64) -> io::Result<Self> {
        Ok(Self::Mapped(MmapOptions::new().len(size(len)?).map_raw_read_only(file)?))
    }

    /// Maps a file, to be written by peers.
    pub(super) fn map_writable(file: &File, len: u64) -> io::Result<Self> {
        Ok(Self::Mapped(MmapOptions::new().len(size(len)?).map_raw(file)?))
    }

    /// Reads a file into memory.
    pub(super) fn copy(file: &File, len: u64) -> io::Result<Self> {
        let mapping = Mapping::new(size(len)?).map_err(io::Error::other)?;
        // SAFETY: the mapping is new, and nobody else has it.
        let bytes = unsafe { mapping.bytes_mut(0..size(len)?) };
        Bytes::new(file, 0, len).read_exact(bytes)?;
        Ok(Self::Copied(mapping))
    }

    /// All of it.
    pub(super) fn region(&self) -> Region {
        match self {
            Self::Mapped(map) => {
                let region = Region::new(Device::CPU, map.as_ptr() as u64, map.len() as u64);
                region.expect("the kernel maps neither at zero nor around the end of the address space")
            }
            Self::Copied(mapping) => mapping.region(),
        }
    }

    /// Some of it to be read here: of a file by system calls, because it may be cut.
    pub(super) fn reader<'a>(&'a self, file: &'a File, start: u64, len: u64) -> Box<dyn Read + 'a> {
        match self {
            Self::Mapped(_) => Box::new(Bytes::new(file, start, len)),
            Self::Copied(mapping) => {
                let (start, len) = (start as usize, len as usize);
                // SAFETY: nobody writes to a copy once it is made.
                Box::new(Cursor::new(unsafe { mapping.bytes(start..start + len) }))
            }
        }
    }

    pub(super) fn is_mapped(&self) -> bool {
        matches!(self, Self::Mapped(_))
    }

    /// Writes what arrived to the disk.
    pub(super) fn flush(&self) -> io::Result<()> {
        match self {
            Self::Mapped(map) => map.flush(),
            Self::Copied(_) => Ok(()),
        }
    }
}

fn size(len: u64) -> io::Result<usize> {
    usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
}

/// Parts of files to be read by a peer.
pub(super) struct Readable {
    regions: Vec<Region>,
    _pages: Vec<Arc<dyn Any + Send + Sync>>,
}

impl Readable {
    /// `pages` are, or keep, the [`Pages`] that all regions lie in.
    pub(super) fn new(regions: Vec<Region>, pages: Vec<Arc<dyn Any + Send + Sync>>) -> Self {
        Self { regions, _pages: pages }
    }
}

// SAFETY: the regions lie in the pages held here, which stay where they are; see the module. Nobody in this process
// writes to them.
unsafe impl SourceMemory for Readable {
    fn regions(&self) -> Vec<Region> {
        self.regions.clone()
    }
}

/// Parts of a new file to be written, and what says that nobody else has them.
pub(super) struct Writable<C> {
    regions: Vec<Region>,
    _pages: Arc<Pages>,
    pub(super) claim: C,
}

impl<C> Writable<C> {
    /// `claim` lives as long as this, and while it does no other part of this program is given the same regions.
    pub(super) fn new(regions: Vec<Region>, pages: Arc<Pages>, claim: C) -> Self {
        Self { regions, _pages: pages, claim }
    }
}

// SAFETY: the regions lie in the pages held here, which stay where they are; see the module. The claim keeps other
// operations of this program off them, and they are bytes, which take any pattern.
unsafe impl<C: Send + 'static> TargetMemory for Writable<C> {
    fn regions(&mut self) -> Vec<Region> {
        self.regions.clone()
    }
}
