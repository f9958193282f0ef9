//! [`BlockPool`]: memory that is registered once, and which of its blocks are free.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::counts::{BlockCounts, Uses};
use super::layout::Placed;
use super::lease::{Guard, LaidSource};
use super::runs::FreeRuns;
use super::{BlockCard, BlockError, BlockLayout, BlockLease, BlockTicket, SharedBlocks};
use crate::accelerator::Accelerators;
use crate::connector::Connector;
use crate::deadline::Deadline;
use crate::driver::Registration;
use crate::error::{Error, Failed, Recovered};
use crate::op::{All, ReadableOperation, WritableOperation};
use crate::pool::Mapping;
use crate::task::Task;
use crate::wire::RdmaMetadata;
use crate::{OperationKind, Region};

/// A pool of blocks that peers name by number. Made by [`Connector::block_pool`].
///
/// Clones share the blocks. The memory lives until the pool and its leases are gone and no peer can reach it any more.
#[derive(Clone)]
pub struct BlockPool {
    shared: Arc<Shared>,
    connector: Connector,
}

/// Lives as long as the pool or any lease of it, wherever those are.
pub(super) struct Shared {
    pub(super) placed: Placed,
    free: Mutex<FreeRuns>,
    /// The devices of the memory.
    pub(super) accelerators: Accelerators,
    /// Blocks that operations have.
    pub(super) uses: Uses,
    /// What peers are to know it by, once somebody asked.
    card: Mutex<Option<BlockCard>>,
    // Dropped before the owner: the driver has a share of that for as long as somebody may reach it.
    _registrations: Vec<Registration>,
    _owner: Arc<dyn Any + Send + Sync>,
}

impl Shared {
    pub(super) fn give_back(&self, blocks: &[u32]) {
        lock(&self.free).give_back(blocks);
    }
}

/// Blocks on offer: the operation to be awaited, and what the peer needs to take them.
#[derive(Debug)]
#[must_use = "dropping an operation cancels it"]
pub struct BlockOffer<O> {
    /// Ends when the peer has taken or brought the blocks.
    pub operation: O,
    /// For the peer, which needs the pool's card as well.
    pub ticket: BlockTicket,
}

impl Connector {
    /// Makes a pool of zeroed blocks: one allocation for each range of the layout, registered once.
    ///
    /// # Errors
    /// [`Error::Memory`] when the system does not have so much; [`Error::Transport`] when it can't be registered.
    pub fn block_pool(&self, layout: BlockLayout) -> Task<BlockPool, Error> {
        let map = |bytes: &u64| Mapping::new(usize::try_from(*bytes).unwrap_or(usize::MAX));
        let mappings = match layout.range_bytes().iter().map(map).collect::<Result<Vec<_>, _>>() {
            Ok(mappings) => mappings,
            Err(error) => return Task::ready(Err(error.into())),
        };
        let ranges = mappings.iter().map(Mapping::region).collect();
        // SAFETY: the mappings are whole ranges of zeroed pages that nobody else knows; the layouts that `BlockLayout`
        // makes over one range have no parts that overlap, and `placed` refuses others.
        unsafe { self.block_pool_over(layout, ranges, Accelerators::new(), Arc::new(mappings)) }
    }

    /// Makes a pool of memory that exists: the paged cache of an engine, in system memory or on a GPU. It is registered
    /// once and copied never.
    ///
    /// `ranges` are the memory, one for each range of the layout and of its length; `owner` keeps them valid, and is
    /// kept until no peer can reach them any more. `accelerators` are the devices that `ranges` are on: each operation
    /// over blocks waits for them, as those over tensors do (P3). There are none for system memory.
    ///
    /// # Safety
    /// From this call until `owner` is dropped, each range must be initialised memory on its device that can be read and
    /// written, at that address. No two parts of blocks may overlap. While a [`BlockLease`] of a block is out, nobody
    /// but its holder may touch the bytes of its parts, and nobody at all may write them while [`SharedBlocks`] of them
    /// are or an operation has them.
    ///
    /// # Errors
    /// [`Error::Blocks`] when ranges and layout do not fit; [`Error::Transport`] when a range can't be registered.
    pub unsafe fn block_pool_over(
        &self,
        layout: BlockLayout,
        ranges: Vec<Region>,
        accelerators: Accelerators,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Task<BlockPool, Error> {
        let placed = match Placed::new(layout, ranges) {
            Ok(placed) => placed,
            Err(error) => return Task::ready(Err(error.into())),
        };
        let register = |range: &Region| self.register(*range, accelerators.clone(), Arc::clone(&owner));
        let (registrations, registered) = placed.ranges().iter().map(register).unzip();
        let free = Mutex::new(FreeRuns::new(placed.layout.blocks()));
        let shared = Shared {
            placed,
            free,
            accelerators,
            uses: Uses::default(),
            card: Mutex::default(),
            _registrations: registrations,
            _owner: owner,
        };
        let pool = BlockPool { shared: Arc::new(shared), connector: self.clone() };
        Task::after(All::new(registered), |results: Vec<Result<(), Error>>| {
            Task::ready(results.into_iter().collect::<Result<(), _>>().map(|()| pool))
        })
    }
}

impl BlockPool {
    /// The same pool, with another deadline for its offers.
    pub fn with_deadline(&self, deadline: impl Into<Deadline>) -> Self {
        Self { shared: Arc::clone(&self.shared), connector: self.connector.with_deadline(deadline) }
    }

    /// How its memory is cut.
    pub fn layout(&self) -> &BlockLayout {
        &self.shared.placed.layout
    }

    /// How many blocks are free.
    pub fn free(&self) -> u32 {
        lock(&self.shared.free).free()
    }

    /// How many blocks are free, leased, in flight and quarantined, all of one moment: their sum is the number of blocks.
    ///
    /// A block that several have, as parts or shared, counts once: as quarantined before in flight, and as that before
    /// leased. Blocks that are given to an operation otherwise than through this pool and
    /// [`RemoteBlocks`](super::RemoteBlocks) count as leased. It takes time in proportion to what operations have.
    ///
    /// ```
    /// use connect_core::Connector;
    /// use connect_core::blocks::BlockLayout;
    ///
    /// let pool = Connector::local()?.block_pool(BlockLayout::block_major(64, &[4096])?).wait()?;
    /// let (held, offer) = (pool.take(3)?, pool.offer_readable(pool.take(5)?).wait()?);
    /// let counts = pool.counts();
    /// assert_eq!((counts.free, counts.leased, counts.in_flight, counts.quarantined), (56, 3, 5, 0));
    /// assert_eq!(counts.total(), 64);
    /// # drop((held, offer));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn counts(&self) -> BlockCounts {
        let runs = lock(&self.shared.free);
        let (free, used) = (runs.free(), self.shared.uses.now());
        // Before what operations have is let go of, which may bring blocks back.
        drop(runs);
        let leased = self.layout().blocks() - free - used.in_flight - used.quarantined;
        BlockCounts { free, leased, in_flight: used.in_flight, quarantined: used.quarantined }
    }

    /// Takes `count` free blocks, side by side where it can be. What their last user left is in them.
    ///
    /// # Errors
    /// [`BlockError::Exhausted`] when there are not so many.
    pub fn take(&self, count: u32) -> Result<BlockLease, BlockError> {
        let mut runs = lock(&self.shared.free);
        let Some(blocks) = runs.take(count) else {
            return Err(BlockError::Exhausted { wanted: count, free: runs.free() });
        };
        drop(runs);
        Ok(BlockLease::new(Arc::clone(&self.shared), blocks))
    }

    /// Takes these blocks, for an engine that decides by itself.
    ///
    /// # Errors
    /// [`BlockError::Taken`] when one of them is not free; then none is taken.
    pub fn take_these(&self, blocks: &[u32]) -> Result<BlockLease, BlockError> {
        let taken = lock(&self.shared.free).take_these(blocks);
        taken.map_err(|block| BlockError::Taken { block })?;
        Ok(BlockLease::new(Arc::clone(&self.shared), blocks.to_vec()))
    }

    /// What a peer needs to know of the pool, once: send it before the first ticket, and when the peer says that it has
    /// a stale one.
    ///
    /// # Errors
    /// [`Error::Transport`] when the transport can't describe the memory.
    pub fn card(&self) -> Task<BlockCard, Error> {
        let described = self.connector.describe(self.shared.placed.ranges().to_vec());
        let shared = Arc::clone(&self.shared);
        Task::after(described, move |blob| Task::ready(blob.map(|blob| shared.card_with(&blob))))
    }

    /// Offers blocks for one peer to read. Share them with several offers for several peers.
    ///
    /// # Errors
    /// As [`Connector::create_readable`]; [`Error::Blocks`] for blocks of another pool.
    pub fn offer_readable(
        &self,
        blocks: impl Into<SharedBlocks>,
    ) -> Task<BlockOffer<ReadableOperation>, Error> {
        self.offer_guarded(blocks.into(), Guard::default())
    }

    /// The same; the guard is dropped when the offer's memory is quiet.
    pub(crate) fn offer_guarded(
        &self,
        blocks: SharedBlocks,
        guard: Guard,
    ) -> Task<BlockOffer<ReadableOperation>, Error> {
        if let Err(error) = self.check_own(blocks.held().is_of(&self.shared)) {
            return Task::ready(Err(error));
        }
        let (numbers, parts) = (blocks.blocks().to_vec(), blocks.parts());
        let shared = Arc::clone(&self.shared);
        let source = LaidSource::guarded(blocks, guard);
        let user = source.user();
        let opened = self.connector.create_readable(source);
        user.is(&opened);
        Task::after(opened, move |opened| {
            Task::ready(opened.map(|operation| {
                let ticket = shared.ticket(operation.metadata(), OperationKind::Read, numbers, parts);
                BlockOffer { operation, ticket }
            }))
        })
    }

    /// Offers blocks for one peer to write. The operation gives the lease back, filled.
    ///
    /// # Errors
    /// As [`Connector::create_writable`]; [`Error::Blocks`] for blocks of another pool.
    pub fn offer_writable(
        &self,
        mut lease: BlockLease,
    ) -> Task<BlockOffer<WritableOperation<BlockLease>>, Failed<BlockLease>> {
        if let Err(error) = self.check_own(lease.held().is_of(&self.shared)) {
            return Task::ready(Err(Failed { error, memory: Recovered::Returned(lease) }));
        }
        let (numbers, parts) = (lease.blocks().to_vec(), lease.parts());
        let shared = Arc::clone(&self.shared);
        let user = lease.user();
        let opened = self.connector.create_writable(lease);
        user.is(&opened);
        Task::after(opened, move |opened| {
            Task::ready(opened.map(|operation| {
                let ticket = shared.ticket(operation.metadata(), OperationKind::Write, numbers, parts);
                BlockOffer { operation, ticket }
            }))
        })
    }

    fn check_own(&self, is_own: bool) -> Result<(), Error> {
        let other = || BlockError::Layout("the blocks are of another pool".to_owned());
        is_own.then_some(()).ok_or_else(|| other().into())
    }
}

impl Shared {
    /// The card with this encoded blob, which is the one to be known by from now on.
    fn card_with(&self, blob: &str) -> BlockCard {
        let mut current = lock(&self.card);
        match &*current {
            Some(card) if card.nixl_metadata() == blob => card.clone(),
            _ => {
                let card = BlockCard::new(&self.placed, blob.to_owned());
                current.insert(card).clone()
            }
        }
    }

    fn ticket(
        &self,
        metadata: &RdmaMetadata,
        kind: OperationKind,
        blocks: Vec<u32>,
        parts: std::ops::Range<u32>,
    ) -> BlockTicket {
        let card = self.card_with(metadata.nixl_metadata()).id();
        BlockTicket::new(card, kind, blocks, parts, metadata.notification_key().to_owned())
    }
}

/// A poisoned lock means a panic between plain assignments; what it guards is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for BlockPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockPool")
            .field("blocks", &self.layout().blocks())
            .field("block_bytes", &self.layout().block_bytes())
            .field("free", &self.free())
            .finish()
    }
}
