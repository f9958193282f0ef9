//! This library's passive side.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use connect_core::{Connector, ReadableOperation};

use super::super::passive::{Ask, Learned};
use super::super::{Engine, Offers};
use super::connector;
use crate::Load;
use crate::clock;
use crate::lines::{answer, questions};
use crate::pieces::{Pieces, Source};

/// Runs it until the active side is gone.
pub(in crate::engine) fn serve(engine: Engine) -> Result<()> {
    let mut passive = Passive {
        engine,
        connectors: vec![connector(engine)?],
        source: None,
        held: Vec::new(),
        strangers: 0,
    };
    for ask in questions() {
        match ask? {
            Ask::Prepare(load) => answer(&passive.prepare(&load)?)?,
            Ask::Offer { count, peer } => passive.offer(count, peer)?,
            Ask::Release => answer(&passive.release()?)?,
        }
    }
    Ok(())
}

struct Passive {
    engine: Engine,
    /// One for each peer that the active side knows: what makes a peer is its own socket or agent.
    connectors: Vec<Connector>,
    source: Option<Source>,
    /// Offers that nobody takes.
    held: Vec<ReadableOperation>,
    /// How many notifications a stranger will have sent by the end of the round.
    strangers: usize,
}

impl Passive {
    fn prepare(&mut self, load: &Load) -> Result<()> {
        while self.connectors.len() < load.peers {
            self.connectors.push(connector(self.engine)?);
        }
        self.strangers = load.strangers;
        self.source = Some(Pieces::source(load.size, load.descriptors).into());
        let connector = &self.connectors[0];
        if load.regions > 0 {
            // Registered for one operation, which is open for as long.
            self.held
                .push(connector.create_readable(Source::from(Pieces::source(PAGE, load.regions))).wait()?);
        }
        let page = Source::from(Pieces::source(PAGE, 1));
        for _ in 0..load.open {
            self.held.push(connector.create_readable(page.clone()).wait()?);
        }
        Ok(())
    }

    fn offer(&mut self, count: usize, peer: usize) -> Result<()> {
        let source = self.source.as_ref().context("prepared")?;
        let mut open = Vec::with_capacity(count);
        let mut documents = Vec::with_capacity(count);
        let started = Instant::now();
        for _ in 0..count {
            let offer = self.connectors[peer].create_readable(source.clone()).wait()?;
            documents.push(offer.metadata().to_json());
            open.push(offer);
        }
        answer(&Offers { documents, took: started.elapsed() })?;
        for offer in open {
            offer.wait_for_completion().wait()?;
        }
        answer(&Learned(clock::now()?))
    }

    fn release(&mut self) -> Result<()> {
        let unmatched = self.connectors[0].stats().unmatched_notifications;
        ensure!(unmatched >= self.strangers as u64, "only {unmatched} foreign notifications arrived");
        self.held.clear();
        self.source = None;
        self.connectors.truncate(1);
        Ok(())
    }
}

/// The size of what is only there to be in the way.
const PAGE: usize = 4096;
