//! Promises that are about what a caller sees, on every transport: bytes that are there when they are said to be
//! (P3), and the first cause of a failure (P6). The others have files of their own.

use std::error::Error as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use connect_core::transport::TransportError;
use connect_core::{Error, ErrorCategory, RdmaMetadata};
use connect_tests::lab::Lab;
use connect_tests::pattern;

connect_tests::for_each_transport!(
    p3_what_is_complete_is_there_to_be_read,
    p3_what_another_process_wrote_is_there_when_its_notification_is,
    p6_the_first_cause_is_what_a_later_shutdown_does_not_hide,
    p6_a_refusal_is_told_in_the_peer_s_words,
    p8_what_was_read_once_can_not_be_read_again,
);

/// Around what engines treat differently: inline, copied, in one piece, in several slices.
const SIZES: [usize; 9] = [1, 63, 64, 4096, 8193, 65_537, 262_144, 1 << 20, (49 << 20) + 3];

/// The notification of a write must not overtake its bytes (nixl #252), and the end of a read not its last ones.
fn p3_what_is_complete_is_there_to_be_read(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    for round in 0..60 {
        let len = SIZES[round % SIZES.len()];
        let seed = round as u64;
        let offer = a.create_writable(vec![0xff; len]).wait()?;
        let metadata = offer.metadata().clone();
        // Whoever waits looks the moment it is told, while the writer still has its own end to see.
        let watching = thread::spawn(move || {
            let received = offer.wait_for_completion().wait()?;
            // The end first: it is what would come too late.
            assert_ne!(received.memory.last(), Some(&0xff), "the last byte is not there");
            pattern::check(&received.memory, seed);
            Ok::<_, connect_core::Failed<_>>(received.memory)
        });
        b.begin_write(pattern::bytes(len, seed), &metadata).wait()?.wait_for_completion().wait()?;
        let written = watching.join().map_err(|_| anyhow::anyhow!("bytes were missing"))??;

        let offer = a.create_readable(written).wait()?;
        let read = b.begin_read(offer.metadata(), vec![0xff; len]).wait()?;
        pattern::check(&read.wait_for_completion().wait()?.memory, seed);
        offer.wait_for_completion().wait()?;
    }
    Ok(())
}

fn p3_what_another_process_wrote_is_there_when_its_notification_is(lab: &Lab) -> Result<()> {
    let connector = lab.connector()?;
    let mut worker = lab.worker()?;
    for round in 0..40 {
        let (len, seed) = (SIZES[round % SIZES.len()], 7 * round as u64);
        let offer = connector.create_writable(vec![0xff; len]).wait()?;
        let id = worker.begin("write", &offer.metadata().to_json(), &[len], seed)?;
        let received = offer.wait_for_completion().wait()?;
        assert_ne!(received.memory.last(), Some(&0xff), "the last byte is not there");
        pattern::check(&received.memory, seed);
        worker.completed(id)?;
    }
    Ok(())
}

fn p6_the_first_cause_is_what_a_later_shutdown_does_not_hide(lab: &Lab) -> Result<()> {
    let connector = lab.connector()?;
    let mut worker = lab.worker()?;
    let (_, metadata) = worker.offer("readable", &[5000], 1)?;
    worker.kill();
    let metadata = RdmaMetadata::from_json(&metadata)?;
    let reading = connector.with_deadline(Duration::from_secs(20)).begin_read(&metadata, vec![0u8; 5000]);
    let failed = reading.wait().and_then(|operation| {
        // By now it has failed, or will; what comes after must not replace why.
        while !operation.status().is_final() {
            thread::sleep(Duration::from_millis(1));
        }
        connector.shutdown(Duration::from_secs(10)).wait().ok();
        operation.wait_for_completion().wait()
    });
    let error = failed.err().context("a dead peer was read")?.error;
    let Error::Transport { source, .. } = &error else { anyhow::bail!("{error:?}") };
    assert!(matches!(source, TransportError::PeerLost(_)), "{source:?}");
    assert!(error.source().is_some() && error.category() == ErrorCategory::Peer, "{error:?}");
    Ok(())
}

fn p6_a_refusal_is_told_in_the_peer_s_words(lab: &Lab) -> Result<()> {
    if lab.is_nixl() {
        // NIXL has no peer that answers: what it says of a refusal is in `hostile_metadata.rs`.
        return Ok(());
    }
    let (a, b) = lab.pair()?;
    let offer = a.create_readable(vec![1u8; 100]).wait()?;
    let metadata = offer.metadata().clone();
    let _ = offer.cancel().wait();
    let failed = b.begin_read(&metadata, vec![0u8; 100]).wait();
    let failed = failed.and_then(|operation| operation.wait_for_completion().wait());
    let error = failed.err().context("an offer that had ended was read")?.error;
    assert!(error.to_string().contains("unknown, ended, or already taken"), "{error}");
    Ok(())
}

/// P8: an offer is reachable while it is open. Over NIXL a document can be replayed while its agent lives, which
/// SECURITY.md says; what holds there is that nothing more is reported complete to anybody.
fn p8_what_was_read_once_can_not_be_read_again(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let offer = a.create_readable(pattern::bytes(5000, 3)).wait()?;
    let metadata = offer.metadata().clone();
    b.begin_read(&metadata, vec![0u8; 5000]).wait()?.wait_for_completion().wait()?;
    offer.wait_for_completion().wait()?;
    let completed = a.stats().completed;
    let again = b.with_deadline(Duration::from_secs(10)).begin_read(&metadata, vec![0u8; 5000]).wait();
    let again = again.and_then(|operation| operation.wait_for_completion().wait());
    assert!(again.is_err() || lab.is_nixl(), "an offer was read twice");
    assert_eq!(a.stats().completed, completed);
    Ok(())
}
