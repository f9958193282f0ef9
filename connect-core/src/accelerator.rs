//! Memory of accelerators: what must be over before a transport touches it, and before its owner does.
//!
//! A GPU works through queues (streams) of its own, while the transport moves bytes without asking them. So an
//! operation over such memory waits for the device twice (P3): before a peer can reach the memory, until all that was
//! queued for it is done, and after bytes have arrived, until they can be seen by whatever is queued next. Both block,
//! for as long as the device has work; so they happen on a thread of the device, neither on the caller's nor on the
//! driver's.
//!
//! This crate knows no GPU library. Memory names its [`Accelerator`]s, and the tensor adapters implement them.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::{fmt, thread};

use crate::Device;
use crate::memory::MemoryError;

/// A device with queues of work, as operations over its memory need it.
pub trait Accelerator: Send + Sync + 'static {
    /// Which device.
    fn device(&self) -> Device;

    /// Makes the device's context that of the calling thread. Called on the driver thread before each call of the
    /// transport about memory of the device: engines look at the context of the thread they are called on.
    ///
    /// # Errors
    /// What the device's driver said.
    fn bind(&self) -> Result<(), String>;

    /// Blocks until everything is done that any thread had queued on the device before this call, and until what
    /// others wrote into its memory can be seen by all that is queued after.
    ///
    /// Of all queues: on most devices a thread can wait for its own without noticing that the work is in another's.
    ///
    /// # Errors
    /// What the device's driver said. The operation fails with it.
    fn synchronize(&self) -> Result<(), String>;
}

impl fmt::Debug for dyn Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Accelerator({})", self.device())
    }
}

/// The devices of one operation's memory. Empty for system memory.
pub type Accelerators = Vec<Arc<dyn Accelerator>>;

/// Waits for all of them.
pub(crate) fn synchronize(accelerators: &[Arc<dyn Accelerator>]) -> Result<(), MemoryError> {
    accelerators.iter().try_for_each(|one| run(one.as_ref(), || ()))
}

/// Waits for the device, and then does the work.
pub(crate) fn run<T>(accelerator: &dyn Accelerator, work: impl FnOnce() -> T) -> Result<T, MemoryError> {
    // An adapter's code; whoever waits must hear of its end in any case.
    let done = catch_unwind(AssertUnwindSafe(|| accelerator.synchronize().map(|()| work())));
    let done = done.unwrap_or_else(|_| Err("the work for it panicked".to_owned()));
    done.map_err(|reason| MemoryError::Accelerator { device: accelerator.device(), reason })
}

/// Makes the first one's context that of the calling thread.
///
/// Of several devices of one operation the first is as good as any: what engines look for is that there is a context
/// at all, and the device of an address they ask the device's driver for.
pub(crate) fn bind(accelerators: &[Arc<dyn Accelerator>]) -> Result<(), MemoryError> {
    let Some(first) = accelerators.first() else { return Ok(()) };
    first.bind().map_err(|reason| MemoryError::Accelerator { device: first.device(), reason })
}

type Job = Box<dyn FnOnce() + Send>;

/// One thread for each device, for what blocks until the device has worked. They last as long as the process.
static THREADS: LazyLock<Mutex<HashMap<Device, Sender<Job>>>> = LazyLock::new(Mutex::default);

/// Runs `job` on the device's thread, after those that came before. Whoever waits for it is told by the job alone: if the
/// system has no thread to give it runs here, and its caller waits for the device, be it a driver.
pub fn run_on_thread_of(device: Device, job: impl FnOnce() + Send + 'static) {
    let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut job: Job = Box::new(job);
    if let Some(jobs) = threads.get(&device) {
        match jobs.send(job) {
            Ok(()) => return,
            Err(refused) => job = refused.0,
        }
    }
    let (jobs, inbox) = channel::<Job>();
    let work = move || {
        for job in inbox {
            // A job is an adapter's code; its panic must not end the thread that looks after everybody.
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!(%device, "work on an accelerator's thread panicked");
            }
        }
    };
    match thread::Builder::new().name(format!("connect-{device}")).spawn(work) {
        Ok(_) => {
            // Its receiver is on the thread that was started just now.
            let _ = jobs.send(job);
            threads.insert(device, jobs);
        }
        Err(error) => {
            drop(threads);
            tracing::warn!(%device, %error, "no thread for an accelerator; its work blocks the caller");
            job();
        }
    }
}
