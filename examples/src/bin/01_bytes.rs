//! 01: bytes from one connector to another. The smallest complete transfer.

use anyhow::Result;
use connect_core::{Connector, RdmaMetadata};

fn main() -> Result<()> {
    // Usually these two live in two processes: example 02.
    let (sender, receiver) = (Connector::local()?, Connector::local()?);

    // The operation owns the memory until the transfer is over, so that nobody can free or change it.
    let content = b"from one memory to another".to_vec();
    let offer = sender.create_readable(content.clone()).wait()?;

    // A document of a few hundred bytes. It goes to the peer over any channel; whoever has it can read the
    // memory, once.
    let document = offer.metadata().to_json();
    println!("{} bytes on offer, described by a document of {} bytes", content.len(), document.len());

    // The peer reads into memory of its own, of the same length, and gets it back filled.
    let metadata = RdmaMetadata::from_json(&document)?;
    let target = vec![0u8; metadata.total_bytes() as usize];
    let received = receiver.begin_read(&metadata, target).wait()?.wait_for_completion().wait()?;
    assert_eq!(received.memory, content);

    // The sender learns that it is done, and by whom.
    let report = offer.wait_for_completion().wait()?;
    assert_eq!(report.bytes, content.len() as u64);
    println!(
        "{} read {} bytes in {:?}",
        report.peer.unwrap_or_default(),
        report.bytes,
        received.report.transfer
    );
    Ok(())
}
