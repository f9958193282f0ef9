//! Leases: how one connector lends memory to another one of the same process.
//!
//! Inside a process a plain copy is the fastest way, but it must not run when the owner takes its memory back,
//! and the socket can't make sure of that. So the owner leaves its memory in a table of this process, the
//! borrower copies under the lease's lock, and the owner ends the lease under the same lock: after that nobody
//! is copying, and nobody will. No address from the wire is used on this path.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::attach::{Source, Target};
use super::frame::NONCE;
use crate::OperationKind;

/// Every lease of this process.
static LEASES: Mutex<BTreeMap<LeaseKey, Arc<Mutex<Option<Source>>>>> = Mutex::new(BTreeMap::new());

/// Names a lease to both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LeaseKey {
    /// The connector whose memory it is, by its nonce.
    pub(super) owner: [u8; NONCE],
    /// The connector that may copy.
    pub(super) borrower: [u8; NONCE],
    /// The request it is for, and its kind: both sides count their requests from one, and each can be the
    /// owner, of what it lets be read or of what it writes.
    pub(super) request: (OperationKind, u64),
}

/// The owner's end. Dropping it ends the lease; that waits for a slice in progress.
#[derive(Debug)]
pub(super) struct Lease {
    key: LeaseKey,
    source: Arc<Mutex<Option<Source>>>,
}

impl Lease {
    pub(super) fn grant(key: LeaseKey, source: Source) -> Self {
        let source = Arc::new(Mutex::new(Some(source)));
        lock(&LEASES).insert(key, Arc::clone(&source));
        Self { key, source }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&LEASES).remove(&self.key);
        *lock(&self.source) = None;
    }
}

/// The borrower's end.
#[derive(Debug)]
pub(super) struct Borrowed(Arc<Mutex<Option<Source>>>);

impl Borrowed {
    pub(super) fn find(key: &LeaseKey) -> Option<Self> {
        lock(&LEASES).get(key).map(|source| Self(Arc::clone(source)))
    }

    /// Copies the next bytes, at most `max`. `None` means that the lease has ended.
    pub(super) fn copy_into(&self, target: &mut Target, max: u64) -> Option<u64> {
        lock(&self.0).as_mut().map(|source| target.copy_from(source, max))
    }
}

/// No code that holds these locks can panic half-way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Region;

    #[test]
    fn an_ended_lease_lends_nothing() {
        let mut from = vec![7u8; 8];
        let mut to = vec![0u8; 8];
        let key = LeaseKey { owner: [1; NONCE], borrower: [2; NONCE], request: (OperationKind::Read, 3) };
        let region = |bytes: &mut [u8]| -> Arc<[Region]> {
            Arc::new(
                [Region::new(crate::Device::CPU, bytes.as_mut_ptr() as u64, bytes.len() as u64).unwrap()],
            )
        };
        let lease = Lease::grant(key, Source::of(&region(&mut from)));
        let borrowed = Borrowed::find(&key).unwrap();
        let mut target = Target::of(&region(&mut to));
        assert_eq!(borrowed.copy_into(&mut target, 3), Some(3));
        drop(lease);
        assert_eq!(borrowed.copy_into(&mut target, 3), None);
        assert!(Borrowed::find(&key).is_none());
        assert_eq!(to, [7, 7, 7, 0, 0, 0, 0, 0]);
    }
}
