//! Which peer a metadata document leads to, remembered so that its blob is decoded and loaded once.

use std::collections::HashMap;

use crate::error::Error;
use crate::transport::{PeerId, Transport, TransportError};
use crate::wire::RdmaMetadata;

/// Blobs remembered. A Python peer's blob changes with each registration, so entries go stale; when the
/// table is full it is emptied, which costs the live peers one decode each.
const MAX_REMEMBERED: usize = 1024;

#[derive(Default)]
pub(super) struct Peers {
    by_blob: HashMap<String, (PeerId, String)>,
}

impl Peers {
    /// The peer behind `metadata`, and its name.
    pub(super) fn connect(
        &mut self,
        transport: &mut dyn Transport,
        metadata: &RdmaMetadata,
        failed: impl Fn(TransportError) -> Error,
    ) -> Result<(PeerId, String), Error> {
        if let Some((peer, name)) = self.by_blob.get(metadata.nixl_metadata()) {
            return Ok((*peer, name.clone()));
        }
        let blob = metadata.decode_blob()?;
        let (peer, name) = transport.connect(&blob).map_err(failed)?;
        if self.by_blob.len() >= MAX_REMEMBERED {
            for (_, (peer, _)) in self.by_blob.drain() {
                transport.forget(peer);
            }
        }
        self.by_blob.insert(metadata.nixl_metadata().to_owned(), (peer, name.clone()));
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
