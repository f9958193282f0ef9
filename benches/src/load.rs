//! [`Load`], what a pair of processes is asked to do, and [`Round`], what it answers.

use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Samples;

/// One point of a sweep. Everything but the axis of that sweep is as in [`Load::PAGE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Bytes in each descriptor.
    pub size: usize,
    /// Descriptors in each operation. They never adjoin, so that no engine can merge them.
    pub descriptors: usize,
    /// Operations begun together, in one burst; the next burst begins when all of them have ended.
    pub in_flight: usize,
    /// Further offers that are open on the passive side meanwhile, and that nobody takes.
    pub open: usize,
    /// Further regions that are registered on the passive side.
    pub regions: usize,
    /// Passive peers, which the operations take turns with.
    pub peers: usize,
    /// Notifications from a stranger, which match no operation, that the passive side was sent before.
    pub strangers: usize,
    /// How long nothing happens before a burst, while its offer is open.
    pub idle: Duration,
    /// Bursts begin at this interval; as soon as possible where it is zero.
    pub every: Duration,
    /// How long the round goes on.
    pub lasts: Duration,
    /// Bursts in the round at the least, however long they take.
    pub fewest: usize,
    /// Without a warm-up: the first operation of two fresh processes.
    pub cold: bool,
}

impl Load {
    /// One read of a page at a time: the size that the goals are stated for.
    pub const PAGE: Self = Self {
        size: 4096,
        descriptors: 1,
        in_flight: 1,
        open: 0,
        regions: 0,
        peers: 1,
        strangers: 0,
        idle: Duration::ZERO,
        every: Duration::ZERO,
        lasts: Duration::from_millis(300),
        fewest: 3,
        cold: false,
    };

    /// Bytes that one operation moves.
    pub fn bytes(&self) -> usize {
        self.size * self.descriptors
    }
}

/// What came of one round.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Round {
    /// Of each operation: from `begin_read`, or what stands for it, to its completion on the active side.
    pub reads: Samples,
    /// Of each burst: from its first operation's beginning to its last one's completion.
    pub bursts: Samples,
    /// Of each burst: from asking the passive side for an offer until both sides know of the completion.
    pub wholes: Samples,
    /// Of each burst of one: from `begin_read` until the passive side's caller knows.
    pub learned: Samples,
    /// Of each operation: making the offer, up to its metadata.
    pub offers: Samples,
    /// Bytes moved in bursts.
    pub bytes: u64,
    /// Time spent idle before bursts.
    pub idle: Duration,
    /// The whole round, without what prepares it.
    pub elapsed: Duration,
    /// What the active side used.
    pub active: Usage,
    /// What the passive side used.
    pub passive: Usage,
    /// Length of one operation's metadata as JSON, in bytes.
    pub document: usize,
}

/// What one process used in a round.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time within bursts.
    pub bursts: Duration,
    /// Processor time while idle before bursts.
    pub idle: Duration,
    /// Processor time in the whole round.
    pub whole: Duration,
    /// Resident memory at the end, in bytes.
    pub resident: u64,
}

impl Round {
    /// Takes in another round of the same load.
    pub fn extend(&mut self, other: &Self) {
        for (mine, others) in [
            (&mut self.reads, &other.reads),
            (&mut self.bursts, &other.bursts),
            (&mut self.wholes, &other.wholes),
            (&mut self.learned, &other.learned),
            (&mut self.offers, &other.offers),
        ] {
            mine.extend(others);
        }
        self.bytes += other.bytes;
        self.idle += other.idle;
        self.elapsed += other.elapsed;
        self.active.extend(other.active);
        self.passive.extend(other.passive);
        self.document = other.document;
    }
}

impl Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bursts: self.bursts + other.bursts,
            idle: self.idle + other.idle,
            whole: self.whole + other.whole,
            resident: self.resident + other.resident,
        }
    }
}

impl Usage {
    /// Takes in what the same process used in another round. Its memory is the most it had.
    fn extend(&mut self, other: Self) {
        let resident = self.resident.max(other.resident);
        *self = Self { resident, ..*self + other };
    }
}
