//! P7: no notification is lost, none counts twice, and those of strangers cost nothing that lasts.
//!
//! The stranger is a plain NIXL agent in Python that has got hold of a document. What it says in the clear is in
//! `original_defects.rs` (D15 to D17); here it shouts.
#![cfg(feature = "nixl")]

use std::process;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use connect_core::transport::TransportError;
use connect_core::transport::nixl::NixlConfig;
use connect_core::{Connector, Error, OperationStatus, RdmaMetadata};
use connect_tests::child::{Shared, Worker};
use connect_tests::lab::PATIENCE;
use connect_tests::process::{eventually, memory, signal};
use connect_tests::{pattern, require};
use data_encoding::BASE64;
use serde_json::{Value, json};

const FLOOD: u64 = 100_000;

/// What a flood may leave behind: the engine's buffers, which are reused.
const ROOM: u64 = 64 << 20;

fn connector() -> Result<Connector> {
    Ok(Connector::builder().nixl(NixlConfig::default()).default_deadline(PATIENCE).build()?)
}

fn notify(python: &mut Worker, metadata: &RdmaMetadata, body: &[u8], count: u64) -> Result<Value> {
    let id = begin_to_notify(python, metadata, body, count)?;
    python.expect(id, "notified")
}

fn begin_to_notify(python: &mut Worker, metadata: &RdmaMetadata, body: &[u8], count: u64) -> Result<u64> {
    let metadata: Value = serde_json::from_str(&metadata.to_json())?;
    let mut command = json!({"do": "notify", "metadata": metadata, "body": BASE64.encode(body)});
    if count > 1 {
        command["count"] = count.into();
    }
    python.send(command)
}

/// Many operations wait while a stranger floods; each completes once, with its own bytes.
#[test]
fn p7_a_flood_reaches_nobody_and_keeps_nobody_waiting() -> Result<()> {
    if !require::nixl() {
        return Ok(());
    }
    let Some(mut python) = Shared::python()? else { return Ok(()) };
    let (a, b) = (connector()?, connector()?);
    let mut waiting = Vec::new();
    for seed in 0..64 {
        waiting.push((seed, a.create_readable(pattern::bytes(5000, seed)).wait()?));
    }
    let metadata = waiting[0].1.metadata().clone();
    // Long enough that what is kept by mistake shows: 100 MB.
    let body = [b"foreign ".as_slice(), &[b'x'; 1000]].concat();
    notify(&mut python, &metadata, &body, 100)?;
    let before = memory(process::id(), "VmRSS")?;
    let flood = begin_to_notify(&mut python, &metadata, &body, FLOOD)?;
    for (seed, offer) in waiting {
        let read = b.begin_read(offer.metadata(), vec![0u8; 5000]).wait()?;
        pattern::check(&read.wait_for_completion().wait()?.memory, seed);
        offer.wait_for_completion().wait()?;
    }
    python.expect(flood, "notified")?;
    let all = FLOOD + 100;
    assert!(eventually(PATIENCE, || a.stats().unmatched_notifications == all), "{:?}", a.stats());
    let stats = a.stats();
    assert_eq!((stats.completed, stats.open, stats.parked), (64, 0, 0), "{stats:?}");
    let after = memory(process::id(), "VmRSS")?;
    ensure!(after < before + ROOM, "the flood left {} MB behind", (after - before) >> 20);
    Ok(())
}

/// The flood queues up while this library's process is stopped, together with what it waits for.
#[test]
fn p7_what_queued_up_behind_a_flood_is_not_lost() -> Result<()> {
    if !require::nixl() {
        return Ok(());
    }
    let Some(mut python) = Shared::python()? else { return Ok(()) };
    let mut worker = Worker::rust(env!("CARGO_BIN_EXE_worker"), &["--transport", "nixl"])?;
    let reader = connector()?;
    let (first, document) = worker.offer("readable", &[5000], 1)?;
    let document = RdmaMetadata::from_json(&document)?;
    notify(&mut python, &document, b"hello", 1)?;
    let before = memory(worker.pid(), "VmRSS")?;
    signal(worker.pid(), "STOP")?;
    let flood = notify(&mut python, &document, &[b'x'; 200], FLOOD);
    let reading = reader.begin_read(&document, vec![0u8; 5000]).wait();
    signal(worker.pid(), "CONT")?;
    flood?;
    pattern::check(&reading?.wait_for_completion().wait()?.memory, 1);
    worker.completed(first)?;
    let counted = |worker: &mut Worker| worker.ask(json!({"do": "stats"}), "stats");
    let mut stats = counted(&mut worker)?;
    for _ in 0..2000 {
        if stats["unmatched_notifications"] == FLOOD + 1 {
            break;
        }
        thread::sleep(Duration::from_millis(10));
        stats = counted(&mut worker)?;
    }
    assert_eq!(stats["unmatched_notifications"], FLOOD + 1, "{stats}");
    assert_eq!(stats["completed"], 1, "{stats}");
    let after = memory(worker.pid(), "VmRSS")?;
    ensure!(after < before + ROOM, "the flood left {} MB behind", (after - before) >> 20);
    Ok(())
}

/// Sizes that no key has, and bytes that look like what connectors tell each other.
#[test]
fn p7_large_binary_and_forged_notifications_match_nothing() -> Result<()> {
    if !require::nixl() {
        return Ok(());
    }
    let Some(mut python) = Shared::python()? else { return Ok(()) };
    let (a, b) = (connector()?, connector()?);
    let offer = a.create_readable(pattern::bytes(5000, 3)).wait()?;
    let key = offer.metadata().notification_key();
    let other = "00000000-0000-4000-8000-000000000000";
    let mut junk: Vec<Vec<u8>> = vec![vec![0; 1 << 20], vec![0xff; 1 << 20], vec![b'k'; 65_537]];
    junk.push([key.as_bytes(), &[0; 1 << 20]].concat());
    junk.extend(
        ["connect/1 ", "connect/2 quiet ", "connect/1 quiet", "CONNECT/1 quiet "]
            .map(|forged| [forged.as_bytes(), key.as_bytes()].concat()),
    );
    junk.push(b"connect/1 quiet \xff\xfe".to_vec());
    for body in &junk {
        notify(&mut python, offer.metadata(), body, 1)?;
    }
    let all = junk.len() as u64;
    assert!(eventually(PATIENCE, || a.stats().unmatched_notifications == all), "{:?}", a.stats());
    // Signs of life of offers that are not there are no news, however many.
    for sign in ["alive", "quiet", "failed"] {
        let body = format!("connect/1 {sign} {other}");
        notify(&mut python, offer.metadata(), body.as_bytes(), 1)?;
        notify(&mut python, offer.metadata(), body.as_bytes(), 2000)?;
    }
    assert_eq!(offer.status(), OperationStatus::Initialized);
    let read = b.begin_read(offer.metadata(), vec![0u8; 5000]).wait()?;
    pattern::check(&read.wait_for_completion().wait()?.memory, 3);
    offer.wait_for_completion().wait()?;
    assert_eq!(a.stats().unmatched_notifications, all, "a sign is not a notification of an operation");
    Ok(())
}

/// Whoever holds the document can end the operation with the right words, as it could complete it (D17): then the
/// error says who, and nothing is lost but the operation.
#[test]
fn p7_a_sign_from_a_stranger_that_holds_the_document_ends_that_offer_alone() -> Result<()> {
    if !require::nixl() {
        return Ok(());
    }
    let Some(mut python) = Shared::python()? else { return Ok(()) };
    let (a, b) = (connector()?, connector()?);
    let (spoiled, spared) = (
        a.create_readable(pattern::bytes(5000, 1)).wait()?,
        a.create_readable(pattern::bytes(5000, 2)).wait()?,
    );
    let body = format!("connect/1 failed {}", spoiled.metadata().notification_key());
    let stranger = notify(&mut python, spoiled.metadata(), body.as_bytes(), 1)?["agent"].clone();
    let stranger = stranger.as_str().context("an agent has a name")?;
    let error = spoiled.wait_for_completion().wait().err().context("it was ended")?;
    let Error::Transport { source: TransportError::LetGo(who), .. } = &error else {
        anyhow::bail!("{error:?}");
    };
    assert!(who.contains(stranger), "{who}");
    let read = b.begin_read(spared.metadata(), vec![0u8; 5000]).wait()?;
    pattern::check(&read.wait_for_completion().wait()?.memory, 2);
    spared.wait_for_completion().wait()?;
    assert!(eventually(PATIENCE, || a.stats().parked == 0), "{:?}", a.stats());
    Ok(())
}
