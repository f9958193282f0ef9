//! How the driver waits: it yields for a while, then sleeps for longer and longer.
//!
//! It never spins without yielding. Where the drivers of both peers share a core, as they do on small machines
//! whenever the scheduler happens to put them there, a spinning one keeps the other from answering: 50 us of
//! it made a 4 KiB read over NIXL take 75 us instead of 20, for as long as the placement lasted. With a core of
//! its own, yielding costs a system call of 0.3 us.

use std::time::{Duration, Instant};

/// What the driver is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    /// A transfer of ours is in flight: latency is felt.
    Active,
    /// Peers may come, or memory may become quiet.
    Passive,
    /// Nothing at all.
    None,
}

/// What to do before the next round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    /// Let others run first: on few cores the peer may need this one.
    Yield,
    /// Sleep this long at most.
    Sleep(Duration),
    /// Sleep until woken.
    Park,
}

/// Yielding covers a few scheduler quanta, after which the peer is clearly not about to answer.
const YIELD: Duration = Duration::from_micros(500);
/// An event-driven transport is looked at for this long before the thread sleeps: the next frame of an
/// exchange comes after 5 to 20 us, and a sleep in between costs more than that.
const EVENT_YIELD: Duration = Duration::from_micros(30);
/// The first sleep. Linux adds about 50 us of timer slack to any sleep, so less would change little.
const FIRST_SLEEP: Duration = Duration::from_micros(50);
/// The longest sleep with a transfer in flight: large copies lose at most this much at their end.
const LONGEST_ACTIVE_SLEEP: Duration = Duration::from_micros(200);
/// The longest sleep with offers open. A wake-up costs 20 to 50 us on the virtual machines measured, so an
/// idle connector uses 1 to 2.5 % of a core, and a peer's completion is noticed within two milliseconds.
const LONGEST_PASSIVE_SLEEP: Duration = Duration::from_millis(2);
/// After the last operation the driver looks on for a moment, because the next one often follows at once.
const LINGER: Duration = Duration::from_millis(2);
/// How often a transport that can't wake the driver is looked at while nothing is open, so that peers that
/// connect, disconnect or send something stray are answered. 50 times a second costs 0.1 % of a core.
const IDLE_LOOK: Duration = Duration::from_millis(20);

/// Chooses pauses from how long nothing has happened.
#[derive(Debug)]
pub(crate) struct Pace {
    event_driven: bool,
    idle_since: Option<Instant>,
    sleep: Duration,
}

impl Pace {
    /// `event_driven` transports wake the driver themselves, so it may sleep at once.
    pub(crate) fn new(event_driven: bool) -> Self {
        Self { event_driven, idle_since: None, sleep: FIRST_SLEEP }
    }

    /// Something happened in this round.
    pub(crate) fn busy(&mut self) {
        self.idle_since = None;
        self.sleep = FIRST_SLEEP;
    }

    /// Nothing happened in this round.
    pub(crate) fn idle(&mut self, load: Load, now: Instant) -> Pause {
        let idle = now.saturating_duration_since(*self.idle_since.get_or_insert(now));
        match load {
            _ if self.event_driven && idle < EVENT_YIELD => Pause::Yield,
            Load::None if self.event_driven => Pause::Park,
            _ if self.event_driven => Pause::Sleep(Duration::MAX),
            Load::None if idle > LINGER => Pause::Sleep(IDLE_LOOK),
            _ if idle < YIELD => Pause::Yield,
            load => {
                let longest = if load == Load::Active { LONGEST_ACTIVE_SLEEP } else { LONGEST_PASSIVE_SLEEP };
                let sleep = self.sleep.min(longest);
                self.sleep = (self.sleep * 2).min(LONGEST_PASSIVE_SLEEP);
                Pause::Sleep(sleep)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_polled_transport_is_yielded_then_slept_on() {
        let mut pace = Pace::new(false);
        let start = Instant::now();
        assert_eq!(pace.idle(Load::Active, start), Pause::Yield);
        assert_eq!(pace.idle(Load::Active, start + Duration::from_micros(60)), Pause::Yield);
        let later = start + Duration::from_millis(5);
        assert_eq!(pace.idle(Load::Active, later), Pause::Sleep(FIRST_SLEEP));
        for _ in 0..10 {
            assert!(matches!(pace.idle(Load::Active, later), Pause::Sleep(d) if d <= LONGEST_ACTIVE_SLEEP));
        }
        assert_eq!(pace.idle(Load::Passive, later), Pause::Sleep(LONGEST_PASSIVE_SLEEP));
        pace.busy();
        assert_eq!(pace.idle(Load::Active, later), Pause::Yield);
    }

    #[test]
    fn with_nothing_to_do_the_thread_sleeps() {
        let mut pace = Pace::new(false);
        let start = Instant::now();
        assert_ne!(pace.idle(Load::None, start), Pause::Sleep(IDLE_LOOK));
        assert_eq!(pace.idle(Load::None, start + LINGER * 2), Pause::Sleep(IDLE_LOOK));
        let mut pace = Pace::new(true);
        assert_eq!(pace.idle(Load::None, start), Pause::Yield);
        assert_eq!(pace.idle(Load::None, start + EVENT_YIELD), Pause::Park);
        assert_eq!(pace.idle(Load::Active, start + EVENT_YIELD), Pause::Sleep(Duration::MAX));
    }
}
