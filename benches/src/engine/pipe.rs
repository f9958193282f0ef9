//! A line of JSON through a pipe to another process, which answers: what it costs this machine to wake somebody, with
//! nothing moved. What is measured after silence, or at a steady rate, can't be less.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::passive::{self, Ask, Learned};
use super::{Active, Engine, Offers};
use crate::clock;
use crate::lines::{Lines, answer, questions};
use crate::{Load, Pieces, Samples};

/// The active side.
pub(super) struct Pipe {
    passive: Lines,
    learned: Option<Duration>,
}

impl Pipe {
    pub(super) fn start() -> Result<Self> {
        Ok(Self { passive: passive::start(Engine::Pipe)?, learned: None })
    }
}

impl Active for Pipe {
    fn prepare(&mut self, _: &Load) -> Result<()> {
        Ok(())
    }

    fn offer(&mut self) -> Result<Offers> {
        Ok(Offers::default())
    }

    fn burst(&mut self, reads: &mut Samples) -> Result<()> {
        let begun = Instant::now();
        self.passive.send(&Ask::Offer { count: 1, peer: 0 })?;
        let Learned(at) = self.passive.receive()?;
        reads.push(begun.elapsed());
        self.learned = Some(at);
        Ok(())
    }

    fn learned(&mut self) -> Result<Option<Duration>> {
        Ok(self.learned.take())
    }

    fn targets(&mut self) -> &mut [Pieces] {
        &mut []
    }

    fn release(&mut self) -> Result<()> {
        Ok(())
    }

    fn passive(&self) -> Option<u32> {
        Some(self.passive.pid())
    }
}

/// The passive side: it sleeps until it is asked, and says when that was.
pub(super) fn serve() -> Result<()> {
    for ask in questions::<Ask>() {
        ask?;
        answer(&Learned(clock::now()?))?;
    }
    Ok(())
}
