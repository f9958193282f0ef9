//! 02: two processes and a pipe. The pipe carries the document; the bytes go from memory to memory.

use std::io::{Write, read_to_string, stdin};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use connect_core::{Connector, RdmaMetadata};

/// 64 MiB of numbers that say where they belong.
const COUNT: u64 = 8 << 20;

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("receive") => receive(),
        _ => send(),
    }
}

fn send() -> Result<()> {
    let connector = Connector::local()?;
    let numbers: Vec<u64> = (0..COUNT).collect();
    let offer = connector.create_readable(numbers).wait()?;

    let mut child = Command::new(std::env::current_exe()?).arg("receive").stdin(Stdio::piped()).spawn()?;
    let mut pipe = child.stdin.take().context("the child's input is a pipe")?;
    pipe.write_all(offer.metadata().to_json().as_bytes())?;
    drop(pipe);

    // If the child dies, this ends with the deadline, 30 s unless set: no wait is for ever.
    let report = offer.wait_for_completion().wait()?;
    println!("sent {} bytes to process {}", report.bytes, child.id());
    ensure!(child.wait()?.success(), "the receiving process failed");
    Ok(())
}

fn receive() -> Result<()> {
    let connector = Connector::local()?;
    let metadata = RdmaMetadata::from_json(&read_to_string(stdin())?)?;
    let target = vec![0u64; COUNT as usize];
    let received = connector.begin_read(&metadata, target).wait()?.wait_for_completion().wait()?;

    assert!(received.memory.iter().copied().eq(0..COUNT));
    let report = received.report;
    println!("received {} bytes at {:.1} GB/s", report.bytes, report.gigabytes_per_second());
    Ok(())
}
