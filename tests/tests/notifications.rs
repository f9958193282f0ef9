//! P7: no notification is lost, none counts twice, and those of strangers cost nothing that lasts.
//!
//! The stranger is a plain NIXL agent in Python that has got hold of a document. First it shouts, then it speaks in the clear (D15 to D17 of the
//! original).
#![cfg(feature = "nixl")]

use std::process;
use std::thread;
use std::time::{Duration, Instant};

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

/// Two peers; `None` where there is no NIXL.
fn pair() -> Result<Option<(Connector, Connector)>> {
    Ok(if require::nixl() { Some((connector()?, connector()?)) } else { None })
}

/// Waits until a connector has counted so many notifications that match nothing, and no more.
fn unmatched(connector: &Connector, count: u64) {
    let counted = || connector.stats().unmatched_notifications >= count;
    assert!(eventually(PATIENCE, counted), "{:?}", connector.stats());
    assert_eq!(connector.stats().unmatched_notifications, count);
}

/// Reads one buffer of the pattern.
fn read(reader: &Connector, metadata: &RdmaMetadata, seed: u64) -> Result<()> {
    let read = reader.begin_read(metadata, vec![0u8; 5000]).wait()?;
    pattern::check(&read.wait_for_completion().wait()?.memory, seed);
    Ok(())
}

/// Many operations wait while a stranger floods; each completes once, with its own bytes.
#[test]
fn p7_a_flood_reaches_nobody_and_keeps_nobody_waiting() -> Result<()> {
    let Some((a, b)) = pair()? else { return Ok(()) };
    let Some(mut python) = Shared::python()? else { return Ok(()) };
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
        read(&b, offer.metadata(), seed)?;
        offer.wait_for_completion().wait()?;
    }
    python.expect(flood, "notified")?;
    let all = FLOOD + 100;
    unmatched(&a, all);
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
    let Some((a, b)) = pair()? else { return Ok(()) };
    let Some(mut python) = Shared::python()? else { return Ok(()) };
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
    unmatched(&a, all);
    // Signs of life of offers that are not there are no news, however many.
    for sign in ["alive", "quiet", "failed"] {
        let body = format!("connect/1 {sign} {other}");
        notify(&mut python, offer.metadata(), body.as_bytes(), 1)?;
        notify(&mut python, offer.metadata(), body.as_bytes(), 2000)?;
    }
    assert_eq!(offer.status(), OperationStatus::Initialized);
    read(&b, offer.metadata(), 3)?;
    offer.wait_for_completion().wait()?;
    assert_eq!(a.stats().unmatched_notifications, all, "a sign is not a notification of an operation");
    Ok(())
}

/// Whoever holds the document can end the operation with the right words, as it could complete it (D17): then the
/// error says who, and nothing is lost but the operation.
#[test]
fn p7_a_sign_from_a_stranger_that_holds_the_document_ends_that_offer_alone() -> Result<()> {
    let Some((a, b)) = pair()? else { return Ok(()) };
    let Some(mut python) = Shared::python()? else { return Ok(()) };
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
    read(&b, spared.metadata(), 2)?;
    spared.wait_for_completion().wait()?;
    assert!(eventually(PATIENCE, || a.stats().parked == 0), "{:?}", a.stats());
    Ok(())
}

#[test]
fn d15_non_utf8_notification_harms_nobody() -> Result<()> {
    let Some((a, b)) = pair()? else { return Ok(()) };
    let Some(mut python) = Shared::python()? else { return Ok(()) };
    let first = a.create_readable(pattern::bytes(5000, 1)).wait()?;
    let junk: [&[u8]; 5] = [b"\xff\xfe\x00", b"\x00", b"\xf0\x9f", &[0x80; 4000], b"not a key"];
    for body in junk {
        notify(&mut python, first.metadata(), body, 1)?;
    }
    unmatched(&a, junk.len() as u64);

    let second = a.create_readable(pattern::bytes(5000, 2)).wait()?;
    for (offer, seed) in [(first, 1), (second, 2)] {
        assert_eq!(offer.status(), OperationStatus::Initialized);
        read(&b, offer.metadata(), seed)?;
        offer.wait_for_completion().wait()?;
    }
    Ok(())
}

/// The original kept them all, and scanned them at each look at each operation: 19 ms at 100,000.
#[test]
fn d16_foreign_notifications_are_not_kept() -> Result<()> {
    let Some((a, b)) = pair()? else { return Ok(()) };
    let Some(mut python) = Shared::python()? else { return Ok(()) };
    let open = a.create_readable(pattern::bytes(5000, 1)).wait()?;
    notify(&mut python, open.metadata(), b"foreign ", 20_000)?;
    unmatched(&a, 20_000);

    let started = Instant::now();
    for seed in 0..50 {
        let offer = a.create_readable(pattern::bytes(5000, seed)).wait()?;
        read(&b, offer.metadata(), seed)?;
        offer.wait_for_completion().wait()?;
    }
    // A scan of 4 ms at each look would make this take longer, on the slowest of machines.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    read(&b, open.metadata(), 1)?;
    open.wait_for_completion().wait()?;
    Ok(())
}

/// The key is all that a NIXL notification can prove, and every holder of the document has it: one that lies
/// completes the operation. What holds is that only the exact key does, once, and that the report tells who.
#[test]
fn d17_only_the_exact_key_completes_once_and_the_report_names_its_sender() -> Result<()> {
    let Some((a, b)) = pair()? else { return Ok(()) };
    let Some(mut python) = Shared::python()? else { return Ok(()) };
    let other = a.create_readable(pattern::bytes(5000, 1)).wait()?;
    let offer = a.create_writable(vec![0u8; 5000]).wait()?;
    let key = offer.metadata().notification_key().to_owned();
    let metadata = offer.metadata().clone();
    let near = [
        key[..35].to_owned(),
        format!("{key} "),
        format!("{key}\0"),
        key.to_uppercase(),
        key[1..].to_owned(),
    ];
    // A key may have no letters.
    let near: Vec<_> = near.into_iter().filter(|near| *near != key).collect();
    for body in &near {
        notify(&mut python, &metadata, body.as_bytes(), 1)?;
    }
    unmatched(&a, near.len() as u64);
    assert_eq!(offer.status(), OperationStatus::Initialized);

    let sender = notify(&mut python, &metadata, key.as_bytes(), 1)?["agent"].clone();
    let received = offer.wait_for_completion().wait()?;
    assert_eq!(received.report.peer.as_deref(), sender.as_str());
    assert_eq!(received.memory, vec![0u8; 5000], "nothing was moved");

    // A second time it is anybody's junk.
    notify(&mut python, &metadata, key.as_bytes(), 1)?;
    unmatched(&a, near.len() as u64 + 1);
    assert_eq!(other.status(), OperationStatus::Initialized);
    read(&b, other.metadata(), 1)?;
    other.wait_for_completion().wait()?;
    Ok(())
}
