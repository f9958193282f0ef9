//! What a connector has done so far: [`Stats`].

use std::sync::atomic::{AtomicU64, Ordering};

/// A snapshot of a connector's counters, all since it was built unless they say "now".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Operations that were started.
    pub started: u64,
    /// Operations that completed.
    pub completed: u64,
    /// Operations that failed, missed deadlines included.
    pub failed: u64,
    /// Operations that were cancelled or dropped.
    pub cancelled: u64,
    /// Operations that missed their deadline.
    pub deadlines_missed: u64,
    /// Bytes that completed operations moved out of this process.
    pub bytes_sent: u64,
    /// Bytes that completed operations moved into this process.
    pub bytes_received: u64,
    /// Operations open now.
    pub open: u64,
    /// Operations whose memory is parked now, because the transport could not prove that nothing touches
    /// it any more.
    pub parked: u64,
    /// How much memory that is, in bytes.
    pub parked_bytes: u64,
    /// How much there may be: [`ConnectorBuilder::parked_limit`](crate::ConnectorBuilder::parked_limit).
    pub parked_limit: u64,
    /// Operations that were refused because of that limit. They do not count as started.
    pub refused: u64,
    /// Times that memory was registered with the engine: for a slab once for each agent, for other memory of an
    /// operation when it began. The `local` transport registers nothing.
    pub registrations: u64,
    /// Pieces of memory of operations that were registered already: in a slab, or by another operation over the
    /// same memory.
    pub registration_hits: u64,
    /// Notifications that matched no operation: late, foreign, or hostile.
    pub unmatched_notifications: u64,
}

impl Default for Stats {
    /// Those of a connector with defaults that has done nothing yet.
    fn default() -> Self {
        Counters::new(DEFAULT_PARKED_LIMIT).snapshot()
    }
}

/// How much memory may be parked unless said otherwise: three times the largest hand-off that is common, a
/// prompt of 16,384 tokens of a model with 70 billion parameters in 16 bits (5 GiB of KV cache).
pub(crate) const DEFAULT_PARKED_LIMIT: u64 = 16 << 30;

macro_rules! counters {
    ($($name:ident),* $(,)? ; $($own:ident),*) => {
        /// The counters behind [`Stats`], shared by the driver and the handles.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
            $(pub(crate) $own: AtomicU64,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Stats {
                // Each counter is right by itself; together they may be a moment apart.
                Stats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters!(
    started,
    completed,
    failed,
    cancelled,
    deadlines_missed,
    bytes_sent,
    bytes_received,
    open,
    parked,
    parked_bytes,
    parked_limit,
    refused,
    registrations,
    registration_hits,
    unmatched_notifications;
    // Operations that wait for an accelerator, before they begin or after they ended. Nobody's business but ours.
    awaiting_devices
);

impl Counters {
    pub(crate) fn new(parked_limit: u64) -> Self {
        Self { parked_limit: AtomicU64::new(parked_limit), ..Self::default() }
    }

    /// Whether this many more bytes are taken, and if not, how many are parked. What is open is not counted:
    /// it parks only where a peer fails it. An operation above the limit is taken while nothing is parked.
    pub(crate) fn admit(&self, bytes: u64) -> Result<(), u64> {
        let parked = self.parked_bytes.load(Ordering::Relaxed);
        if parked == 0 || parked.saturating_add(bytes) <= self.parked_limit.load(Ordering::Relaxed) {
            return Ok(());
        }
        add(&self.refused, 1);
        Err(parked)
    }
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

pub(crate) fn sub(counter: &AtomicU64, n: u64) {
    counter.fetch_sub(n, Ordering::Relaxed);
}
