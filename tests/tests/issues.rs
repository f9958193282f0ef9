//! Bugs that others had in production, by their numbers, where no other test bears the promise they broke.
//! docs/reliability.md has the list.
#![cfg(feature = "nixl")]

use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use connect_tests::child::Worker;
use connect_tests::process::signal;
use connect_tests::require;
use serde_json::{Value, json};

/// A worker that has nothing but TCP, where a read waits for the peer's process to take part.
fn tcp_worker() -> Result<Worker> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_worker"));
    command.args(["--transport", "nixl"]).env("UCX_TLS", "tcp");
    Worker::ready(command)
}

fn read(reader: &mut Worker, metadata: &str, len: usize, timeout: f64) -> Result<u64> {
    let metadata: Value = serde_json::from_str(metadata)?;
    let tensors = json!([{"dtype": "uint8", "shape": [len], "seed": 1}]);
    reader.send(json!({"do": "read", "metadata": metadata, "tensors": tensors, "timeout": timeout}))
}

/// nixl #2044: a request that was released in flight went on writing, into memory that had been given back. Here its
/// memory stays with the connector until the request has ended, and is counted meanwhile.
#[test]
fn issue_2044_memory_of_a_request_in_flight_is_parked_until_it_ends() -> Result<()> {
    if !require::nixl() {
        return Ok(());
    }
    const LEN: usize = 8 << 20;
    let (mut reader, mut offering) = (tcp_worker()?, tcp_worker()?);
    let (id, metadata) = offering.offer("readable", &[LEN], 1)?;
    let warm = read(&mut reader, &metadata, LEN, 30.0)?;
    reader.completed(warm)?;
    offering.completed(id)?;

    let (_, metadata) = offering.offer("readable", &[LEN], 1)?;
    signal(offering.pid(), "STOP")?;
    let late = read(&mut reader, &metadata, LEN, 1.5)?;
    let answer = reader.answer(late)?;
    assert_eq!(answer["kind"], "deadline", "{answer}");
    // The watchdog may have answered before the driver counted it.
    let mut parked = json!({});
    for _ in 0..500 {
        parked = reader.ask(json!({"do": "stats"}), "stats")?;
        if parked["parked_bytes"] == LEN {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    signal(offering.pid(), "CONT")?;
    assert_eq!((&parked["parked"], &parked["parked_bytes"]), (&json!(1), &json!(LEN)), "{parked}");
    for _ in 0..2000 {
        if reader.ask(json!({"do": "stats"}), "stats")?["parked"] == 0 {
            let (id, metadata) = offering.offer("readable", &[LEN], 1)?;
            let again = read(&mut reader, &metadata, LEN, 30.0)?;
            reader.completed(again)?;
            offering.completed(id)?;
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    ensure!(false, "the request ended, and its memory is parked for ever");
    Ok(())
}
