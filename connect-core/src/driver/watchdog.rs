//! Deadlines that hold even while the driver thread is stuck inside a transport call: [`Deadlines`].
//!
//! The driver ends overdue operations itself, and then knows what became of their memory. But a call into
//! an engine may block longer than promised (a connection to a host that vanished, a slow copy). So a
//! second thread, asleep until the earliest deadline, answers in its stead after [`SLACK`]: the caller gets
//! its error in time, and the memory stays with the driver.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::OpInfo;

/// How late the driver may be before the watchdog answers for it. Ten times the longest slice of a copy on
/// a slow machine (32 MiB at 6 GB/s is 5 ms), and still not felt by a person.
pub(super) const SLACK: Duration = Duration::from_millis(50);

/// The deadlines of a connector's live operations.
#[derive(Default)]
pub(crate) struct Deadlines {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<(Instant, u64), Entry>,
    /// When the watchdog will look next; `None` while it waits for an entry.
    wakes_at: Option<Instant>,
    closed: bool,
}

struct Entry {
    info: Arc<OpInfo>,
    answered: bool,
}

impl Deadlines {
    /// Starts the watchdog thread.
    pub(crate) fn start(name: String) -> std::io::Result<Arc<Self>> {
        let deadlines = Arc::new(Self::default());
        let watched = Arc::clone(&deadlines);
        thread::Builder::new().name(name).spawn(move || watched.watch())?;
        Ok(deadlines)
    }

    pub(crate) fn insert(&self, info: &Arc<OpInfo>) {
        let Some(at) = info.deadline else { return };
        let mut table = self.lock();
        if table.closed {
            return;
        }
        table.entries.insert((at, info.id), Entry { info: Arc::clone(info), answered: false });
        if table.wakes_at.is_none_or(|wakes_at| at + SLACK < wakes_at) {
            self.changed.notify_one();
        }
    }

    pub(crate) fn remove(&self, info: &OpInfo) {
        if let Some(at) = info.deadline {
            self.lock().entries.remove(&(at, info.id));
        }
    }

    /// The ids whose deadline is at or before `now`, and the earliest deadline after it.
    pub(crate) fn overdue(&self, now: Instant) -> (Vec<u64>, Option<Instant>) {
        let table = self.lock();
        let overdue = table.entries.range(..=(now, u64::MAX)).map(|((_, id), _)| *id).collect();
        let next = table.entries.range((now, u64::MAX)..).find(|((at, _), _)| *at > now);
        (overdue, next.map(|((at, _), _)| *at))
    }

    /// Ends the watchdog thread. What has a deadline now or later gets its answer from the driver's end, and
    /// must not be kept here: with its outcome it may hold memory.
    pub(crate) fn close(&self) {
        let mut table = self.lock();
        table.closed = true;
        let entries = std::mem::take(&mut table.entries);
        drop(table);
        drop(entries);
        self.changed.notify_one();
    }

    fn watch(&self) {
        let mut table = self.lock();
        while !table.closed {
            let now = Instant::now();
            let late = table.late(now);
            if !late.is_empty() {
                drop(table);
                answer(&late);
                table = self.lock();
                continue;
            }
            let next =
                table.entries.iter().find(|(_, entry)| !entry.answered).map(|((at, _), _)| *at + SLACK);
            table.wakes_at = next;
            table = match next {
                None => self.changed.wait(table).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let timeout = at.saturating_duration_since(now);
                    self.changed.wait_timeout(table, timeout).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// What the thread does when it wakes at `now`, for tests that have none. Says for how many it answered.
    #[cfg(test)]
    pub(crate) fn look(&self, now: Instant) -> usize {
        let late = self.lock().late(now);
        answer(&late);
        late.len()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// The operations to answer for at `now`, each once.
    fn late(&mut self, now: Instant) -> Vec<Arc<OpInfo>> {
        self.entries
            .values_mut()
            .take_while(|entry| entry.info.deadline.is_some_and(|at| at + SLACK <= now))
            .filter_map(|entry| {
                let first = !std::mem::replace(&mut entry.answered, true);
                first.then(|| Arc::clone(&entry.info))
            })
            .collect()
    }
}

/// Outside the lock: a waker may run arbitrary code.
fn answer(late: &[Arc<OpInfo>]) {
    for info in late {
        info.answer_for_a_stuck_driver();
    }
}
