//! The first process: serves the checkpoint from disk, some tensors at a time. Nothing is loaded.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use connect_core::checkpoint::Checkpoint;
use connect_examples::TransportChoice;

use crate::lines::{Event, resident_mb, say};

/// Bytes in one offer, so that the progress bar moves. One offer could hold all.
const OFFER_BYTES: u64 = 32_000_000;

pub(crate) fn run(file: &Path, transport: TransportChoice) -> Result<()> {
    let checkpoint = Checkpoint::open(file)?.select(|tensor| tensor.byte_len > 0);
    let connector = connect_examples::connector(transport, Duration::from_secs(60))?;
    let served = checkpoint.serve(&connector).wait()?;
    let batches = checkpoint.batches(OFFER_BYTES);
    let (tensors, bytes) = (checkpoint.tensors().count(), checkpoint.manifest()?.total_bytes());
    say(&Event::Loaded { tensors, bytes, offers: batches.len() })?;

    for batch in batches {
        let offer = served.offer(batch).wait()?;
        say(&Event::Offer { envelope: serde_json::to_value(offer.envelope())? })?;
        offer.wait_for_completion().wait()?;
    }
    say(&Event::Finished { resident_mb: resident_mb()? })
}
