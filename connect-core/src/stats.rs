//! What a connector has done so far: [`Stats`].

use std::sync::atomic::{AtomicU64, Ordering};

/// A snapshot of a connector's counters, all since it was built unless they say "now".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
    /// Notifications that matched no operation: late, foreign, or hostile.
    pub unmatched_notifications: u64,
}

macro_rules! counters {
    ($($name:ident),* $(,)?) => {
        /// The counters behind [`Stats`], shared by the driver and the handles.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
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
    unmatched_notifications,
);

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

pub(crate) fn sub(counter: &AtomicU64, n: u64) {
    counter.fetch_sub(n, Ordering::Relaxed);
}
