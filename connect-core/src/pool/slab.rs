//! [`Slab`]: registered memory in slots of one size.

use std::fmt;
use std::sync::Arc;

use super::mapping::Mapping;
use super::shared::{Shared, taken, total_bytes};
use super::slot::Slot;
use crate::accelerator::Accelerators;
use crate::connector::Connector;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::op::{Completion, WritableOperation};
use crate::task::Task;
use crate::{MemoryError, Region};

/// Memory that is registered once and used piece by piece. Made by [`Connector::slab`].
///
/// [`try_take`](Self::try_take) and [`take`](Self::take) hand out its [`Slot`]s, which come back by themselves when
/// they are dropped. An operation that was given a slot drops it when it has ended and was awaited, or is dropped
/// itself; if it ended before its memory was quiet, the slot comes back when it is (P1).
///
/// Clones share the slots. A slab keeps its connector; its memory lives until the last slot is back and no peer can
/// reach it any more. The module's docs say what that means over NIXL, and who can see which bytes.
///
/// ```
/// use connect_core::{Connector, RdmaMetadata};
///
/// let (sender, receiver) = (Connector::local()?, Connector::local()?); // usually in two processes
/// let (outbox, inbox) = (sender.slab(8, 1 << 20).wait()?, receiver.slab(8, 1 << 20).wait()?);
///
/// let mut slot = outbox.take().wait()?; // waits while all are out
/// slot.resize(4096)?;
/// slot.fill(7);
/// let offer = sender.create_readable(slot).wait()?; // comes back once it was read
///
/// let metadata = RdmaMetadata::from_json(&offer.metadata().to_json())?;
/// let read = receiver.begin_read_into(&metadata, inbox.take().wait()?).wait()?;
/// let received = read.wait_for_completion().wait()?.memory;
/// assert_eq!(&received[..], [7; 4096]);
/// # offer.wait_for_completion().wait()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Slab {
    pub(super) shared: Arc<Shared>,
    connector: Connector,
}

impl Connector {
    /// Makes a slab: `slots` pieces of `slot_bytes` each, zero, in one allocation that is registered once.
    ///
    /// # Errors
    /// [`Error::Memory`] when the system does not have so much, or nothing was asked for; [`Error::Transport`] when
    /// it can't be registered, or too much is.
    pub fn slab(&self, slots: usize, slot_bytes: usize) -> Task<Slab, Error> {
        let mapping = match map(slots, slot_bytes) {
            Ok(mapping) => Arc::new(mapping),
            Err(error) => return Task::ready(Err(error.into())),
        };
        let region = mapping.region();
        let (registration, registered) =
            self.register(region, Accelerators::new(), Arc::clone(&mapping) as _);
        let slab =
            Slab { shared: Shared::new(mapping, registration, slots, slot_bytes), connector: self.clone() };
        Task::after(registered, |result| Task::ready(result.map(|()| slab)))
    }
}

fn map(slots: usize, slot_bytes: usize) -> Result<Mapping, MemoryError> {
    let too_much = || MemoryError::Exhausted {
        bytes: (slots as u64).saturating_mul(slot_bytes as u64),
        reason: "there are not so many addresses".to_owned(),
    };
    Mapping::new(total_bytes(slots, slot_bytes).ok_or_else(too_much)?)
}

impl Slab {
    /// The same slab, with another deadline for who waits for its slots.
    pub fn with_deadline(&self, deadline: impl Into<Deadline>) -> Self {
        Self { shared: Arc::clone(&self.shared), connector: self.connector.with_deadline(deadline) }
    }

    /// How many slots it has, free or not.
    pub fn slots(&self) -> usize {
        self.shared.slots()
    }

    /// How many bytes each of them holds.
    pub fn slot_bytes(&self) -> usize {
        self.shared.slot_bytes()
    }

    /// How many are free now.
    pub fn free(&self) -> usize {
        self.shared.free()
    }

    /// All of its memory.
    pub fn region(&self) -> Region {
        self.shared.mapping().region()
    }

    /// A free slot, empty; `None` when all are out.
    pub fn try_take(&self) -> Option<Slot> {
        self.shared.take()
    }

    /// A free slot, empty, once there is one. Who has waited longest is served first.
    ///
    /// This is what slows a sender down to the pace of its receivers: slots are out while they are in operations.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`] when none came back in time, [`Error::ShutDown`].
    pub fn take(&self) -> Task<Slot, Error> {
        match self.shared.take_or_wait(|| self.connector.waiter(self.slot_bytes())) {
            Ok(slot) => Task::ready(Ok(slot)),
            Err(waiter) => {
                let handle = self.connector.wait(waiter);
                Task::after(Completion::new(handle, taken), Task::ready)
            }
        }
    }

    /// Offers a free slot for a peer to write `bytes` bytes to, once there is one. Send the operation's metadata to
    /// the peer, which writes with [`Connector::begin_write`]; then the operation gives the slot, filled.
    ///
    /// So a receiver decides how much may be on its way to it: who pushes waits for a document, not for memory. The
    /// deadline is one for both, a slot to come free and the peer to write.
    ///
    /// ```
    /// use connect_core::{Connector, RdmaMetadata};
    ///
    /// let (sender, receiver) = (Connector::local()?, Connector::local()?); // usually in two processes
    /// let inbox = receiver.slab(2, 1 << 20).wait()?;
    ///
    /// let embedding = vec![0.5f32; 1000];
    /// let offer = inbox.receive(4000).wait()?; // the sender said how much it has
    /// let metadata = RdmaMetadata::from_json(&offer.metadata().to_json())?;
    /// sender.begin_write(embedding, &metadata).wait()?.wait_for_completion().wait()?;
    /// let received = offer.wait_for_completion().wait()?.memory;
    /// assert_eq!(received.len(), 4000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Memory`] when a slot does not hold so much, or for no bytes at all; else as [`take`](Self::take) and
    /// [`Connector::create_writable`].
    pub fn receive(&self, bytes: usize) -> Task<WritableOperation<Slot>, Error> {
        let (needed, room) = (bytes as u64, self.slot_bytes() as u64);
        if needed > room {
            return Task::ready(Err(MemoryError::TooSmall { needed, room }.into()));
        }
        // One deadline for both steps.
        let slab =
            Self { shared: Arc::clone(&self.shared), connector: self.connector.with_deadline_from_now() };
        let connector = slab.connector.clone();
        let offer = move |taken: Result<Slot, Error>| {
            let sized = taken.and_then(|mut slot| slot.set_len(bytes).map(|()| slot).map_err(Error::from));
            match sized.map(|slot| connector.create_writable(slot)) {
                Ok(offered) => Task::after(offered, |offered| Task::ready(offered.map_err(Error::from))),
                Err(error) => Task::ready(Err(error)),
            }
        };
        match slab.try_take() {
            // With a slot at hand the offer begins now, and not when somebody first looks.
            Some(slot) => offer(Ok(slot)),
            None => Task::after(slab.take(), offer),
        }
    }
}

impl fmt::Debug for Slab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab")
            .field("slots", &self.slots())
            .field("slot_bytes", &self.slot_bytes())
            .field("free", &self.free())
            .finish()
    }
}
