//! How the driver waits: it yields while something is about to happen, then sleeps for longer and longer.
//!
//! It never spins without yielding. Where the drivers of both peers share a core, as they do on small machines
//! whenever the scheduler happens to put them there, a spinning one keeps the other from answering: 50 us of
//! it made a 4 KiB read over NIXL take 75 us instead of 20, for as long as the placement lasted. With a core of
//! its own, yielding costs a system call of 0.3 us.
//!
//! Over a transport that can't wake it, whether it pays to look without a pause is tried out ([`Trial`]).

use std::time::{Duration, Instant};

use crate::trial::Trial;

/// How a connector trades processor time for latency, see [`ConnectorBuilder::polling`].
///
/// A transport that wakes the driver (`local`) is quick and idle at any of them; what they change most is NIXL,
/// which has nothing to wait on and must be looked at.
///
/// [`ConnectorBuilder::polling`]: crate::ConnectorBuilder::polling
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Polling {
    /// Never sleeps while an operation is open: a core of its own for each connector in use.
    Latency,
    /// Looks without a pause only while operations follow closely on each other. With offers open and nothing
    /// happening, over NIXL, it uses 2 to 4 % of a core and looks every millisecond.
    #[default]
    Balanced,
    /// Sleeps early and long: with offers open and nothing happening, over NIXL, it uses less than 1 % of a core
    /// and looks every 8 milliseconds.
    Efficient,
}

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

/// The limits of one [`Polling`].
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// How long to yield with a transfer in flight, and with anything else while that pays.
    yields: Duration,
    /// The longest sleep with a transfer in flight: a large copy loses at most this much at its end.
    active: Duration,
    /// The longest sleep with offers open, and so between two looks for a peer's completion.
    passive: Duration,
}

/// Yielding covers a few scheduler quanta, after which the peer is clearly not about to answer.
const YIELD: Duration = Duration::from_micros(500);
/// An event-driven transport is looked at for this long before the thread sleeps: the next frame of an
/// exchange comes after 5 to 20 us, and a sleep in between costs more than that.
const EVENT_YIELD: Duration = Duration::from_micros(30);
/// The first sleep. Linux adds about 50 us of timer slack to any sleep, so less would change little.
const FIRST_SLEEP: Duration = Duration::from_micros(50);
/// After the last operation the driver looks on for a moment, because the next one often follows at once.
const LINGER: Duration = Duration::from_millis(2);
/// How often a transport that can't wake the driver is looked at while nothing is open, so that peers that
/// connect, disconnect or send something stray are answered. 50 times a second costs 0.1 % of a core.
const IDLE_LOOK: Duration = Duration::from_millis(20);

impl Polling {
    fn limits(self) -> Limits {
        match self {
            Self::Latency => Limits { yields: Duration::MAX, active: FIRST_SLEEP, passive: FIRST_SLEEP },
            // A wake-up costs 10 to 25 us, and a sleep lasts up to 60 us longer than asked for.
            Self::Balanced => Limits {
                yields: YIELD,
                active: Duration::from_micros(200),
                passive: Duration::from_micros(900),
            },
            Self::Efficient => Limits {
                yields: EVENT_YIELD,
                active: Duration::from_millis(1),
                passive: Duration::from_millis(8),
            },
        }
    }
}

/// Chooses pauses from how long nothing has happened, and whether looking for it paid lately.
#[derive(Debug)]
pub(crate) struct Pace {
    event_driven: bool,
    polling: Polling,
    limits: Limits,
    /// When this wait began, and for what.
    idle_since: Option<(Instant, Load)>,
    trial: Trial,
    sleep: Duration,
}

impl Pace {
    /// `event_driven` transports wake the driver themselves, so it may sleep at once.
    pub(crate) fn new(event_driven: bool, polling: Polling) -> Self {
        let mut limits = polling.limits();
        if event_driven && polling == Polling::Balanced {
            limits.yields = EVENT_YIELD;
        }
        Self { event_driven, polling, limits, idle_since: None, trial: Trial::default(), sleep: FIRST_SLEEP }
    }

    /// Something happened in this round.
    pub(crate) fn busy(&mut self, now: Instant) {
        // How long own transfers take says nothing about when the next one comes.
        if let Some((since, Load::Passive | Load::None)) = self.idle_since {
            self.trial.learn(now.saturating_duration_since(since) < self.limits.yields);
        }
        self.idle_since = None;
        self.sleep = FIRST_SLEEP;
    }

    /// Nothing happened in this round.
    pub(crate) fn idle(&mut self, load: Load, now: Instant) -> Pause {
        let (since, _) = *self.idle_since.get_or_insert((now, load));
        let idle = now.saturating_duration_since(since);
        if idle < self.yields_for(load) {
            return Pause::Yield;
        }
        match load {
            Load::None if self.event_driven => Pause::Park,
            _ if self.event_driven => Pause::Sleep(Duration::MAX),
            Load::None if idle > LINGER || !self.looks_on() => Pause::Sleep(IDLE_LOOK),
            load => {
                let longest = if load == Load::Active { self.limits.active } else { self.limits.passive };
                let sleep = self.sleep.min(longest);
                self.sleep = (self.sleep * 2).min(self.limits.passive);
                Pause::Sleep(sleep)
            }
        }
    }

    fn yields_for(&self, load: Load) -> Duration {
        match (self.polling, load) {
            (Polling::Latency, Load::None) => LINGER,
            (Polling::Latency, _) => Duration::MAX,
            _ if self.looks_on() => self.limits.yields,
            (_, Load::Active) => EVENT_YIELD,
            _ => Duration::ZERO,
        }
    }

    /// Whether it looks without a pause for as long as its limits say.
    fn looks_on(&self) -> bool {
        match self.polling {
            Polling::Latency => true,
            Polling::Balanced => self.trial.pays(),
            Polling::Efficient => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Duration = Duration::from_millis(5);

    /// A pace that has waited so long for others, often.
    fn used_to(polling: Polling, event_driven: bool, waits: &[u64]) -> (Pace, Instant) {
        let (mut pace, mut now) = (Pace::new(event_driven, polling), Instant::now());
        for wait in waits.iter().cycle().take(1000) {
            pace.idle(Load::Passive, now);
            now += Duration::from_micros(*wait);
            pace.busy(now);
        }
        (pace, now)
    }

    #[test]
    fn a_transfer_in_flight_is_yielded_to_then_slept_on() {
        let mut pace = Pace::new(false, Polling::Balanced);
        let start = Instant::now();
        assert_eq!(pace.idle(Load::Active, start), Pause::Yield);
        assert_eq!(pace.idle(Load::Active, start + Duration::from_micros(60)), Pause::Yield);
        assert_eq!(pace.idle(Load::Active, start + LATER), Pause::Sleep(FIRST_SLEEP));
        let longest = Polling::Balanced.limits();
        for _ in 0..10 {
            assert!(matches!(pace.idle(Load::Active, start + LATER), Pause::Sleep(d) if d <= longest.active));
        }
        assert_eq!(pace.idle(Load::Passive, start + LATER), Pause::Sleep(longest.passive));
        pace.busy(start + LATER);
        assert_eq!(pace.idle(Load::Active, start + LATER), Pause::Yield);
    }

    #[test]
    fn peers_are_yielded_to_only_while_that_pays() {
        let (mut pace, now) = used_to(Polling::Balanced, false, &[20, 70, 30]);
        assert_eq!(pace.idle(Load::Passive, now), Pause::Yield);
        // A thousand operations a second: one wait in two is long.
        let (mut pace, now) = used_to(Polling::Balanced, false, &[70, 900]);
        assert!(matches!(pace.idle(Load::Passive, now), Pause::Sleep(_)));
    }

    #[test]
    fn own_transfers_do_not_count_as_waiting_for_peers() {
        let (mut pace, mut now) = used_to(Polling::Balanced, false, &[5000]);
        let before = pace.trial.clone();
        for _ in 0..50 {
            pace.idle(Load::Active, now);
            now += Duration::from_micros(20);
            pace.busy(now);
        }
        assert_eq!(pace.trial, before);
    }

    #[test]
    fn latency_never_sleeps_on_what_is_open_and_efficient_hardly_yields() {
        let (mut pace, now) = used_to(Polling::Latency, false, &[5000]);
        for load in [Load::Active, Load::Passive] {
            assert_eq!(pace.idle(load, now + Duration::from_secs(60)), Pause::Yield);
        }
        let (mut pace, now) = used_to(Polling::Efficient, false, &[40]);
        assert_eq!(pace.idle(Load::Active, now), Pause::Yield);
        assert!(matches!(pace.idle(Load::Active, now + EVENT_YIELD), Pause::Sleep(_)));
        for _ in 0..20 {
            pace.idle(Load::Passive, now + LATER);
        }
        assert_eq!(pace.idle(Load::Passive, now + LATER), Pause::Sleep(Duration::from_millis(8)));
    }

    #[test]
    fn with_nothing_to_do_the_thread_sleeps() {
        for polling in [Polling::Latency, Polling::Balanced, Polling::Efficient] {
            let mut pace = Pace::new(false, polling);
            let start = Instant::now();
            assert_eq!(pace.idle(Load::None, start) == Pause::Yield, polling != Polling::Efficient);
            assert_eq!(pace.idle(Load::None, start + LINGER * 2), Pause::Sleep(IDLE_LOOK));
            let mut pace = Pace::new(true, polling);
            pace.idle(Load::None, start);
            assert_eq!(pace.idle(Load::None, start + LINGER), Pause::Park);
        }
    }
}
