//! [`Fingerprints`]: what stands for bytes that are too large to keep.

use std::hash::{BuildHasher, RandomState};

/// Tells byte strings apart by 128 bits under a key of this process: nobody outside can find two with the same.
#[derive(Debug, Default)]
pub(crate) struct Fingerprints(RandomState, RandomState);

/// Stands for a byte string.
pub(crate) type Fingerprint = (u64, u64);

impl Fingerprints {
    pub(crate) fn of(&self, bytes: &[u8]) -> Fingerprint {
        (self.0.hash_one(bytes), self.1.hash_one(bytes))
    }
}
