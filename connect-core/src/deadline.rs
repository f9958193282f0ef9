//! When an operation must have ended: [`Deadline`].

use std::time::{Duration, Instant};

/// When an operation must have ended, in success or a typed error (P2).
///
/// ```
/// use connect_core::Deadline;
/// use std::time::Duration;
///
/// let default = Deadline::default(); // 30 s after the operation is created
/// assert_eq!(default, Deadline::after(Duration::from_secs(30)));
/// let patient = Deadline::never(); // waits for ever, and says so
/// assert_ne!(default, patient);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(When);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    After(Duration),
    At(Instant),
    Never,
}

impl Deadline {
    /// Long enough for any healthy transfer between two hosts, short enough that a dead peer is noticed
    /// before an operator does.
    pub const DEFAULT: Self = Self(When::After(Duration::from_secs(30)));

    /// This long after the operation is created.
    pub const fn after(duration: Duration) -> Self {
        Self(When::After(duration))
    }

    /// At this moment.
    pub const fn at(instant: Instant) -> Self {
        Self(When::At(instant))
    }

    /// Never. The operation may wait for ever for a peer that does not come.
    pub const fn never() -> Self {
        Self(When::Never)
    }

    /// The moment it stands for when an operation is created at `now`. A moment beyond what the clock can
    /// hold is never.
    pub(crate) fn resolve(self, now: Instant) -> Option<Instant> {
        match self.0 {
            When::After(duration) => now.checked_add(duration),
            When::At(instant) => Some(instant),
            When::Never => None,
        }
    }
}

impl Default for Deadline {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl From<Duration> for Deadline {
    fn from(duration: Duration) -> Self {
        Self::after(duration)
    }
}
