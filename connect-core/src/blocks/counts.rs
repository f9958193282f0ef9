//! Who has the blocks of a pool: [`BlockCounts`].
//!
//! Nothing is counted along the way, so nothing can drift. What is free is what the pool would hand out; blocks that were
//! given to an operation are with it for as long as their memory is, and whether the operation is under way or parked is
//! asked of the operation.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::driver::OpInfo;
use crate::op::Pending;
use crate::op::slot::Holder;

/// How many blocks of a pool are where; see [`BlockPool::counts`](super::BlockPool::counts). Each block is in one of
/// these states, so their sum is the number of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BlockCounts {
    /// Nobody has them.
    pub free: u32,
    /// Somebody holds a lease of them, or shares them, and no operation has them.
    pub leased: u32,
    /// An operation has them: they are on offer, or being moved.
    pub in_flight: u32,
    /// Their operation has ended, and the transport could not say yet that nobody touches them: a peer or a device is
    /// gone in the middle of a transfer. They go back by themselves when it does.
    pub quarantined: u32,
}

impl BlockCounts {
    /// All blocks of the pool.
    pub fn total(&self) -> u32 {
        self.free + self.leased + self.in_flight + self.quarantined
    }
}

/// Blocks that were given to an operation. Their memory alone owns this, wherever it is: with the driver, in a slot, or
/// with the caller again. So while there is one, its blocks are not free.
pub(super) struct Use {
    blocks: Box<[u32]>,
    operation: User,
}

/// The operation that has some blocks, to be told when it has begun.
#[derive(Clone, Default)]
pub(super) struct User(Arc<OnceLock<Weak<OpInfo>>>);

impl Use {
    pub(super) fn operation(&self) -> User {
        self.operation.clone()
    }
}

impl User {
    /// This one, if it was begun at all.
    pub(super) fn is<T, E>(&self, pending: &Pending<T, E>) {
        if let Some(operation) = pending.info() {
            let _ = self.0.set(Arc::downgrade(&operation));
        }
    }
}

/// The uses of one pool's blocks, those that are over among them until they are in the way.
#[derive(Default)]
pub(super) struct Uses(Mutex<Vec<Weak<Use>>>);

/// What is in use, by block: whether it is quarantined. Those in neither state are leased or free.
#[derive(Default)]
pub(super) struct InUse {
    pub(super) in_flight: u32,
    pub(super) quarantined: u32,
    /// To be dropped when nobody holds a lock of the pool: with the last handle of an operation goes its memory.
    #[expect(dead_code, reason = "what it is good for is being dropped later")]
    operations: Vec<Arc<OpInfo>>,
}

impl Uses {
    /// Remembers that these are about to be given to an operation.
    pub(super) fn begin(&self, blocks: &[u32]) -> Arc<Use> {
        let used = Arc::new(Use { blocks: blocks.into(), operation: User::default() });
        let mut all = self.lock();
        if all.len() == all.capacity() {
            all.retain(|used| used.strong_count() > 0);
            // As many again can come before the next look, so that looking costs each of them the same.
            let alive = all.len().max(8);
            all.reserve(alive);
        }
        all.push(Arc::downgrade(&used));
        used
    }

    /// What is in use now. The caller keeps blocks from being taken and given back meanwhile.
    pub(super) fn now(&self) -> InUse {
        let mut is_quarantined: HashMap<u32, bool> = HashMap::new();
        let mut operations = Vec::new();
        for used in self.lock().iter().filter_map(Weak::upgrade) {
            let Some(operation) = used.operation.0.get().and_then(Weak::upgrade) else { continue };
            let parked = match operation.slot.holder() {
                Holder::Caller => None,
                Holder::Operation => Some(false),
                Holder::Quarantine => Some(true),
            };
            for block in parked.iter().flat_map(|_| &used.blocks) {
                *is_quarantined.entry(*block).or_default() |= parked == Some(true);
            }
            operations.push(operation);
        }
        let quarantined = is_quarantined.values().filter(|parked| **parked).count() as u32;
        InUse { in_flight: is_quarantined.len() as u32 - quarantined, quarantined, operations }
    }

    /// A poisoned lock means a panic between plain assignments; what it guards is whole.
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Use>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use crate::blocks::{BlockCounts, BlockLayout, BlockLease, BlockPool, SharedBlocks};
    use crate::transport::fault::{Hold, Plan};
    use crate::{Connector, ReadOperation, ReadableOperation, WritableOperation};

    const BLOCKS: u32 = 16;

    fn faulty(plan: Plan) -> Connector {
        Connector::builder().transport(plan.over_local().0).build().unwrap()
    }

    fn pool(connector: &Connector) -> BlockPool {
        connector.block_pool(BlockLayout::block_major(BLOCKS, &[64, 32]).unwrap()).wait().unwrap()
    }

    fn come_to(pool: &BlockPool, counts: (u32, u32, u32, u32)) {
        let [free, leased, in_flight, quarantined] = <[u32; 4]>::from(counts);
        let wanted = BlockCounts { free, leased, in_flight, quarantined };
        let until = Instant::now() + Duration::from_secs(10);
        while pool.counts() != wanted {
            assert!(Instant::now() < until, "{:?} and not {wanted:?}", pool.counts());
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_block_goes_from_free_to_leased_to_in_flight_and_back() {
        let (a, b) = (
            Connector::local().unwrap(),
            faulty(Plan::new().stall(1, Hold::For(Duration::from_millis(100)))),
        );
        let (here, there) = (pool(&a), pool(&b));
        let held = here.take(2).unwrap();
        assert_eq!(here.counts(), BlockCounts { free: 14, leased: 2, in_flight: 0, quarantined: 0 });
        let shared = here.take(3).unwrap().into_shared();
        let offer = here.offer_readable(shared.clone()).wait().unwrap();
        come_to(&here, (11, 2, 3, 0));
        let remote = b.remote_blocks(here.card().wait().unwrap());
        let read = remote.read(&offer.ticket, there.take(3).unwrap()).wait().unwrap();
        come_to(&there, (13, 0, 3, 0));
        let received = read.wait_for_completion().wait().unwrap().memory;
        come_to(&there, (13, 3, 0, 0));
        offer.operation.wait_for_completion().wait().unwrap();
        come_to(&here, (11, 5, 0, 0));
        drop((held, shared, received));
        come_to(&here, (BLOCKS, 0, 0, 0));
        come_to(&there, (BLOCKS, 0, 0, 0));
    }

    #[test]
    fn p1_blocks_of_a_transfer_that_is_not_quiet_are_quarantined_until_it_is() {
        let b = faulty(
            Plan::new()
                .stall(1, Hold::For(Duration::from_secs(3600)))
                .busy(1, Hold::For(Duration::from_secs(1))),
        );
        let (here, there) = (pool(&Connector::local().unwrap()), pool(&b));
        let offer = here.offer_readable(here.take(4).unwrap()).wait().unwrap();
        let remote = b.remote_blocks(here.card().wait().unwrap());
        // The first of its blocks stay with their caller, who keeps them leased.
        let (kept, read) = there.take(5).unwrap().split_blocks(1);
        let read = remote.read(&offer.ticket, read).wait().unwrap();
        come_to(&there, (11, 1, 4, 0));
        assert!(read.cancel().wait().unwrap_err().memory.is_parked());
        assert_eq!(there.counts(), BlockCounts { free: 11, leased: 1, in_flight: 0, quarantined: 4 });
        come_to(&there, (11, 5, 0, 0));
        drop(kept);
        come_to(&there, (BLOCKS, 0, 0, 0));
    }

    #[test]
    fn blocks_that_were_refused_are_leased_to_who_got_them_back() {
        let a = Connector::local().unwrap();
        let here = pool(&a);
        let offer = here.offer_readable(here.take(2).unwrap()).wait().unwrap();
        drop(offer);
        a.shutdown(Duration::from_secs(5)).wait().unwrap();
        let refused = here.offer_writable(here.take(3).unwrap()).wait().unwrap_err();
        let lease = refused.memory.returned().unwrap();
        come_to(&here, (13, 3, 0, 0));
        assert!(here.offer_readable(lease).wait().is_err());
        come_to(&here, (BLOCKS, 0, 0, 0));
    }

    /// What somebody has of a pool.
    enum Has {
        Lease(BlockLease),
        Shared(SharedBlocks),
        Readable(ReadableOperation),
        Writable(WritableOperation<BlockLease>),
        Read(ReadOperation<BlockLease>),
    }

    /// One of a lease's two parts, or both.
    fn piece(lease: BlockLease, parts: Range<u32>) -> BlockLease {
        if parts == (0..2) {
            return lease;
        }
        let (first, second) = lease.split_parts(1);
        if parts.start == 0 { first } else { second }
    }

    /// Tells another thread to end, also when this one panics.
    struct Over<'a>(&'a AtomicBool);

    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(12)))]

        /// Over a transport that fails at random, and watched by another thread all the while.
        #[test]
        fn the_states_add_up_to_the_pool_whatever_happens(
            seed in any::<u64>(),
            steps in prop::collection::vec((0u8..9, any::<prop::sample::Index>(), 1u32..5), 1..60),
        ) {
            let (a, b) = (faulty(Plan::random(seed)), faulty(Plan::random(!seed)));
            let (here, there) = (pool(&a), pool(&b));
            let card = here.card().wait().ok();
            let is_over = AtomicBool::new(false);
            thread::scope(|scope| {
                let watches = scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        assert_eq!((here.counts().total(), there.counts().total()), (BLOCKS, BLOCKS));
                    }
                });
                let over = Over(&is_over);
                let mut all: Vec<Has> = Vec::new();
                for (what, which, count) in steps {
                    let one = (!all.is_empty()).then(|| all.swap_remove(which.index(all.len())));
                    match (what, one) {
                        (0..=2, one) => {
                            all.extend(one);
                            all.extend(here.take(count).ok().map(Has::Lease));
                        }
                        (3, Some(Has::Lease(lease))) => all.push(Has::Shared(lease.into_shared())),
                        (4, Some(Has::Lease(lease))) => {
                            let (one, other) = lease.split_parts(1);
                            all.extend([Has::Lease(one), Has::Lease(other)]);
                        }
                        (5, Some(Has::Lease(lease))) => {
                            all.extend(here.offer_writable(lease).wait().ok().map(|it| Has::Writable(it.operation)));
                        }
                        (3..=6, Some(Has::Shared(blocks))) => {
                            all.push(Has::Shared(blocks.clone()));
                            let Ok(offer) = here.offer_readable(blocks).wait() else { continue };
                            let into = there.take(offer.ticket.blocks().len() as u32);
                            if let (Some(card), Ok(into)) = (&card, into) {
                                let into = piece(into, offer.ticket.parts());
                                let read = b.remote_blocks(card.clone()).read(&offer.ticket, into).wait();
                                all.extend(read.ok().map(Has::Read));
                            }
                            all.push(Has::Readable(offer.operation));
                        }
                        (7, Some(Has::Read(read))) => drop(read.wait_for_completion().wait()),
                        (7, Some(Has::Readable(offer))) => drop(offer.cancel().wait()),
                        (7, Some(Has::Writable(offer))) => drop(offer.cancel().wait()),
                        // Dropped, whatever it is.
                        (_, one) => drop(one),
                    }
                }
                drop(all);
                come_to(&here, (BLOCKS, 0, 0, 0));
                come_to(&there, (BLOCKS, 0, 0, 0));
                drop(over);
                watches.join().unwrap();
            });
        }
    }
}
