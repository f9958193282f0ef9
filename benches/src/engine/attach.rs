//! Cross-memory attach with nothing around it: the kernel copies from one process into another, and nobody is
//! told. What the embedded transport is made of.

use std::io::IoSliceMut;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::passive::{self, Ask, Spots};
use super::{Active, Engine, Offers};
use crate::lines::{Lines, answer, questions};
use crate::{Load, Pieces, Samples};

/// Pieces in one system call: the kernel's own limit (`UIO_MAXIOV`).
const MOST_PIECES: usize = 1024;

/// The active side.
pub(super) struct Attach {
    passive: Lines,
    remote: Vec<RemoteIoVec>,
    targets: Vec<Pieces>,
}

impl Attach {
    pub(super) fn start() -> Result<Self> {
        Ok(Self { passive: passive::start(Engine::Attach)?, remote: Vec::new(), targets: Vec::new() })
    }
}

impl Active for Attach {
    fn prepare(&mut self, load: &Load) -> Result<()> {
        self.passive.send(&Ask::Prepare(*load))?;
        let spots: Spots = self.passive.receive()?;
        self.remote = spots.into_iter().map(|(base, len)| RemoteIoVec { base, len }).collect();
        self.targets = vec![Pieces::target(load.size, load.descriptors)];
        Ok(())
    }

    fn offer(&mut self) -> Result<Offers> {
        Ok(Offers::default())
    }

    fn burst(&mut self, reads: &mut Samples) -> Result<()> {
        let pid = Pid::from_raw(self.passive.pid().try_into()?);
        let started = Instant::now();
        let mut local: Vec<IoSliceMut<'_>> = self.targets[0].slices_mut().map(IoSliceMut::new).collect();
        for (local, remote) in local.chunks_mut(MOST_PIECES).zip(self.remote.chunks(MOST_PIECES)) {
            let wanted: usize = remote.iter().map(|piece| piece.len).sum();
            let copied = process_vm_readv(pid, local, remote)
                .context("this machine does not let one process read another's memory")?;
            ensure!(copied == wanted, "the kernel copied {copied} of {wanted} bytes");
        }
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
        self.targets = Vec::new();
        self.passive.send(&Ask::Release)?;
        self.passive.receive::<()>()
    }

    fn passive(&self) -> Option<u32> {
        Some(self.passive.pid())
    }
}

/// The passive side: it has memory, and sleeps.
pub(super) fn serve() -> Result<()> {
    let mut source = None;
    for ask in questions() {
        match ask? {
            Ask::Prepare(load) => {
                answer(&source.insert(Pieces::source(load.size, load.descriptors)).spots())?;
            }
            Ask::Release => {
                source = None;
                answer(&())?;
            }
            Ask::Offer { .. } => bail!("nothing is offered here"),
        }
    }
    Ok(())
}
