//! Agent blobs as they go into documents, remembered: to compress one takes 19 us, and who offers the same memory
//! again, or another part of one registration, sends the same blob.

use std::num::NonZero;

use lru::LruCache;

use crate::fingerprint::{Fingerprint, Fingerprints};
use crate::wire::{MetadataError, encode_blob};

/// Blobs remembered: as many pools, models and other memory as one connector offers in turn.
const MAX_REMEMBERED: NonZero<usize> = NonZero::new(64).unwrap();
/// Longer ones, of 1,000 regions and more, are encoded each time, so that all together stay below 2 MiB.
const MAX_BYTES: usize = 32 << 10;

pub(super) struct Encoded {
    by_blob: LruCache<Fingerprint, String>,
    fingerprints: Fingerprints,
}

impl Encoded {
    pub(super) fn new() -> Self {
        Self { by_blob: LruCache::new(MAX_REMEMBERED), fingerprints: Fingerprints::default() }
    }

    /// The text of a blob.
    pub(super) fn of(&mut self, blob: &[u8]) -> Result<String, MetadataError> {
        let fingerprint = self.fingerprints.of(blob);
        if let Some(text) = self.by_blob.get(&fingerprint) {
            return Ok(text.clone());
        }
        let text = encode_blob(blob)?;
        if text.len() <= MAX_BYTES {
            self.by_blob.put(fingerprint, text.clone());
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_blob_has_its_own_text_and_few_are_kept() {
        let mut encoded = Encoded::new();
        for round in 0..3 {
            for blob in 0..1000u32 {
                let blob = blob.to_le_bytes();
                assert_eq!(encoded.of(&blob).unwrap(), encode_blob(&blob).unwrap(), "round {round}");
            }
        }
        assert_eq!(encoded.by_blob.len(), MAX_REMEMBERED.get());
        let mut random = fastrand::Rng::with_seed(1);
        let long: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(MAX_BYTES).collect();
        assert_eq!(encoded.of(&long).unwrap(), encode_blob(&long).unwrap());
        assert!(encoded.by_blob.iter().all(|(_, text)| text.len() <= MAX_BYTES));
    }
}
