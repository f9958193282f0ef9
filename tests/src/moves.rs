//! One whole operation, with the bytes checked: what most tests do on the way to something else.

use anyhow::{Context, Result};
use connect_core::{Connector, RdmaMetadata, Report};

use crate::memory;

/// Reads buffers of these lengths, and checks the pattern in them.
///
/// # Errors
/// The operation fails, or other bytes arrive.
pub fn read(connector: &Connector, metadata: &RdmaMetadata, lengths: &[usize], seed: u64) -> Result<Report> {
    let operation = connector.begin_read(metadata, memory::targets(lengths)?).wait()?;
    let received = operation.wait_for_completion().wait()?;
    memory::check(received.memory, seed).with_context(|| format!("{} pieces", lengths.len()))?;
    Ok(received.report)
}

/// Writes buffers of these lengths, filled with the pattern.
///
/// # Errors
/// The operation fails.
pub fn write(connector: &Connector, metadata: &RdmaMetadata, lengths: &[usize], seed: u64) -> Result<Report> {
    let operation = connector.begin_write(memory::sources(lengths, seed)?, metadata).wait()?;
    Ok(operation.wait_for_completion().wait()?)
}

/// What went over the wire: metadata only ever arrives as text.
///
/// # Errors
/// It is not read as it was written.
pub fn sent(metadata: &RdmaMetadata) -> Result<RdmaMetadata> {
    Ok(RdmaMetadata::from_json(&metadata.to_json())?)
}
