//! This library the other way round: the passive side offers memory to be written, and the active side pushes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connect_core::{Connector, RdmaMetadata};

use super::ours::connector;
use super::passive::{Ask, Learned};
use super::{Active, Engine, Offers};
use crate::clock;
use crate::lines::{Lines, answer, questions};
use crate::pieces::Source;
use crate::{Load, Pieces, Samples};

/// The active side, which has the bytes.
pub(super) struct Push {
    connector: Connector,
    passive: Lines,
    source: Option<Source>,
    metadata: Option<RdmaMetadata>,
}

impl Push {
    pub(super) fn start(engine: Engine) -> Result<Self> {
        let passive = super::passive::start(engine)?;
        Ok(Self { connector: connector(engine)?, passive, source: None, metadata: None })
    }
}

impl Active for Push {
    fn prepare(&mut self, load: &Load) -> Result<()> {
        ensure!(load.in_flight == 1 && load.peers == 1, "one at a time");
        self.source = Some(Pieces::source(load.size, load.descriptors).into());
        self.passive.send(&Ask::Prepare(*load))?;
        self.passive.receive::<()>()
    }

    fn offer(&mut self) -> Result<Offers> {
        self.passive.send(&Ask::Offer { count: 1, peer: 0 })?;
        let offers: Offers = self.passive.receive()?;
        let document = offers.documents.first().context("an offer")?;
        self.metadata = Some(RdmaMetadata::from_json(document)?);
        Ok(offers)
    }

    fn burst(&mut self, reads: &mut Samples) -> Result<()> {
        let (metadata, source) =
            (self.metadata.as_ref().context("offered")?, self.source.clone().context("prepared")?);
        let begun = Instant::now();
        self.connector.begin_write(source, metadata).wait()?.wait_for_completion().wait()?;
        reads.push(begun.elapsed());
        Ok(())
    }

    fn learned(&mut self) -> Result<Option<Duration>> {
        let Learned(at) = self.passive.receive().context("the bytes did not arrive as they were")?;
        Ok(Some(at))
    }

    fn targets(&mut self) -> &mut [Pieces] {
        // They are on the passive side, which checks them.
        &mut []
    }

    fn release(&mut self) -> Result<()> {
        self.passive.send(&Ask::Release)?;
        self.passive.receive::<()>()
    }

    fn passive(&self) -> Option<u32> {
        Some(self.passive.pid())
    }
}

/// Runs the passive side until the active one is gone.
pub(super) fn serve(engine: Engine) -> Result<()> {
    let connector = connector(engine)?;
    let mut target = None;
    for ask in questions() {
        match ask? {
            Ask::Prepare(load) => {
                target = Some(Pieces::target(load.size, load.descriptors));
                answer(&())?;
            }
            Ask::Offer { .. } => {
                let mut pieces = target.take().context("prepared")?;
                pieces.stamp();
                let started = Instant::now();
                let offer = connector.create_writable(pieces).wait()?;
                let documents = vec![offer.metadata().to_json()];
                answer(&Offers { documents, took: started.elapsed() })?;
                let pieces = offer.wait_for_completion().wait()?.memory;
                let at = clock::now()?;
                pieces.check_stamps()?;
                target = Some(pieces);
                answer(&Learned(at))?;
            }
            Ask::Release => {
                target.take().context("prepared")?.check()?;
                answer(&())?;
            }
        }
    }
    Ok(())
}
