//! This library with pools of blocks: the card once, and a ticket of block numbers for each operation.

mod passive;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connect_core::Connector;
use connect_core::blocks::{
    BlockCard, BlockLayout, BlockLease, BlockPart, BlockPool, BlockTicket, RemoteBlocks,
};
pub(super) use passive::serve;

use super::ours::connector;
use super::passive::{Ask, Learned};
use super::{Active, Engine, Offers};
use crate::lines::Lines;
use crate::{Load, Pieces, Samples};

/// What a target holds before an operation: a byte that no source has.
const EMPTY: u8 = 255;

/// Blocks as far apart as the pieces of the other engines, so that none are merged.
fn layout(load: &Load, operations: usize) -> Result<BlockLayout> {
    let (blocks, size) = ((load.descriptors * operations) as u32, load.size as u64);
    let part = BlockPart { range: 0, offset: 0, stride: 2 * size, size };
    Ok(BlockLayout::new(blocks, vec![part], vec![2 * size * u64::from(blocks)])?)
}

/// What is in the block at this place of an operation: another byte in each, lest one arrive in another's place unseen.
fn content(at: usize) -> u8 {
    (at % 251) as u8
}

/// The active side.
pub(super) struct Blocks {
    connector: Connector,
    passive: Lines,
    load: Load,
    pool: Option<BlockPool>,
    remote: Option<RemoteBlocks>,
    tickets: Vec<BlockTicket>,
    leases: Vec<BlockLease>,
}

impl Blocks {
    pub(super) fn start(engine: Engine) -> Result<Self> {
        Ok(Self {
            connector: connector(engine)?,
            passive: super::passive::start(engine)?,
            load: Load::PAGE,
            pool: None,
            remote: None,
            tickets: Vec::new(),
            leases: Vec::new(),
        })
    }
}

impl Active for Blocks {
    fn prepare(&mut self, load: &Load) -> Result<()> {
        self.load = *load;
        let pool = self.connector.block_pool(layout(load, load.in_flight)?).wait()?;
        for _ in 0..load.in_flight {
            self.leases.push(pool.take(load.descriptors as u32)?);
        }
        self.pool = Some(pool);
        self.passive.send(&Ask::Prepare(*load))?;
        let card: String = self.passive.receive()?;
        self.remote = Some(self.connector.remote_blocks(BlockCard::from_json(&card)?));
        Ok(())
    }

    fn offer(&mut self) -> Result<Offers> {
        for lease in &mut self.leases {
            for at in 0..lease.blocks().len() {
                lease.part_mut(at, 0).context("a block")?.fill(EMPTY);
            }
        }
        self.passive.send(&Ask::Offer { count: self.load.in_flight, peer: 0 })?;
        let offers: Offers = self.passive.receive()?;
        let tickets = offers.documents.iter().map(|ticket| BlockTicket::from_json(ticket));
        self.tickets = tickets.collect::<Result<_, _>>()?;
        Ok(offers)
    }

    fn burst(&mut self, reads: &mut Samples) -> Result<()> {
        let remote = self.remote.as_ref().context("prepared")?;
        let begin =
            |(ticket, lease): (&BlockTicket, BlockLease)| (Instant::now(), remote.read(ticket, lease));
        let begun: Vec<_> = self.tickets.iter().zip(self.leases.drain(..)).map(begin).collect();
        for (at, read) in begun {
            let received = read.wait()?.wait_for_completion().wait()?;
            reads.push(at.elapsed());
            self.leases.push(received.memory);
        }
        Ok(())
    }

    fn learned(&mut self) -> Result<Option<Duration>> {
        let Learned(at) = self.passive.receive()?;
        for lease in &self.leases {
            for at in 0..lease.blocks().len() {
                let block = lease.part(at, 0).context("a block")?;
                ensure!(block.iter().all(|byte| *byte == content(at)), "wrong bytes in block {at}");
            }
        }
        Ok(Some(at))
    }

    fn targets(&mut self) -> &mut [Pieces] {
        &mut []
    }

    fn release(&mut self) -> Result<()> {
        self.leases.clear();
        (self.pool, self.remote) = (None, None);
        self.passive.send(&Ask::Release)?;
        self.passive.receive::<()>()
    }

    fn passive(&self) -> Option<u32> {
        Some(self.passive.pid())
    }
}
