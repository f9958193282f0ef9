//! The passive side of pools of blocks.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use connect_core::Connector;
use connect_core::blocks::{BlockPool, SharedBlocks};

use super::super::passive::{Ask, Learned};
use super::super::{Engine, Offers};
use super::{connector, content, layout};
use crate::Load;
use crate::clock;
use crate::lines::{answer, questions};

/// Runs it until the active side is gone.
pub(in crate::engine) fn serve(engine: Engine) -> Result<()> {
    let mut passive = Passive { connector: connector(engine)?, source: None };
    for ask in questions() {
        match ask? {
            Ask::Prepare(load) => answer(&passive.prepare(&load)?)?,
            Ask::Offer { count, .. } => passive.offer(count)?,
            Ask::Release => {
                passive.source = None;
                answer(&())?;
            }
        }
    }
    Ok(())
}

struct Passive {
    connector: Connector,
    source: Option<(BlockPool, SharedBlocks)>,
}

impl Passive {
    /// The card, as JSON.
    fn prepare(&mut self, load: &Load) -> Result<String> {
        ensure!(load.peers == 1 && load.open == 0 && load.regions == 0 && load.strangers == 0);
        let pool = self.connector.block_pool(layout(load, 1)?).wait()?;
        let mut blocks = pool.take(load.descriptors as u32)?;
        for at in 0..load.descriptors {
            blocks.part_mut(at, 0).context("a block")?.fill(content(at));
        }
        let card = pool.card().wait()?.to_json();
        self.source = Some((pool, blocks.into_shared()));
        Ok(card)
    }

    fn offer(&mut self, count: usize) -> Result<()> {
        let (pool, blocks) = self.source.as_ref().context("prepared")?;
        let (mut open, mut documents) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let started = Instant::now();
        for _ in 0..count {
            let offer = pool.offer_readable(blocks.clone()).wait()?;
            documents.push(offer.ticket.to_json());
            open.push(offer.operation);
        }
        answer(&Offers { documents, took: started.elapsed() })?;
        for offer in open {
            offer.wait_for_completion().wait()?;
        }
        answer(&Learned(clock::now()?))
    }
}
