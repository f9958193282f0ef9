//! [`KvPool`]: the blocks of one engine.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use super::{KvError, KvIdentity, KvLayout, PoolCard};
use crate::Region;
use crate::accelerator::Accelerators;
use crate::blocks::{BlockCounts, BlockLayout, BlockLease, BlockPool, RemoteBlocks};
use crate::connector::Connector;
use crate::task::Task;

/// KV blocks that are registered once. Clones share them.
#[derive(Clone)]
pub struct KvPool {
    blocks: BlockPool,
    connector: Connector,
    identity: Arc<KvIdentity>,
    layout: KvLayout,
    /// New with each pool, so that a restarted engine is not taken for its predecessor (P4).
    engine: Uuid,
}

impl KvPool {
    /// A pool of zeroed blocks in system memory.
    ///
    /// # Errors
    /// [`KvError::Blocks`] for an impossible layout, [`KvError::Transfer`] when there is not so much memory or it can't
    /// be registered.
    pub fn new(connector: &Connector, identity: KvIdentity, layout: KvLayout) -> Task<Self, KvError> {
        match layout.block_layout() {
            Ok(blocks) => Self::after(connector, identity, layout, connector.block_pool(blocks)),
            Err(error) => Task::ready(Err(error)),
        }
    }

    /// A pool over memory of an engine: `blocks` says where in `ranges` its blocks lie
    /// ([`KvLayout::tensor_layout`] for two tensors a layer), `accelerators` are the devices they are on, if any, and
    /// `owner` keeps them.
    ///
    /// # Safety
    /// As [`Connector::block_pool_over`].
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`KvError::Blocks`] when the parts of `blocks` are not those of `layout`.
    pub unsafe fn over(
        connector: &Connector,
        identity: KvIdentity,
        layout: KvLayout,
        blocks: BlockLayout,
        ranges: Vec<Region>,
        accelerators: Accelerators,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Task<Self, KvError> {
        let sizes = |blocks: &BlockLayout| blocks.parts().iter().map(|part| part.size).collect::<Vec<_>>();
        let fits =
            layout.block_layout().map(|own| sizes(&own) == sizes(&blocks) && own.blocks() == blocks.blocks());
        match fits {
            // SAFETY: the caller's promise.
            Ok(true) => Self::after(connector, identity, layout, unsafe {
                connector.block_pool_over(blocks, ranges, accelerators, owner)
            }),
            Ok(false) => {
                let reason = "its parts are not the keys and values of the KV layout".to_owned();
                Task::ready(Err(crate::blocks::BlockError::Layout(reason).into()))
            }
            Err(error) => Task::ready(Err(error)),
        }
    }

    fn after(
        connector: &Connector,
        identity: KvIdentity,
        layout: KvLayout,
        made: Task<BlockPool, crate::Error>,
    ) -> Task<Self, KvError> {
        let (connector, identity, engine) = (connector.clone(), Arc::new(identity), Uuid::new_v4());
        Task::after(made, move |blocks| {
            let pool = blocks.map(|blocks| Self { blocks, connector, identity, layout, engine });
            Task::ready(pool.map_err(KvError::from))
        })
    }

    /// The shape.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Whose caches these are.
    pub fn identity(&self) -> &KvIdentity {
        &self.identity
    }

    /// The engine's name: random, and new with each pool.
    pub fn engine(&self) -> String {
        self.engine.to_string()
    }

    /// Its blocks by number, to be pulled and pushed without a hand-off.
    pub fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    /// How many blocks are free.
    pub fn free(&self) -> u32 {
        self.blocks.free()
    }

    /// How many blocks are free, leased, in flight and quarantined; see [`BlockPool::counts`].
    pub fn counts(&self) -> BlockCounts {
        self.blocks.counts()
    }

    /// Blocks for so many tokens, side by side where it can be. What their last user left is in them.
    ///
    /// # Errors
    /// [`BlockError::Exhausted`](crate::blocks::BlockError::Exhausted) when there are not so many.
    pub fn allocate(&self, tokens: usize) -> Result<BlockLease, KvError> {
        Ok(self.blocks.take(self.layout.blocks_for(tokens))?)
    }

    /// What a peer needs to know of it.
    ///
    /// # Errors
    /// [`KvError::Transfer`] when the transport can't describe the memory.
    pub fn card(&self) -> Task<PoolCard, KvError> {
        let (identity, layout, engine) = (Arc::clone(&self.identity), self.layout, self.engine());
        Task::after(self.blocks.card(), move |card| {
            let card = card.map(|card| PoolCard::new(engine, &identity, &layout, &card));
            Task::ready(card.map_err(KvError::from))
        })
    }

    /// A peer's pool, if its caches are of the same kind: to pull and push by number, without a hand-off.
    ///
    /// # Errors
    /// [`KvError::Incompatible`] names the field that differs; [`KvError::Malformed`].
    pub fn remote(&self, card: &PoolCard) -> Result<RemoteBlocks, KvError> {
        Ok(self.connector.remote_blocks(card.check(&self.identity, &self.layout)?))
    }

    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Where messages for this engine arrive.
    pub(super) fn address(&self) -> [u8; 16] {
        *self.engine.as_bytes()
    }
}

impl fmt::Debug for KvPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvPool")
            .field("engine", &self.engine)
            .field("layout", &self.layout)
            .field("free", &self.free())
            .finish()
    }
}
