//! [`Counted`]: things that several operations share, and that end with the last of them.

use std::collections::HashMap;
use std::hash::Hash;

/// Values by key, each with the number of its users.
#[derive(Debug)]
pub(super) struct Counted<K, V>(HashMap<K, (V, usize)>);

impl<K, V> Default for Counted<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Hash + Eq, V> Counted<K, V> {
    /// Adds a user; the first makes the value.
    pub(super) fn add<E>(&mut self, key: K, make: impl FnOnce() -> Result<V, E>) -> Result<(), E> {
        if let Some((_, users)) = self.0.get_mut(&key) {
            *users += 1;
        } else {
            self.0.insert(key, (make()?, 1));
        }
        Ok(())
    }

    /// Takes a user away; the last drops the value.
    pub(super) fn remove(&mut self, key: &K) {
        if let Some((_, users)) = self.0.get_mut(key) {
            *users -= 1;
            if *users == 0 {
                self.0.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn d8_what_is_shared_ends_with_its_last_user() {
        let value = Rc::new(());
        let mut counted = Counted::default();
        for _ in 0..3 {
            counted.add(7, || Ok::<_, ()>(Rc::clone(&value))).unwrap();
        }
        for _ in 0..3 {
            assert_eq!(Rc::strong_count(&value), 2, "it was made once, and is still there");
            counted.remove(&7);
        }
        assert_eq!(Rc::strong_count(&value), 1, "nobody uses it");
        counted.remove(&7);
        assert_eq!(counted.add(8, || Err("refused")), Err("refused"));
        counted.remove(&8);
    }
}
