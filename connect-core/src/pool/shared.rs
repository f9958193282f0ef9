//! What a slab and its slots share: the memory, which slots are free, and who waits for one.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::mapping::Mapping;
use super::slot::Slot;
use crate::driver::{Command, OpInfo, Registration};
use crate::error::Error;
use crate::op::OperationStatus;
use crate::op::slot::Outcome;
use crate::op::state::Why;

/// Slots begin at multiples of this: a cache line, and the alignment of any element type.
const ALIGNMENT: usize = 64;

/// Waiters that may be over before the queue is gone through for them.
const FEW: usize = 16;

/// Lives as long as the slab or any of its slots, wherever those are.
pub(super) struct Shared {
    mapping: Arc<Mapping>,
    slot_bytes: usize,
    /// From one slot to the next.
    stride: usize,
    slots: usize,
    free: Mutex<Free>,
    registration: Registration,
}

struct Free {
    /// The last to come back goes out first: its bytes may be in a cache yet.
    slots: Vec<usize>,
    /// In the order in which they came. Not empty only while `slots` is.
    waiting: VecDeque<Arc<OpInfo>>,
    /// How many may wait before those are removed that gave up.
    tidy_at: usize,
}

/// How much memory a slab takes; `None` when that is more than there are addresses.
pub(super) fn total_bytes(slots: usize, slot_bytes: usize) -> Option<usize> {
    slot_bytes.checked_next_multiple_of(ALIGNMENT)?.checked_mul(slots)
}

impl Shared {
    /// `mapping` has [`total_bytes`].
    pub(super) fn new(
        mapping: Arc<Mapping>,
        registration: Registration,
        slots: usize,
        slot_bytes: usize,
    ) -> Arc<Self> {
        let stride = slot_bytes.next_multiple_of(ALIGNMENT);
        let free = Free { slots: (0..slots).rev().collect(), waiting: VecDeque::new(), tidy_at: FEW };
        Arc::new(Self { mapping, slot_bytes, stride, slots, free: Mutex::new(free), registration })
    }

    pub(super) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    pub(super) fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// Where a slot begins in the mapping.
    pub(super) fn start_of(&self, index: usize) -> usize {
        index * self.stride
    }

    pub(super) fn free(&self) -> usize {
        self.lock().slots.len()
    }

    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.lock().waiting.len()
    }

    /// A free slot, if there is one.
    pub(super) fn take(self: &Arc<Self>) -> Option<Slot> {
        let index = self.lock().slots.pop()?;
        Some(Slot::new(Arc::clone(self), index))
    }

    /// A free slot, or a place at the end of the queue for one.
    pub(super) fn take_or_wait(
        self: &Arc<Self>,
        wait: impl FnOnce() -> Arc<OpInfo>,
    ) -> Result<Slot, Arc<OpInfo>> {
        let mut free = self.lock();
        if let Some(index) = free.slots.pop() {
            return Ok(Slot::new(Arc::clone(self), index));
        }
        let waiter = wait();
        free.queue(Arc::clone(&waiter));
        Err(waiter)
    }

    /// A slot has come back: it goes to whoever has waited longest, or to the free ones.
    pub(super) fn give_back(self: &Arc<Self>, index: usize) {
        let mut free = self.lock();
        let Some(waiter) = free.next_waiter() else { return free.slots.push(index) };
        // Whoever is woken may ask for a slot at once.
        drop(free);
        let slot = Slot::new(Arc::clone(self), index);
        // One who gave up at this very moment does not get it; then it is dropped in there, and comes back here.
        let outcome = Outcome { result: Ok(waiter.waited()), memory: Some(Box::new(slot)) };
        waiter.slot.settle(OperationStatus::Complete, outcome, || {});
        // The driver need not think of its deadline any more.
        let _ = self.registration.port.send(Command::Stop(waiter.id, Why::Cancelled));
    }

    /// A poisoned lock means a panic between two plain assignments; the lists are whole.
    fn lock(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Free {
    fn queue(&mut self, waiter: Arc<OpInfo>) {
        if self.waiting.len() >= self.tidy_at {
            self.waiting.retain(|waiter| is_waiting(waiter));
            self.tidy_at = FEW.max(self.waiting.len() * 2);
        }
        self.waiting.push_back(waiter);
    }

    fn next_waiter(&mut self) -> Option<Arc<OpInfo>> {
        std::iter::from_fn(|| self.waiting.pop_front()).find(|waiter| is_waiting(waiter))
    }
}

fn is_waiting(waiter: &OpInfo) -> bool {
    !waiter.withdrawn.load(Ordering::Relaxed) && !waiter.slot.is_settled()
}

/// What a waiter gets.
pub(super) fn taken(outcome: Outcome) -> Result<Slot, Error> {
    outcome.result?;
    let slot = outcome.memory.and_then(|memory| memory.downcast::<Slot>().ok());
    slot.map(|slot| *slot).ok_or(Error::ShutDown)
}
