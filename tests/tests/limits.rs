//! What SECURITY.md says that this library can't prevent, as it was seen. Should one of these fail, something got
//! better and that page is out of date.
#![cfg(feature = "nixl")]

use std::io::Write;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use connect_core::transport::nixl::NixlConfig;
use connect_core::{Connector, Error, RdmaMetadata};
use connect_tests::child::Worker;
use connect_tests::{pattern, require};

const WORKER: &str = env!("CARGO_BIN_EXE_worker");

/// Large enough for the allocator to unmap it.
const LARGE: usize = 8 << 20;

fn worker(transport: &str) -> Result<Worker> {
    let mut command = Command::new(WORKER);
    command.args(["--transport", transport]);
    Worker::ready(command)
}

/// Over TCP, with further arguments.
fn tcp_worker(arguments: &[&str]) -> Result<Worker> {
    let mut command = Command::new(WORKER);
    command.args(["--transport", "nixl"]).args(arguments).env("UCX_TLS", "tcp");
    Worker::ready(command)
}

/// The same document, offering to be written what it offered to be read.
fn reversed(document: &str) -> String {
    let reversed = document.replacen("\"operation_kind\":1", "\"operation_kind\":2", 1);
    assert_ne!(reversed, document);
    reversed
}

/// Whether a process that holds a document to read writes to the memory.
fn is_overwritten(connector: &Connector, transport: &str) -> Result<bool> {
    let mut holder = worker(transport)?;
    let content = Arc::new(pattern::bytes(5000, 1));
    let offer = connector.create_readable(Arc::clone(&content)).wait()?;
    let document = offer.metadata().to_json();
    let writing = holder.begin("write", &reversed(&document), &[5000], 2)?;
    let answer = holder.answer(writing)?;
    let content = std::hint::black_box(&content);
    if answer["event"] == "error" {
        ensure!(pattern::first_difference(content, 1).is_none(), "refused, and written to");
        // The offer is as good as before.
        let reading = holder.begin("read", &document, &[5000], 1)?;
        holder.completed(reading)?;
        offer.wait_for_completion().wait()?;
        return Ok(false);
    }
    ensure!(pattern::first_difference(content, 2).is_none(), "it was told that it wrote, and did not");
    // The key is the same for both directions.
    offer.wait_for_completion().wait()?;
    Ok(true)
}

#[test]
fn local_refuses_to_write_what_is_offered_to_be_read() -> Result<()> {
    for transport in ["local", "local-stream"] {
        ensure!(!is_overwritten(&Connector::local()?, transport)?, "{transport}");
    }
    Ok(())
}

#[test]
fn nixl_writes_what_is_offered_to_be_read() -> Result<()> {
    if require::nixl() {
        let connector = Connector::builder().nixl(NixlConfig::default()).build()?;
        ensure!(is_overwritten(&connector, "nixl")?, "it was refused");
    }
    Ok(())
}

/// After an honest, complete read.
#[test]
fn a_document_used_again_over_tcp_after_its_memory_was_unmapped_kills_the_process_that_offered() -> Result<()>
{
    if !require::nixl() {
        return Ok(());
    }
    let (mut a, mut b) = (tcp_worker(&[])?, tcp_worker(&[])?);
    let (offered, document) = a.offer("readable", &[LARGE], 1)?;
    let reading = b.begin("read", &document, &[LARGE], 1)?;
    b.completed(reading)?;
    a.completed(offered)?;
    ensure!(a.is_alive(), "it died of an honest read: {}", a.stderr());
    let replayed = b.begin("read", &document, &[LARGE], 1)?;
    let answer = b.answer(replayed)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while a.is_alive() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    ensure!(!a.is_alive(), "it survived; the reader got {answer}");
    Ok(())
}

/// The memory of a slab stays where it is.
#[test]
fn a_document_of_a_slot_used_again_over_tcp_ends_nobody() -> Result<()> {
    if !require::nixl() {
        return Ok(());
    }
    let bytes = LARGE.to_string();
    let (mut a, mut b) = (tcp_worker(&["--slots", &bytes])?, tcp_worker(&[])?);
    let (offered, document) = a.offer("readable", &[LARGE], 1)?;
    for _ in 0..3 {
        let reading = b.begin("read", &document, &[LARGE], 1)?;
        b.completed(reading)?;
    }
    a.completed(offered)?;
    // The slot is another's by now, and that is what is read: the same slot is the first to be taken again.
    let (_offered, _) = a.offer("readable", &[LARGE], 2)?;
    let replayed = b.begin("read", &document, &[LARGE], 2)?;
    b.completed(replayed)?;
    ensure!(a.is_alive(), "it died: {}", a.stderr());
    Ok(())
}

/// Whether the document of one slot of a slab, with the address of another one in it, brings what is there.
fn reads_the_neighbour(offering: &Connector, reader: &Connector) -> Result<bool> {
    let slab = offering.slab(2, 1000).wait()?;
    let slots = [1, 2].map(|seed| {
        let mut slot = slab.try_take().expect("both are free");
        slot.write_all(&pattern::bytes(1000, seed)).expect("it fits");
        slot
    });
    let [offered, neighbour] = slots;
    let offer = offering.create_readable(offered).wait()?;
    let mut document: serde_json::Value = serde_json::from_str(&offer.metadata().to_json())?;
    document["descriptors"][0]["ptr"] = (neighbour.as_ptr() as u64).into();
    let metadata = RdmaMetadata::from_json(&document.to_string())?;
    let read = reader.begin_read(&metadata, vec![0u8; 1000]).wait();
    match read.and_then(|read| read.wait_for_completion().wait()) {
        Ok(received) => {
            ensure!(pattern::first_difference(&received.memory, 2).is_none(), "it read something else");
            Ok(true)
        }
        Err(failed) => {
            ensure!(matches!(failed.error, Error::Transport { .. }), "{failed}");
            Ok(false)
        }
    }
}

#[test]
fn p8_over_local_a_slot_s_document_reaches_that_slot_alone() -> Result<()> {
    ensure!(!reads_the_neighbour(&Connector::local()?, &Connector::local()?)?);
    Ok(())
}

/// NIXL describes what was registered, and no part of it.
#[test]
fn p8_over_nixl_a_slot_s_document_reaches_the_whole_slab() -> Result<()> {
    if require::nixl() {
        let build = || Connector::builder().nixl(NixlConfig::default()).build();
        ensure!(reads_the_neighbour(&build()?, &build()?)?, "it was refused");
    }
    Ok(())
}
