//! [`RemoteBlocks`]: a peer's pool, as its card describes it.

use std::ops::Range;
use std::sync::Arc;

use super::layout::Pairs;
use super::lease::{Guard, Held, LaidSource};
use super::{BlockCard, BlockError, BlockLease, BlockTicket, SharedBlocks};
use crate::OperationKind;
use crate::connector::Connector;
use crate::deadline::Deadline;
use crate::error::{Error, Failed, Recovered};
use crate::op::{Pending, ReadOperation, WriteOperation};
use crate::wire::RdmaMetadata;

/// A peer's pool of blocks. Made by [`Connector::remote_blocks`]; nothing is asked of the peer until blocks are moved.
///
/// Clones share the card.
#[derive(Debug, Clone)]
pub struct RemoteBlocks {
    card: Arc<BlockCard>,
    connector: Connector,
}

impl Connector {
    /// Remembers a peer's pool, for all tickets to come.
    pub fn remote_blocks(&self, card: BlockCard) -> RemoteBlocks {
        RemoteBlocks { card: Arc::new(card), connector: self.clone() }
    }
}

impl RemoteBlocks {
    /// The same pool, with another deadline for transfers.
    pub fn with_deadline(&self, deadline: impl Into<Deadline>) -> Self {
        Self { card: Arc::clone(&self.card), connector: self.connector.with_deadline(deadline) }
    }

    /// The card.
    pub fn card(&self) -> &BlockCard {
        &self.card
    }

    /// Gets to know the peer ahead of the first transfer, and returns its name. A first connection over NIXL takes tens
    /// of milliseconds.
    ///
    /// # Errors
    /// As [`Connector::connect`].
    pub fn connect(&self) -> Pending<String> {
        match self.contact() {
            Ok(metadata) => self.connector.connect(&metadata),
            Err(error) => Pending::refused(error),
        }
    }

    /// Reads the blocks of a ticket into a lease of as many blocks and the same parts, in their order. The transfer
    /// begins at once.
    ///
    /// # Errors
    /// [`Error::Blocks`] when ticket, card and lease do not fit; else as [`Connector::begin_read`]. The lease comes back
    /// with the error.
    pub fn read(
        &self,
        ticket: &BlockTicket,
        mut lease: BlockLease,
    ) -> Pending<ReadOperation<BlockLease>, Failed<BlockLease>> {
        match self.pairs(ticket, lease.held()).and_then(|pairs| {
            lease.laid = Some(pairs.local);
            self.metadata(ticket.kind(), &pairs.remote, ticket.notification_key())
        }) {
            Ok(metadata) => {
                let user = lease.user();
                let begun = self.connector.begin_read_owned(metadata, lease);
                user.is(&begun);
                begun
            }
            Err(error) => Pending::refused(Failed { error, memory: Recovered::Returned(lease) }),
        }
    }

    /// Writes as many blocks and the same parts to the blocks of a ticket, in their order. The transfer begins at once.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&self, blocks: impl Into<SharedBlocks>, ticket: &BlockTicket) -> Pending<WriteOperation> {
        self.write_from(blocks.into(), ticket, None)
    }

    fn write_from(
        &self,
        blocks: SharedBlocks,
        ticket: &BlockTicket,
        guard: Option<Guard>,
    ) -> Pending<WriteOperation> {
        let prepared = self.pairs(ticket, blocks.held()).and_then(|pairs| {
            let metadata = self.metadata(ticket.kind(), &pairs.remote, ticket.notification_key())?;
            Ok((metadata, pairs.local))
        });
        match prepared {
            Ok((metadata, regions)) => {
                let source = LaidSource::laid(regions, blocks, guard);
                let user = source.user();
                let begun = self.connector.begin_write_owned(source, metadata);
                user.is(&begun);
                begun
            }
            Err(error) => Pending::refused(error),
        }
    }

    /// What is to be moved, once everything fits.
    fn pairs(&self, ticket: &BlockTicket, here: &Held) -> Result<Pairs, Error> {
        let there = self.card.placed();
        check(ticket, &self.card, here)?;
        Ok(Pairs::new((here.placed(), here.blocks()), (there, ticket.blocks()), ticket.parts())?)
    }

    /// The same; the guard is dropped when the memory here is quiet.
    pub(crate) fn write_guarded(
        &self,
        blocks: SharedBlocks,
        ticket: &BlockTicket,
        guard: Guard,
    ) -> Pending<WriteOperation> {
        self.write_from(blocks, ticket, Some(guard))
    }

    /// What leads to the peer, for messages.
    pub(crate) fn contact(&self) -> Result<RdmaMetadata, Error> {
        self.metadata(OperationKind::Read, &self.card.placed().ranges()[..1], "none")
    }

    fn metadata(
        &self,
        kind: OperationKind,
        regions: &[crate::Region],
        key: &str,
    ) -> Result<RdmaMetadata, Error> {
        let blob = self.card.nixl_metadata().to_owned();
        Ok(RdmaMetadata::with_encoded_blob(kind, regions, blob, key.to_owned())?)
    }
}

fn check(ticket: &BlockTicket, card: &BlockCard, here: &Held) -> Result<(), BlockError> {
    if ticket.card() != card.id() {
        return Err(BlockError::StaleCard { card: card.id(), ticket: ticket.card() });
    }
    let layout = card.layout();
    let (blocks, parts) = (layout.blocks(), layout.parts().len() as u32);
    if let Some(block) = ticket.blocks().iter().find(|block| **block >= blocks) {
        return Err(BlockError::UnknownBlock { block: *block, blocks });
    }
    let Range { start, end } = ticket.parts();
    if here.parts() != (start..end) || start >= end || end > parts {
        return Err(BlockError::Parts { ticket: start..end, lease: here.parts(), card: parts });
    }
    let (local, remote) = (here.blocks().len(), ticket.blocks().len());
    if local != remote {
        return Err(BlockError::Count { local, remote });
    }
    let own = here.placed().layout.parts();
    let sizes = (start..end).map(|part| (part, own[part as usize].size, layout.parts()[part as usize].size));
    match sizes.into_iter().find(|(_, local, remote)| local != remote) {
        Some((part, local, remote)) => Err(BlockError::PartSize { part, local, remote }),
        None => Ok(()),
    }
}
