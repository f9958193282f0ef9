//! The life of one operation as a pure state machine: no clock, no transport, no threads.
//!
//! The driver feeds it what happened, together with what the transport said about the memory, and does
//! what the returned [`Step`] says. So every interleaving can be tested by calling one function.
//!
//! ```text
//!            Opened            Completed
//!   Starting ─────▶ Open ─────────────────────▶ Finished   memory goes back with the verdict
//!       │            │ Failed, Stop (quiet)   ▲
//!       │            ├────────────────────────┤
//!       │            │ Stop(Cancelled), busy  │ Quiet
//!       │            ├──────────▶ Stopping ───┤
//!       │            │               │ GraceOver
//!       │            │ Failed, Stop  ▼        │ Quiet
//!       └────────────┴──────────▶ Parked ─────┘            verdict first, memory when it is quiet
//! ```

use super::OperationStatus;
use crate::transport::Quiescence;

/// Where an operation stands. Created [`Starting`](Phase::Starting), ends [`Finished`](Phase::Finished).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The transport does not know it yet; nothing can touch its memory.
    Starting,
    /// Offered or posted.
    Open,
    /// Cancelled, and waiting a little for the transport to let go of the memory.
    Stopping,
    /// The caller has its verdict, but the memory may still be touched.
    Parked,
    /// Nothing can touch the memory.
    Finished,
}

/// What happened to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The transport took it: offered, or first slice posted.
    Opened,
    /// Bytes moved.
    Moved,
    /// The transfer is complete, or its notification came.
    Completed,
    /// The transport failed it, and this is what is known about the memory.
    Failed(Quiescence),
    /// This side ends it, and this is what is known about the memory.
    Stop(Why, Quiescence),
    /// The time that a cancelled operation may wait for quiet is over.
    GraceOver,
    /// The transport let go of the memory.
    Quiet,
}

/// Why this side ends an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// `cancel` was called, or the handle dropped.
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// The connector shuts down.
    ShutDown,
}

/// What the caller is told. Given exactly once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Success.
    Complete,
    /// The transport's error.
    Failed,
    /// This side ended it.
    Stopped(Why),
}

/// What the driver does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// Tell the caller, now.
    pub(crate) verdict: Option<Verdict>,
    /// What becomes of the memory.
    pub(crate) memory: Memory,
}

/// What becomes of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// The operation keeps it.
    Keep,
    /// Ask the transport from time to time whether it is quiet.
    Watch,
    /// Nothing touches it: it goes back with the verdict, or is freed if that was given earlier.
    Release,
}

/// The state machine of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    phase: Phase,
    status: OperationStatus,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self { phase: Phase::Starting, status: OperationStatus::Uninitialized }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn status(&self) -> OperationStatus {
        self.status
    }

    /// Takes in one event. Events that come too late change nothing.
    pub(crate) fn on(&mut self, event: Event) -> Step {
        #[cfg(test)]
        STEPS.set(STEPS.get() + 1);
        use Phase::{Finished, Open, Parked, Starting, Stopping};
        match (self.phase, event) {
            (Starting, Event::Opened) => {
                self.phase = Open;
                self.status = OperationStatus::Initialized;
                Step { verdict: None, memory: Memory::Keep }
            }
            (Open, Event::Moved) => {
                self.status = OperationStatus::InProgress;
                Step { verdict: None, memory: Memory::Keep }
            }
            (Starting | Open, Event::Completed) => self.end(Verdict::Complete, Quiescence::Quiet),
            (Starting | Open, Event::Failed(quiet)) => self.end(Verdict::Failed, quiet),
            (Open, Event::Stop(Why::Cancelled, Quiescence::Busy)) => {
                self.phase = Stopping;
                Step { verdict: None, memory: Memory::Watch }
            }
            (Starting | Open, Event::Stop(why, quiet)) => self.end(Verdict::Stopped(why), quiet),
            (Stopping, Event::Quiet | Event::Completed) => {
                self.end(Verdict::Stopped(Why::Cancelled), Quiescence::Quiet)
            }
            (Stopping, Event::GraceOver | Event::Stop(_, Quiescence::Busy)) => {
                self.end(Verdict::Stopped(Why::Cancelled), Quiescence::Busy)
            }
            (Stopping, Event::Failed(quiet) | Event::Stop(_, quiet)) => {
                self.end(Verdict::Stopped(Why::Cancelled), quiet)
            }
            (Parked, Event::Quiet | Event::Completed | Event::Failed(Quiescence::Quiet)) => {
                self.phase = Finished;
                Step { verdict: None, memory: Memory::Release }
            }
            (Parked, Event::Stop(_, Quiescence::Quiet)) => {
                self.phase = Finished;
                Step { verdict: None, memory: Memory::Release }
            }
            (Starting | Open | Stopping | Parked | Finished, _) => {
                Step { verdict: None, memory: Memory::Keep }
            }
        }
    }

    fn end(&mut self, verdict: Verdict, quiet: Quiescence) -> Step {
        self.status = match verdict {
            Verdict::Complete => OperationStatus::Complete,
            Verdict::Stopped(Why::Cancelled) => OperationStatus::Cancelled,
            Verdict::Failed | Verdict::Stopped(_) => OperationStatus::Errored,
        };
        let memory = match quiet {
            Quiescence::Quiet => {
                self.phase = Phase::Finished;
                Memory::Release
            }
            Quiescence::Busy => {
                self.phase = Phase::Parked;
                Memory::Watch
            }
        };
        Step { verdict: Some(verdict), memory }
    }
}

#[cfg(test)]
thread_local!(static STEPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });

/// How many events the machines of this thread have taken in.
#[cfg(test)]
pub(crate) fn steps() -> u64 {
    STEPS.get()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Quiescence::{Busy, Quiet};

    fn run(events: &[Event]) -> (Machine, Vec<Step>) {
        let mut machine = Machine::new();
        let steps = events.iter().map(|event| machine.on(*event)).collect();
        (machine, steps)
    }

    #[test]
    fn a_read_that_goes_well_passes_through_the_original_s_states() {
        let mut machine = Machine::new();
        assert_eq!(machine.status(), OperationStatus::Uninitialized);
        machine.on(Event::Opened);
        assert_eq!(machine.status(), OperationStatus::Initialized);
        machine.on(Event::Moved);
        assert_eq!(machine.status(), OperationStatus::InProgress);
        let step = machine.on(Event::Completed);
        assert_eq!(machine.status(), OperationStatus::Complete);
        assert_eq!(step, Step { verdict: Some(Verdict::Complete), memory: Memory::Release });
    }

    #[test]
    fn a_final_status_never_changes() {
        // D40 of the original: cancel after completion turned COMPLETE into CANCELLED.
        let (machine, steps) = run(&[Event::Opened, Event::Completed, Event::Stop(Why::Cancelled, Quiet)]);
        assert_eq!(machine.status(), OperationStatus::Complete);
        assert_eq!(steps[2], Step { verdict: None, memory: Memory::Keep });
    }

    #[test]
    fn p1_a_deadline_over_busy_memory_answers_at_once_and_parks_the_memory() {
        let (machine, steps) = run(&[Event::Opened, Event::Stop(Why::Deadline, Busy), Event::Quiet]);
        assert_eq!(steps[1], Step { verdict: Some(Verdict::Stopped(Why::Deadline)), memory: Memory::Watch });
        assert_eq!(steps[2], Step { verdict: None, memory: Memory::Release });
        assert_eq!(machine.phase(), Phase::Finished);
    }

    #[test]
    fn a_cancel_waits_for_quiet_but_not_for_ever() {
        let (_, steps) = run(&[Event::Opened, Event::Stop(Why::Cancelled, Busy), Event::Quiet]);
        assert_eq!(steps[1], Step { verdict: None, memory: Memory::Watch });
        assert_eq!(
            steps[2],
            Step { verdict: Some(Verdict::Stopped(Why::Cancelled)), memory: Memory::Release }
        );
        let (_, steps) = run(&[Event::Opened, Event::Stop(Why::Cancelled, Busy), Event::GraceOver]);
        assert_eq!(steps[2], Step { verdict: Some(Verdict::Stopped(Why::Cancelled)), memory: Memory::Watch });
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let quiet = prop_oneof![Just(Quiet), Just(Busy)];
        let why = prop_oneof![Just(Why::Cancelled), Just(Why::Deadline), Just(Why::ShutDown)];
        prop_oneof![
            Just(Event::Opened),
            Just(Event::Moved),
            Just(Event::Completed),
            quiet.clone().prop_map(Event::Failed),
            (why, quiet).prop_map(|(why, quiet)| Event::Stop(why, quiet)),
            Just(Event::GraceOver),
            Just(Event::Quiet),
        ]
    }

    proptest! {
        /// P1 and P2 over every order of events: memory is released at most once and only after the
        /// transport said quiet; the verdict is given at most once, before or with the release, and from
        /// then on the status is final and stays.
        #[test]
        fn p1_p2_hold_in_every_order_of_events(events in prop::collection::vec(any_event(), 0..40)) {
            let mut machine = Machine::new();
            let (mut verdicts, mut releases) = (0, 0);
            let mut settled = None;
            for event in events {
                let before = machine.phase();
                let step = machine.on(event);
                if let Some(status) = settled {
                    prop_assert_eq!(machine.status(), status);
                }
                verdicts += usize::from(step.verdict.is_some());
                if step.memory == Memory::Release {
                    releases += 1;
                    let said_quiet = matches!(
                        event,
                        Event::Completed | Event::Quiet | Event::Failed(Quiet) | Event::Stop(_, Quiet)
                    );
                    prop_assert!(said_quiet, "{:?} in {:?} released the memory", event, before);
                    prop_assert_eq!(verdicts, 1);
                    prop_assert_eq!(machine.phase(), Phase::Finished);
                }
                if step.verdict.is_some() {
                    prop_assert!(machine.status().is_final());
                    settled = Some(machine.status());
                }
            }
            prop_assert!(verdicts <= 1 && releases <= 1);
            // Whatever happened, a stop, the end of the grace and quiet bring every operation to its end.
            for event in [Event::Stop(Why::ShutDown, Busy), Event::GraceOver, Event::Quiet] {
                let step = machine.on(event);
                verdicts += usize::from(step.verdict.is_some());
                releases += usize::from(step.memory == Memory::Release);
            }
            prop_assert_eq!(machine.phase(), Phase::Finished);
            prop_assert_eq!((verdicts, releases), (1, 1));
        }
    }
}
