//! The first process: loads the checkpoint into Candle tensors and offers them, some at a time.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use connect_candle::send_tensors;
use connect_examples::TransportChoice;

use crate::lines::{Event, resident_mb, say};

/// Bytes in one offer, so that the progress bar moves. One offer could hold all.
const OFFER_BYTES: u64 = 32_000_000;

pub(crate) fn run(file: &Path, transport: TransportChoice) -> Result<()> {
    let tensors = candle_core::safetensors::load(file, &Device::Cpu)
        .with_context(|| format!("loading {} into Candle tensors", file.display()))?;
    let mut tensors: Vec<(String, Tensor)> =
        tensors.into_iter().filter(|(_, tensor)| tensor.elem_count() > 0).collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let connector = connect_examples::connector(transport, Duration::from_secs(60))?;
    let groups = groups(&tensors);
    let bytes = tensors.iter().map(|(_, tensor)| size(tensor)).sum();
    say(&Event::Loaded { tensors: tensors.len(), bytes, offers: groups.len() })?;

    for group in groups {
        let offer = send_tensors(&connector, group.iter().map(|(name, tensor)| (name, tensor))).wait()?;
        say(&Event::Offer { envelope: serde_json::to_value(offer.envelope())? })?;
        offer.wait_for_completion().wait()?;
    }
    say(&Event::Finished { resident_mb: resident_mb()? })
}

/// Tensors that make one offer each.
fn groups(tensors: &[(String, Tensor)]) -> Vec<&[(String, Tensor)]> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, (_, tensor)) in tensors.iter().enumerate() {
        if bytes > 0 && bytes + size(tensor) > OFFER_BYTES {
            groups.push(&tensors[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += size(tensor);
    }
    if start < tensors.len() {
        groups.push(&tensors[start..]);
    }
    groups
}

fn size(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}
