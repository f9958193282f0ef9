//! Which peer a metadata document leads to, remembered so that its blob is decoded and loaded once.

use std::collections::HashMap;

use crate::error::Error;
use crate::fingerprint::{Fingerprint, Fingerprints};
use crate::transport::{PeerId, Transport, TransportError};
use crate::wire::RdmaMetadata;

/// Blobs remembered, and their bytes, which transports keep. A Python peer's blob changes with each registration,
/// so entries go stale; when the table is full it is emptied, which costs the live peers one decode each.
const MAX_REMEMBERED: usize = 1024;
const MAX_BYTES: usize = 64 << 20;

#[derive(Default)]
pub(super) struct Peers {
    /// By the fingerprint of the document's blob.
    by_blob: HashMap<Fingerprint, (PeerId, String)>,
    bytes: usize,
    fingerprints: Fingerprints,
}

impl Peers {
    /// The peer behind `metadata`, and its name.
    pub(super) fn connect(
        &mut self,
        transport: &mut dyn Transport,
        metadata: &RdmaMetadata,
        failed: impl Fn(TransportError) -> Error,
    ) -> Result<(PeerId, String), Error> {
        let fingerprint = self.fingerprints.of(metadata.nixl_metadata().as_bytes());
        if let Some((peer, name)) = self.by_blob.get(&fingerprint) {
            return Ok((*peer, name.clone()));
        }
        let blob = metadata.decode_blob()?;
        let (peer, name) = transport.connect(&blob).map_err(failed)?;
        if self.by_blob.len() >= MAX_REMEMBERED || self.bytes + blob.len() > MAX_BYTES {
            self.bytes = 0;
            for (_, (peer, _)) in self.by_blob.drain() {
                transport.forget(peer);
            }
        }
        self.bytes += blob.len();
        self.by_blob.insert(fingerprint, (peer, name.clone()));
        Ok((peer, name))
    }

    /// After an error that may mean the peer is gone, the next operation loads its blob again.
    pub(super) fn forget_if_lost(
        &mut self,
        transport: &mut dyn Transport,
        error: &TransportError,
        peer: PeerId,
    ) {
        if error.is_retryable() {
            self.by_blob.retain(|_, (known, _)| *known != peer);
            transport.forget(peer);
        }
    }
}
