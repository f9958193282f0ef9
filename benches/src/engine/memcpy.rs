//! What a thread of one process can copy: the ceiling of everything that copies once.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Active, Offers};
use crate::{Load, Pieces, Samples};

/// Both sides at once.
#[derive(Default)]
pub(super) struct Memcpy {
    source: Option<Pieces>,
    targets: Vec<Pieces>,
}

impl Active for Memcpy {
    fn prepare(&mut self, load: &Load) -> Result<()> {
        self.source = Some(Pieces::source(load.size, load.descriptors));
        self.targets = vec![Pieces::target(load.size, load.descriptors)];
        Ok(())
    }

    fn offer(&mut self) -> Result<Offers> {
        Ok(Offers::default())
    }

    fn burst(&mut self, reads: &mut Samples) -> Result<()> {
        let source = self.source.as_ref().context("prepared")?;
        let started = Instant::now();
        for (from, to) in source.slices().zip(self.targets[0].slices_mut()) {
            to.copy_from_slice(black_box(from));
        }
        black_box(&self.targets);
        reads.push(started.elapsed());
        Ok(())
    }

    fn learned(&mut self) -> Result<Option<Duration>> {
        Ok(None)
    }

    fn targets(&mut self) -> &mut [Pieces] {
        &mut self.targets
    }

    fn release(&mut self) -> Result<()> {
        *self = Self::default();
        Ok(())
    }

    fn passive(&self) -> Option<u32> {
        None
    }
}
