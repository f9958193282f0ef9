//! A real transfer over the embedded transport, to a process of its own.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use connect_core::{Connector, RdmaMetadata, Report};

use crate::finding::{Finding, Status};

const AREA: &str = "The embedded transport";

/// Enough for several slices, little enough for any machine.
const BYTES: usize = 16 << 20;

/// A healthy transfer of this size takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) fn examine() -> Vec<Finding> {
    let finding = match send() {
        Ok(report) => {
            let (mib, time) = (report.bytes >> 20, report.transfer);
            let found = format!("{mib} MiB to another process and checked there, {time:.1?} after the offer");
            Finding::new(AREA, "transfer", Status::Ok, found)
        }
        Err(error) => Finding::new(AREA, "transfer", Status::Failed, format!("{error:#}"))
            .remedied_by("the lines on sockets and limits above name the usual causes"),
    };
    vec![finding]
}

fn pattern() -> impl Iterator<Item = u8> {
    // 251 is prime, so no slice begins where another did.
    (0..251u8).cycle().take(BYTES)
}

fn send() -> Result<Report> {
    let connector = Connector::builder().default_deadline(DEADLINE).build()?;
    let offer = connector.create_readable(pattern().collect::<Vec<u8>>()).wait()?;
    let mut child = Command::new(std::env::current_exe()?).arg("receive").stdin(Stdio::piped()).spawn()?;
    let mut document = child.stdin.take().context("the child's input is a pipe")?;
    document.write_all(offer.metadata().to_json().as_bytes())?;
    drop(document);
    let report = offer.wait_for_completion().wait();
    ensure!(child.wait()?.success(), "the receiving process failed");
    Ok(report?)
}

/// The child.
pub(crate) fn receive() -> Result<()> {
    let connector = Connector::builder().default_deadline(DEADLINE).build()?;
    let metadata = RdmaMetadata::from_json(&std::io::read_to_string(std::io::stdin())?)?;
    let read = connector.begin_read(&metadata, vec![0u8; BYTES]).wait()?;
    let received = read.wait_for_completion().wait()?;
    ensure!(received.memory.into_iter().eq(pattern()), "other bytes arrived than were sent");
    Ok(())
}
