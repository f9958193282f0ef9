//! 06: what goes wrong, and how it is told: deadlines, cancel, and errors that say what to do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use connect_core::{Connector, Deadline, Error, ErrorCategory, OperationStatus, RdmaMetadata};

fn main() -> Result<()> {
    let (sender, receiver) = (Connector::local()?, Connector::local()?);

    // Nobody reads this. The wait ends with the deadline, here 50 ms; 30 s unless set, and
    // `Deadline::never()` for those who mean it.
    let hasty = sender.with_deadline(Duration::from_millis(50));
    let started = Instant::now();
    let error =
        hasty.create_readable(vec![1u8; 8]).wait()?.wait_for_completion().wait().err().context("an error")?;
    assert!(matches!(error, Error::DeadlineExceeded { .. }) && started.elapsed() < Duration::from_secs(5));
    println!("deadline:  {error}");

    // Withdrawn before anybody came. Its memory comes back with the error.
    let offer = sender.with_deadline(Deadline::never()).create_writable(vec![7u8; 8]).wait()?;
    assert_eq!(offer.status(), OperationStatus::Initialized);
    let failed = offer.cancel().wait().err().context("an error")?;
    assert_eq!(failed.memory.returned(), Some(vec![7; 8]));
    assert!(matches!(failed.error, Error::Cancelled { .. }));
    println!("cancelled: {}", failed.error);

    // A target of another length. Refused here, before anything is asked of the peer; so the offer stands.
    let offer = sender.create_readable(vec![1u8; 8]).wait()?;
    let failed = receiver.begin_read(offer.metadata(), vec![0u8; 9]).wait().err().context("an error")?;
    assert_eq!(failed.error.category(), ErrorCategory::Protocol);
    println!("length:    {}", failed.error);
    let metadata = offer.metadata().clone();
    receiver.begin_read(&metadata, vec![0u8; 8]).wait()?.wait_for_completion().wait()?;
    offer.wait_for_completion().wait()?;

    // The offer was taken. Who reads it again is refused, and retrying would not help.
    let error = read(&receiver, &metadata).err().context("an error")?;
    assert!(error.category() == ErrorCategory::Peer && !error.is_retryable());
    println!("taken:     {error}");

    // A document that is not one.
    let error = Error::from(RdmaMetadata::from_json("{}").err().context("an error")?);
    assert_eq!(error.category(), ErrorCategory::Protocol);
    println!("document:  {error}");

    // The peer is gone. That may be different with fresh metadata, so the error is retryable.
    sender.shutdown(Duration::from_secs(5)).wait()?;
    let error = read(&receiver, &metadata).err().context("an error")?;
    assert!(error.category() == ErrorCategory::Peer && error.is_retryable());
    println!("gone:      {error}");
    Ok(())
}

fn read(connector: &Connector, metadata: &RdmaMetadata) -> Result<Vec<u8>, Error> {
    Ok(connector.begin_read(metadata, vec![0u8; 8]).wait()?.wait_for_completion().wait()?.memory)
}
