//! Where the driver and its operations take the time from: [`Clock`].

use std::time::{Duration, Instant};

#[cfg(test)]
pub(crate) use virtual_time::Virtual;

/// The system's monotonic clock, or in unit tests one that only moves when told to, so that a driver can be
/// stepped through minutes without waiting. Outside of tests it has one variant and no size.
#[derive(Debug, Clone, Default)]
pub(crate) enum Clock {
    /// The system's.
    #[default]
    Real,
    /// A test's.
    #[cfg(test)]
    Virtual(std::sync::Arc<Virtual>),
}

impl Clock {
    #[inline]
    pub(crate) fn now(&self) -> Instant {
        match self {
            Self::Real => Instant::now(),
            #[cfg(test)]
            Self::Virtual(time) => time.now(),
        }
    }

    /// Blocks the calling thread; virtual time passes at once.
    pub(crate) fn sleep(&self, time: Duration) {
        match self {
            Self::Real => std::thread::sleep(time),
            #[cfg(test)]
            Self::Virtual(_) => self.advance(time),
        }
    }
}

#[cfg(test)]
mod virtual_time {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use super::Clock;

    /// A moment that a test moves on.
    #[derive(Debug)]
    pub(crate) struct Virtual {
        start: Instant,
        nanos: AtomicU64,
    }

    impl Virtual {
        pub(super) fn now(&self) -> Instant {
            self.start + Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
        }
    }

    impl Clock {
        /// A clock that stands still.
        pub(crate) fn virtual_time() -> Self {
            Self::Virtual(Arc::new(Virtual { start: Instant::now(), nanos: AtomicU64::new(0) }))
        }

        /// Moves a virtual clock on.
        pub(crate) fn advance(&self, by: Duration) {
            let Self::Virtual(time) = self else { panic!("the system's clock moves by itself") };
            time.nanos.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
        }
    }

    #[test]
    fn virtual_time_passes_only_when_told() {
        let clock = Clock::virtual_time();
        let before = clock.clone().now();
        clock.advance(Duration::from_secs(3600));
        assert_eq!(clock.now() - before, Duration::from_secs(3600));
    }
}
