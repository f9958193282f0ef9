//! [`Mailbox`]: where messages from peers wait for those who asked for them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Who a message is for: the first bytes of it.
pub(crate) type Address = [u8; 16];

/// Messages that wait for one owner, who is slow. More are dropped: whoever depends on one says it again.
const MAX_WAITING: usize = 4096;

/// The owners of one connector.
#[derive(Default)]
pub(crate) struct Mailbox {
    owners: Mutex<HashMap<Address, Weak<Inbox>>>,
    /// Owners that expect something soon.
    expecting: AtomicUsize,
}

/// One owner's messages.
pub(crate) struct Inbox {
    letters: Mutex<VecDeque<Letter>>,
    /// Called after each arrival.
    wake: Box<dyn Fn() + Send + Sync>,
}

/// A message, and who sent it as far as the transport knows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) from: String,
    pub(crate) body: Vec<u8>,
}

/// While it lives, the driver looks for messages as often as for the end of an offer.
pub(crate) struct Expecting(Arc<Mailbox>);

impl Mailbox {
    /// Opens an inbox. It is closed by dropping it.
    pub(crate) fn open(&self, address: Address, wake: impl Fn() + Send + Sync + 'static) -> Arc<Inbox> {
        let inbox = Arc::new(Inbox { letters: Mutex::default(), wake: Box::new(wake) });
        let mut owners = lock(&self.owners);
        owners.retain(|_, owner| owner.strong_count() > 0);
        owners.insert(address, Arc::downgrade(&inbox));
        inbox
    }

    /// Says that something is expected.
    pub(crate) fn expect(self: &Arc<Self>) -> Expecting {
        self.expecting.fetch_add(1, Ordering::Relaxed);
        Expecting(Arc::clone(self))
    }

    pub(crate) fn is_expecting(&self) -> bool {
        self.expecting.load(Ordering::Relaxed) > 0
    }

    /// Puts a message into its owner's inbox; says whether there was room and an owner.
    pub(crate) fn deliver(&self, from: String, message: &[u8]) -> bool {
        let Some((address, body)) = message.split_first_chunk() else { return false };
        let Some(inbox) = lock(&self.owners).get(address).and_then(Weak::upgrade) else { return false };
        let mut letters = lock(&inbox.letters);
        if letters.len() >= MAX_WAITING {
            return false;
        }
        letters.push_back(Letter { from, body: body.to_vec() });
        drop(letters);
        (inbox.wake)();
        true
    }
}

impl Inbox {
    pub(crate) fn take(&self) -> Option<Letter> {
        lock(&self.letters).pop_front()
    }
}

impl Drop for Expecting {
    fn drop(&mut self) {
        self.0.expecting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A poisoned lock means a panic between plain assignments; what it guards is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reaches_its_owner_and_nobody_else_and_not_too_many_wait() {
        let mailbox = Arc::new(Mailbox::default());
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        let mine = mailbox.open([1; 16], move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let other = mailbox.open([2; 16], || {});
        assert!(mailbox.deliver("a".to_owned(), &[&[1; 16][..], b"hello"].concat()));
        assert!(!mailbox.deliver("a".to_owned(), &[3; 20]), "there is no such owner");
        assert!(!mailbox.deliver("a".to_owned(), &[1; 15]), "nor a whole address");
        assert_eq!(mine.take(), Some(Letter { from: "a".to_owned(), body: b"hello".to_vec() }));
        assert_eq!((mine.take(), other.take(), woken.load(Ordering::Relaxed)), (None, None, 1));
        let sent = (0..MAX_WAITING + 10).filter(|_| mailbox.deliver(String::new(), &[1; 16])).count();
        assert_eq!(sent, MAX_WAITING);
        drop(mine);
        assert!(!mailbox.deliver(String::new(), &[1; 16]));
        let expecting = mailbox.expect();
        assert!(mailbox.is_expecting());
        drop(expecting);
        assert!(!mailbox.is_expecting());
    }
}
