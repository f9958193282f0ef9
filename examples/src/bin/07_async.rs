//! 07: many transfers at once, with tokio. Everything that can be waited for can be awaited, on any runtime.

use anyhow::{Context, Result};
use connect_core::{Connector, RdmaMetadata};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const TRANSFERS: usize = 200;

#[tokio::main]
async fn main() -> Result<()> {
    // One connector per process is the rule: clones share it, and its operations run side by side.
    let (sender, receiver) = (Connector::local()?, Connector::local()?);
    let (documents, mut inbox) = mpsc::channel(16);

    let mut senders = JoinSet::new();
    for index in 0..TRANSFERS {
        let (connector, documents) = (sender.clone(), documents.clone());
        senders.spawn(async move {
            let offer = connector.create_readable(vec![index as u32; 1 + index]).await?;
            documents.send(offer.metadata().to_json()).await?;
            anyhow::Ok(offer.await?.bytes)
        });
    }
    drop(documents);

    let mut receivers = JoinSet::new();
    while let Some(document) = inbox.recv().await {
        let connector = receiver.clone();
        receivers.spawn(async move {
            let metadata = RdmaMetadata::from_json(&document)?;
            let target = vec![0u32; metadata.total_bytes() as usize / size_of::<u32>()];
            let read = connector.begin_read(&metadata, target).await?;
            // Dropping the future, as `select!` and timeouts do, cancels the transfer and leaks nothing.
            let received = tokio::time::timeout(std::time::Duration::from_secs(20), read).await??;
            let first = *received.memory.first().context("at least one element")?;
            assert!(
                received.memory.len() == 1 + first as usize && received.memory.iter().all(|n| *n == first)
            );
            anyhow::Ok(received.report.bytes)
        });
    }

    let sent: u64 = senders.join_all().await.into_iter().sum::<Result<u64>>()?;
    let received: u64 = receivers.join_all().await.into_iter().sum::<Result<u64>>()?;
    assert_eq!(sent, received);
    let stats = receiver.stats();
    assert_eq!((stats.completed, stats.open, stats.parked), (TRANSFERS as u64, 0, 0));
    println!("{TRANSFERS} transfers, {received} bytes");
    Ok(())
}
