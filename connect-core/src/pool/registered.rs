//! [`Registered`]: a source of the caller's own that stays registered.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::accelerator::Accelerators;
use crate::connector::Connector;
use crate::driver::Registration;
use crate::error::Error;
use crate::op::All;
use crate::task::Task;
use crate::{Region, SourceMemory};

/// Source memory that is registered once, for as long as this or a clone of it is there. Made by
/// [`Connector::registered`].
///
/// It is source memory of every operation, and so is whatever else lies in the same range: an operation over a
/// [`Descriptor`](crate::Descriptor) of a part of it registers nothing either. What [slabs](crate::pool) are for
/// payloads that come and go, this is for what is offered again and again: weights, a shared prefix, a table.
///
/// ```
/// use std::sync::Arc;
/// use connect_core::Connector;
///
/// let (sender, receiver) = (Connector::local()?, Connector::local()?);
/// let weights = sender.registered(Arc::new(vec![0.5f32; 1000])).wait()?;
/// for _ in 0..3 {
///     let offer = sender.create_readable(weights.clone()).wait()?; // nothing is registered or described again
///     let read = receiver.begin_read(offer.metadata(), vec![0f32; 1000]).wait()?;
///     assert_eq!(read.wait_for_completion().wait()?.memory[..], weights[..]);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Registered<M> {
    // Dropped before the memory, of which the driver has a share until no peer can reach it.
    registrations: Arc<Vec<Registration>>,
    memory: Arc<M>,
}

impl Connector {
    /// Registers each piece of `memory` until the last clone of the result is dropped. Memory that lies next to each
    /// other is registered as one.
    ///
    /// Over NIXL a document of any part of it reaches all of it, as with [slabs](crate::pool#who-sees-which-bytes). Over
    /// `local` nothing is registered, and this costs nothing.
    ///
    /// # Errors
    /// [`Error::Transport`] when it can't be registered, or more than 1,024 ranges are. A range that overlaps one that
    /// is registered already is not registered a second time; operations over it register what they need.
    pub fn registered<M: SourceMemory>(&self, memory: M) -> Task<Registered<M>, Error> {
        let memory = Arc::new(memory);
        let accelerators = memory.accelerators();
        let register = |region: Region| self.register(region, accelerators.clone(), Arc::clone(&memory) as _);
        let ranges = crate::memory::joined(&memory.regions(), |_| true);
        let (registrations, registered): (Vec<_>, Vec<_>) = ranges.into_iter().map(register).unzip();
        let registered_memory = Registered { registrations: Arc::new(registrations), memory };
        Task::after(All::new(registered), |results: Vec<Result<(), Error>>| {
            Task::ready(results.into_iter().collect::<Result<(), _>>().map(|()| registered_memory))
        })
    }
}

// SAFETY: the memory's own contract covers its regions until it is dropped, which is after this is.
unsafe impl<M: SourceMemory> SourceMemory for Registered<M> {
    fn regions(&self) -> Vec<Region> {
        self.memory.regions()
    }

    fn accelerators(&self) -> Accelerators {
        self.memory.accelerators()
    }
}

impl<M> Deref for Registered<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.memory
    }
}

impl<M> Clone for Registered<M> {
    fn clone(&self) -> Self {
        Self { registrations: Arc::clone(&self.registrations), memory: Arc::clone(&self.memory) }
    }
}

/// Shows no content.
impl<M> fmt::Debug for Registered<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered").field("ranges", &self.registrations.len()).finish_non_exhaustive()
    }
}
