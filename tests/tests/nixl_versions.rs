//! Every NIXL release that is supported, each in processes of its own: a process loads NIXL once.
#![cfg(feature = "nixl")]

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use connect_core::RdmaMetadata;
use connect_tests::child::{Shared, Worker};
use connect_tests::require;
use serde_json::{Value, json};

const WORKER: &str = env!("CARGO_BIN_EXE_worker");

/// One of unequal lengths that share nothing with a page, one of more than a slice.
const LENGTHS: &[&[usize]] = &[&[100_000, 3, 4096], &[20_000_003]];

/// A worker with the given release; `None` stands for the one that programs find by themselves.
fn worker(release: Option<&str>) -> Result<Option<Worker>> {
    Ok(match command(release) {
        Some(command) => Some(Worker::ready(command)?),
        None => None,
    })
}

/// A worker whose memory is a slab of slots that hold all of [`LENGTHS`].
fn slab_worker(release: Option<&str>) -> Result<Option<Worker>> {
    let Some(mut command) = command(release) else { return Ok(None) };
    command.args(["--slots", "20000003"]);
    Worker::ready(command).map(Some)
}

/// A worker that has nothing but TCP.
fn tcp_worker(release: Option<&str>) -> Result<Option<Worker>> {
    let Some(mut command) = command(release) else { return Ok(None) };
    command.env("UCX_TLS", "tcp");
    Worker::ready(command).map(Some)
}

fn command(release: Option<&str>) -> Option<Command> {
    let mut command = Command::new(WORKER);
    command.args(["--transport", "nixl"]);
    match release {
        Some(release) => _ = command.arg("--library").arg(require::nixl_release(release)?),
        None if require::nixl() => {}
        None => return None,
    }
    Some(command)
}

/// All four operations between two workers, `a` offering.
fn exchange(a: &mut Worker, b: &mut Worker) -> Result<()> {
    for (lengths, seed) in LENGTHS.iter().zip([5, 50]) {
        for (offer, act) in [("readable", "read"), ("writable", "write")] {
            let (offered, metadata) = a.offer(offer, lengths, seed)?;
            let begun = b.begin(act, &metadata, lengths, seed)?;
            b.completed(begun).with_context(|| format!("{act} {lengths:?}"))?;
            a.completed(offered).with_context(|| format!("{offer} {lengths:?}"))?;
        }
    }
    Ok(())
}

/// Operations over parts of what is registered, and described by all of it.
fn shares_a_slab(release: Option<&str>) -> Result<()> {
    let (Some(mut a), Some(mut b)) = (slab_worker(release)?, slab_worker(release)?) else { return Ok(()) };
    for _ in 0..2 {
        exchange(&mut a, &mut b)?;
        exchange(&mut b, &mut a)?;
    }
    for worker in [&mut a, &mut b] {
        let stats = worker.ask(json!({"do": "stats"}), "stats")?;
        ensure!(stats["registrations"] == 1, "{stats}");
    }
    Ok(())
}

fn blob_bytes(metadata: &str) -> Result<usize> {
    Ok(RdmaMetadata::from_json(metadata)?.decode_blob()?.len())
}

fn holds(release: Option<&str>) -> Result<()> {
    let (Some(mut a), Some(mut b)) = (worker(release)?, worker(release)?) else { return Ok(()) };
    exchange(&mut a, &mut b)?;
    exchange(&mut b, &mut a)?;

    // The blob's format is known: one operation's metadata stays small beside others.
    let (_, metadata) = a.offer("readable", &[4096], 0)?;
    let alone = blob_bytes(&metadata)?;
    for seed in 1..30 {
        a.offer("readable", &[4096], seed)?;
    }
    let (offered, metadata) = a.offer("readable", &[4096], 30)?;
    // A remote key differs in length by a byte or two; thirty regions are more than a thousand.
    let beside = blob_bytes(&metadata)?;
    assert!(beside <= alone + 16, "{beside} bytes beside 30 others, {alone} alone");
    let begun = b.begin("read", &metadata, &[4096], 30)?;
    b.completed(begun)?;
    a.completed(offered)?;

    for worker in [&mut a, &mut b] {
        worker.ask(json!({"do": "shutdown"}), "shutdown")?;
        let status = worker.end()?;
        let stderr = worker.stderr();
        assert!(!stderr.contains("unknown format"), "{stderr}");
        assert_eq!(status.code(), Some(0), "{status}: {stderr}");
    }
    Ok(())
}

#[test]
fn nixl_1_3_2() -> Result<()> {
    holds(Some("1.3.2"))?;
    shares_a_slab(Some("1.3.2"))
}

#[test]
fn nixl_1_4_1() -> Result<()> {
    holds(Some("1.4.1"))?;
    shares_a_slab(Some("1.4.1"))
}

#[test]
fn nixl_1_5_0() -> Result<()> {
    holds(Some("1.5.0"))?;
    shares_a_slab(Some("1.5.0"))
}

#[test]
fn nixl_as_programs_find_it() -> Result<()> {
    holds(None)?;
    shares_a_slab(None)
}

/// UCX tells which releases get along: 1.3.2 has UCX 1.21, 1.4.1 has 1.22, later ones 1.23. Between processes
/// of one host that of 1.3.2 crashes when a newer one connects to it, whatever is above it; over TCP it does not.
#[test]
fn the_oldest_and_the_newest_release_talk_to_each_other_over_tcp() -> Result<()> {
    let (Some(mut old), Some(mut new)) = (tcp_worker(Some("1.3.2"))?, tcp_worker(None)?) else {
        return Ok(());
    };
    exchange(&mut old, &mut new)?;
    exchange(&mut new, &mut old)
}

#[test]
fn python_on_the_newest_release_talks_to_older_ones() -> Result<()> {
    for release in ["1.4.1", "1.5.0"] {
        let Some(mut rust) = worker(Some(release))? else { return Ok(()) };
        let Some(mut python) = Shared::python()? else { return Ok(()) };
        exchange(&mut rust, &mut python).with_context(|| format!("{release} offers"))?;
        exchange(&mut python, &mut rust).with_context(|| format!("{release} reads and writes"))?;
    }
    Ok(())
}

#[test]
fn python_on_the_newest_release_talks_to_the_oldest_over_tcp() -> Result<()> {
    let Some(mut rust) = tcp_worker(Some("1.3.2"))? else { return Ok(()) };
    let Some(interpreter) = require::python() else { return Ok(()) };
    let mut command = Command::new(interpreter);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/worker.py")).env("UCX_TLS", "tcp");
    let mut python = Worker::ready(command)?;
    exchange(&mut rust, &mut python)?;
    exchange(&mut python, &mut rust)
}

// --- libraries that can't be used -----------------------------------------------------------------------

/// Starts a worker that can't start, and returns its last words.
fn refused(library: &Path) -> Result<String> {
    let mut command = Command::new(WORKER);
    command.args(["--transport", "nixl", "--library"]).arg(library);
    let mut worker = Worker::spawn(command)?;
    // The answer belongs to no command.
    let error = worker.next(|answer| answer["event"].is_string())?;
    ensure!(error["event"] == "error", "{error}");
    ensure!(error["kind"] == "local" && error["retryable"] == false, "{error}");
    let status = worker.end()?;
    // An abort or a crash would be a signal, without a code.
    ensure!(status.code() == Some(1), "{status}");
    Ok(error["message"].as_str().context("an error has a message")?.to_owned())
}

fn assert_names(message: &str, library: &Path) {
    assert!(message.contains(&library.display().to_string()), "it names no path: {message}");
    assert!(message.contains("pip install nixl-cu13"), "it names no remedy: {message}");
}

#[test]
fn a_missing_library_is_a_typed_error_and_no_abort() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let library = folder.path().join("libnixl_capi.so");
    assert_names(&refused(&library)?, &library);
    // A folder without one.
    assert_names(&refused(folder.path())?, &library);
    Ok(())
}

#[test]
fn a_file_that_is_no_library_is_a_typed_error_and_no_abort() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let library = folder.path().join("libnixl_capi.so");
    fs::write(&library, "not a library")?;
    assert_names(&refused(&library)?, &library);
    Ok(())
}

#[test]
fn an_incomplete_library_is_a_typed_error_and_no_abort() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (source, library) = (folder.path().join("nixl.c"), folder.path().join("libnixl_capi.so"));
    fs::write(&source, "int nixl_capi_create_agent(const char *name, void **agent) { return -1; }\n")?;
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    ensure!(status.context("a C compiler is needed to build this crate")?.success());
    let message = refused(&library)?;
    assert_names(&message, &library);
    assert!(message.contains("incomplete") && message.contains("nixl_capi_"), "{message}");
    Ok(())
}

#[test]
fn a_second_library_in_one_process_is_a_typed_error_and_harms_nothing() -> Result<()> {
    let (Some(mut a), Some(mut b)) = (worker(Some("1.3.2"))?, worker(Some("1.3.2"))?) else { return Ok(()) };
    let Some(other) = require::nixl_release("1.5.0") else { return Ok(()) };
    let error = a.ask(json!({"do": "load", "library": other}), "error")?;
    assert_eq!((&error["kind"], &error["retryable"]), (&json!("local"), &Value::Bool(false)), "{error}");
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains("nixl/1.3.2/") && message.contains("nixl/1.5.0/"), "{message}");

    // The same one again is no other, by whichever path.
    let folder = tempfile::tempdir()?;
    let link = folder.path().join("the-same");
    std::os::unix::fs::symlink(require::nixl_release("1.3.2").unwrap_or_default(), &link)?;
    a.ask(json!({"do": "load", "library": link}), "loaded")?;
    exchange(&mut a, &mut b)
}
