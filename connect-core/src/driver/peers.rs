//! Which peer a metadata document leads to, remembered so that its blob is decoded and loaded once.

use std::time::{Duration, Instant};

use lru::LruCache;

use crate::error::Error;
use crate::fingerprint::{Fingerprint, Fingerprints};
use crate::transport::{PeerId, Transport, TransportError};
use crate::wire::RdmaMetadata;

/// Blobs remembered, and their bytes, which transports keep. A Python peer's blob changes with each registration,
/// so entries go stale; the one that was used longest ago makes room.
pub(super) const MAX_REMEMBERED: usize = 1024;
const MAX_BYTES: usize = 64 << 20;
/// A peer that nobody named for so long is forgotten when the next one is met: a transport may hold connections to
/// it, and to load it again costs some 20 ms.
pub(super) const MAX_AGE: Duration = Duration::from_secs(15 * 60);

pub(super) struct Peers {
    /// By the fingerprint of the document's blob.
    by_blob: LruCache<Fingerprint, Known>,
    bytes: usize,
    fingerprints: Fingerprints,
}

struct Known {
    peer: PeerId,
    name: String,
    bytes: usize,
    used: Instant,
}

impl Peers {
    pub(super) fn new() -> Self {
        // The limits are kept here, where those who leave are told to the transport.
        Self { by_blob: LruCache::unbounded(), bytes: 0, fingerprints: Fingerprints::default() }
    }

    /// The peer behind `metadata`, and its name.
    pub(super) fn connect(
        &mut self,
        transport: &mut dyn Transport,
        metadata: &RdmaMetadata,
        now: Instant,
        failed: impl Fn(TransportError) -> Error,
    ) -> Result<(PeerId, String), Error> {
        let fingerprint = self.fingerprints.of(metadata.nixl_metadata().as_bytes());
        if let Some(known) = self.by_blob.get_mut(&fingerprint) {
            known.used = now;
            return Ok((known.peer, known.name.clone()));
        }
        let blob = metadata.decode_blob()?;
        let (peer, name) = transport.connect(&blob).map_err(failed)?;
        self.make_room(transport, blob.len(), now);
        let known = Known { peer, name: name.clone(), bytes: blob.len(), used: now };
        self.bytes += known.bytes;
        self.by_blob.put(fingerprint, known);
        Ok((peer, name))
    }

    /// Forgets who was not named for long, and then who was named longest ago, until one more fits.
    fn make_room(&mut self, transport: &mut dyn Transport, bytes: usize, now: Instant) {
        while let Some((_, oldest)) = self.by_blob.peek_lru() {
            let is_full = self.by_blob.len() >= MAX_REMEMBERED || self.bytes + bytes > MAX_BYTES;
            if !is_full && now.saturating_duration_since(oldest.used) < MAX_AGE {
                return;
            }
            if let Some((_, oldest)) = self.by_blob.pop_lru() {
                self.bytes -= oldest.bytes;
                transport.forget(oldest.peer);
            }
        }
    }

    /// After an error that may mean the peer is gone, the next operation loads its blob again.
    pub(super) fn forget_if_lost(
        &mut self,
        transport: &mut dyn Transport,
        error: &TransportError,
        peer: PeerId,
    ) {
        if !error.is_retryable() {
            return;
        }
        let blob = self.by_blob.iter().find(|(_, known)| known.peer == peer).map(|(blob, _)| *blob);
        if let Some(known) = blob.and_then(|blob| self.by_blob.pop(&blob)) {
            self.bytes -= known.bytes;
        }
        transport.forget(peer);
    }
}
