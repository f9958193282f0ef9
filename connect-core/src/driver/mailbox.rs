//! [`Mailbox`]: to whom messages from peers go.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Who a message is for: the first bytes of it.
pub(crate) type Address = [u8; 16];

/// The owners of one connector.
#[derive(Default)]
pub(crate) struct Mailbox {
    owners: Mutex<HashMap<Address, Weak<Inbox>>>,
    /// Owners that expect something soon.
    expecting: AtomicUsize,
}

/// Keeps an owner's address. What it does with a message is quick: the driver does it.
pub(crate) struct Inbox {
    take: Box<Take>,
}

/// Takes a message, and who sent it as far as the transport knows; says whether there was room.
type Take = dyn Fn(String, &[u8]) -> bool + Send + Sync;

/// While it lives, the driver looks for messages as often as for the end of an offer.
pub(crate) struct Expecting(Arc<Mailbox>);

impl Mailbox {
    /// Gives an owner its messages, until the inbox is dropped.
    pub(crate) fn open(
        &self,
        address: Address,
        take: impl Fn(String, &[u8]) -> bool + Send + Sync + 'static,
    ) -> Arc<Inbox> {
        let inbox = Arc::new(Inbox { take: Box::new(take) });
        let mut owners = self.owners();
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

    /// Gives a message to its owner; says whether there was one, with room for it.
    pub(crate) fn deliver(&self, from: String, message: &[u8]) -> bool {
        let Some((address, body)) = message.split_first_chunk() else { return false };
        let inbox = self.owners().get(address).and_then(Weak::upgrade);
        inbox.is_some_and(|inbox| (inbox.take)(from, body))
    }

    /// A poisoned lock means a panic between plain assignments; the map is whole.
    fn owners(&self) -> MutexGuard<'_, HashMap<Address, Weak<Inbox>>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Expecting {
    fn drop(&mut self) {
        self.0.expecting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reaches_its_owner_and_nobody_else() {
        let mailbox = Arc::new(Mailbox::default());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ears = Arc::clone(&heard);
        let mine = mailbox.open([1; 16], move |from, body| {
            ears.lock().unwrap().push((from, body.to_vec()));
            body != b"full"
        });
        let _other = mailbox.open([2; 16], |_, _| panic!("nothing is for it"));
        assert!(mailbox.deliver("a".to_owned(), &[&[1; 16][..], b"hello"].concat()));
        assert!(!mailbox.deliver("a".to_owned(), &[&[1; 16][..], b"full"].concat()));
        assert!(!mailbox.deliver("a".to_owned(), &[3; 20]), "there is no such owner");
        assert!(!mailbox.deliver("a".to_owned(), &[1; 15]), "nor a whole address");
        assert_eq!(heard.lock().unwrap()[0], ("a".to_owned(), b"hello".to_vec()));
        drop(mine);
        assert!(!mailbox.deliver(String::new(), &[1; 16]));
        let expecting = mailbox.expect();
        assert!(mailbox.is_expecting());
        drop(expecting);
        assert!(!mailbox.is_expecting());
    }
}
