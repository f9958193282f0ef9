//! Where the driver leaves an operation's answers and the caller finds them: [`Slot`].

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use super::{OperationStatus, Report};
use crate::error::Error;
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::trial::Patience;
use crate::wire::RdmaMetadata;

#[cfg(all(test, loom))]
mod loom;

/// How long a blocking wait looks for its answer before it sleeps, while that pays. A small transfer takes 15 to 40 us;
/// being woken from a sleep costs another 20 to 30 on a virtual machine whose core went idle meanwhile. While it
/// looks it yields, so that a driver that shares its core goes first.
const YIELD: Duration = Duration::from_micros(100);

/// What an operation is about, known once it is open.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// A passive operation's metadata.
    pub(crate) metadata: Option<RdmaMetadata>,
    /// An active operation's peer.
    pub(crate) peer: Option<String>,
    /// What leads a peer here, encoded, for who asked for that alone.
    pub(crate) blob: Option<String>,
}

/// How an operation ended.
pub(crate) struct Outcome {
    pub(crate) result: Result<Report, Error>,
    /// The operation's memory; `None` when it is parked.
    pub(crate) memory: Option<Box<dyn Any + Send>>,
}

/// The meeting place of one operation's driver and its caller.
///
/// One caller waits at a time: first for the operation to open, later for its outcome.
pub(crate) struct Slot {
    status: AtomicU8,
    answers: Mutex<Answers>,
    changed: Condvar,
}

/// Who has an operation's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// The operation, which goes on.
    Operation,
    /// Whoever asked for it; it is in the slot until it is taken out.
    Caller,
    /// The driver, after the operation's end: somebody may still be at it.
    Quarantine,
}

#[derive(Default)]
struct Answers {
    opened: Option<Opened>,
    outcome: Option<Outcome>,
    settled: bool,
    /// It ended, and its memory was not handed over with that.
    kept_back: bool,
    waker: Option<Waker>,
}

/// The first answer of an operation: it opened, or it ended before that.
pub(crate) enum First {
    Opened(Opened),
    Ended(Outcome),
}

impl Slot {
    pub(crate) fn new() -> Self {
        Self {
            status: AtomicU8::new(OperationStatus::Uninitialized as u8),
            answers: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn status(&self) -> OperationStatus {
        match self.status.load(Ordering::Acquire) {
            0 => OperationStatus::Uninitialized,
            1 => OperationStatus::Initialized,
            2 => OperationStatus::InProgress,
            3 => OperationStatus::Complete,
            4 => OperationStatus::Cancelled,
            _ => OperationStatus::Errored,
        }
    }

    /// Changes the status, unless it is final already: the watchdog may have been faster.
    pub(crate) fn set_status(&self, status: OperationStatus) {
        if !self.lock().settled {
            self.store_status(status);
        }
    }

    fn store_status(&self, status: OperationStatus) {
        self.status.store(status as u8, Ordering::Release);
    }

    /// The driver: the operation is open.
    pub(crate) fn open(&self, opened: Opened) {
        let mut answers = self.lock();
        answers.opened = Some(opened);
        self.notify(answers);
    }

    /// The driver, or the watchdog in its stead: the operation ended. A later outcome than the first is
    /// dropped, with its memory. `count` is called for the first only, and before anybody can see it, so that
    /// whoever sees it finds it counted.
    pub(crate) fn settle(&self, status: OperationStatus, outcome: Outcome, count: impl FnOnce()) -> bool {
        let mut answers = self.lock();
        if answers.settled {
            return false;
        }
        answers.settled = true;
        answers.kept_back = outcome.memory.is_none();
        count();
        self.store_status(status);
        answers.outcome = Some(outcome);
        self.notify(answers);
        true
    }

    /// Who has the operation's memory, while that lives.
    pub(crate) fn holder(&self) -> Holder {
        let answers = self.lock();
        match (answers.settled, answers.kept_back) {
            (false, _) => Holder::Operation,
            (true, false) => Holder::Caller,
            (true, true) => Holder::Quarantine,
        }
    }

    /// Whether the operation has ended.
    pub(crate) fn is_settled(&self) -> bool {
        self.lock().settled
    }

    pub(crate) fn poll_first(&self, cx: &mut Context<'_>) -> Poll<First> {
        self.poll(cx, Answers::take_first)
    }

    pub(crate) fn poll_outcome(&self, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.poll(cx, |answers| answers.outcome.take())
    }

    pub(crate) fn wait_first(&self, patience: &Patience) -> First {
        self.wait(patience, Answers::take_first)
    }

    pub(crate) fn wait_outcome(&self, patience: &Patience) -> Outcome {
        self.wait(patience, |answers| answers.outcome.take())
    }

    fn poll<T>(&self, cx: &mut Context<'_>, take: impl Fn(&mut Answers) -> Option<T>) -> Poll<T> {
        let mut answers = self.lock();
        if let Some(answer) = take(&mut answers) {
            return Poll::Ready(answer);
        }
        match &mut answers.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn wait<T>(&self, patience: &Patience, take: impl Fn(&mut Answers) -> Option<T>) -> T {
        if let Some(answer) = take(&mut self.lock()) {
            return answer;
        }
        // Loom knows no time, and would try every length of the first loop.
        let (began, looks) = (Instant::now(), patience.pays() && !cfg!(all(test, loom)));
        while looks && began.elapsed() < YIELD {
            if let Some(answer) = take(&mut self.lock()) {
                patience.learn(true);
                return answer;
            }
            thread::yield_now();
        }
        let mut answers = self.lock();
        loop {
            if let Some(answer) = take(&mut answers) {
                drop(answers);
                patience.learn(began.elapsed() < YIELD);
                return answer;
            }
            answers = self.changed.wait(answers).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A poisoned lock means that a caller panicked between two plain assignments; the answers are whole.
    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the waiting caller, outside the lock: a waker may run arbitrary code.
    fn notify(&self, mut answers: MutexGuard<'_, Answers>) {
        let waker = answers.waker.take();
        drop(answers);
        self.changed.notify_all();
        if let Some(waker) = waker {
            // A waker is the caller's code; its panic must not end the thread that looks after everybody.
            if catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err() {
                tracing::error!("a waker panicked");
            }
        }
    }
}

impl Answers {
    fn take_first(&mut self) -> Option<First> {
        // An operation can open and end before anyone looks; the caller then gets a handle first.
        if let Some(opened) = self.opened.take() {
            return Some(First::Opened(opened));
        }
        self.outcome.take().map(First::Ended)
    }
}
