//! The driver and the watchdog against a caller who polls or waits, in every order.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use loom::sync::Notify;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::{First, Opened, Outcome, Slot};
use crate::error::Error;
use crate::op::OperationStatus;
use crate::trial::Patience;

struct Bell(Notify);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

fn outcome(with_memory: bool) -> Outcome {
    let memory: Option<Box<dyn std::any::Any + Send>> = if with_memory { Some(Box::new(7u8)) } else { None };
    Outcome { result: Err(Error::ShutDown), memory }
}

/// A caller that sleeps until its waker is called; a wake that is lost is a deadlock, which loom reports.
fn block_on<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    let bell = Arc::new(Bell(Notify::new()));
    let waker = Waker::from(Arc::clone(&bell));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(value) = poll(&mut cx) {
            return value;
        }
        bell.0.wait();
    }
}

fn open_then_settle(slot: &Slot) {
    slot.set_status(OperationStatus::Initialized);
    slot.open(Opened::default());
    assert!(slot.settle(OperationStatus::Errored, outcome(true), || {}));
}

#[test]
fn loom_p2_a_caller_that_polls_is_woken_for_both_answers() {
    loom::model(|| {
        let slot = Arc::new(Slot::new());
        let driver = thread::spawn({
            let slot = Arc::clone(&slot);
            move || open_then_settle(&slot)
        });
        assert!(matches!(block_on(|cx| slot.poll_first(cx)), First::Opened(_)));
        assert!(block_on(|cx| slot.poll_outcome(cx)).memory.is_some());
        assert_eq!(slot.status(), OperationStatus::Errored);
        driver.join().unwrap();
    });
}

#[test]
fn loom_p2_a_caller_that_blocks_is_woken_for_both_answers() {
    loom::model(|| {
        let slot = Arc::new(Slot::new());
        let driver = thread::spawn({
            let slot = Arc::clone(&slot);
            move || open_then_settle(&slot)
        });
        assert!(matches!(slot.wait_first(&Patience::default()), First::Opened(_)));
        assert!(slot.wait_outcome(&Patience::default()).memory.is_some());
        driver.join().unwrap();
    });
}

/// The driver and the watchdog both answer: one of them counts, its answer is the one the caller gets, and the
/// status does not change after that.
#[test]
fn loom_p6_of_two_answers_the_first_counts() {
    loom::model(|| {
        let slot = Arc::new(Slot::new());
        let counted = Arc::new(AtomicUsize::new(0));
        let settle = |status, with_memory| {
            let (slot, counted) = (Arc::clone(&slot), Arc::clone(&counted));
            thread::spawn(move || {
                let count = || assert_eq!(counted.fetch_add(1, Ordering::Relaxed), 0);
                let first = slot.settle(status, outcome(with_memory), count);
                slot.set_status(OperationStatus::InProgress);
                first
            })
        };
        let driver = settle(OperationStatus::Cancelled, true);
        let watchdog = settle(OperationStatus::Errored, false);
        let ended = block_on(|cx| slot.poll_outcome(cx));
        assert_eq!(counted.load(Ordering::Relaxed), 1, "it is counted before anybody can see it");
        let status = slot.status();
        assert_eq!(status == OperationStatus::Cancelled, ended.memory.is_some());
        assert!(driver.join().unwrap() != watchdog.join().unwrap());
        assert_eq!(slot.status(), status);
        assert_eq!(counted.load(Ordering::Relaxed), 1);
    });
}
