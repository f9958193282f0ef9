//! What the demo's processes say to each other: one JSON line for each [`Event`].

use std::io::{self, BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// The receiver can be given offers.
    Ready,
    /// The sender has opened the checkpoint.
    Loaded { tensors: usize, bytes: u64, offers: usize },
    /// The sender offers some tensors.
    Offer { envelope: serde_json::Value },
    /// The receiver has them, and checked them.
    Received { bytes: u64, descriptors: usize, seconds: f64, connect_seconds: f64 },
    /// A process is about to end.
    Finished { resident_mb: f64 },
    /// A process failed.
    Error { message: String },
}

/// Says something to whoever started this process.
pub(crate) fn say(event: &Event) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(event)?)?;
    Ok(stdout.flush()?)
}

/// A process that speaks these lines. Dropping it ends it.
pub(crate) struct Worker {
    name: &'static str,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    pub(crate) fn start(name: &'static str, mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting the {name}: {}", command.get_program().display()))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("its output is a pipe")?;
        Ok(Self { name, child, stdin, lines: BufReader::new(stdout).lines() })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The next line. A line that reports an error is one.
    pub(crate) fn next(&mut self) -> Result<Event> {
        let line = self.lines.next().with_context(|| format!("the {} ended early", self.name))??;
        match serde_json::from_str(&line).with_context(|| format!("the {} said {line:?}", self.name))? {
            Event::Error { message } => bail!("the {} failed: {message}", self.name),
            event => Ok(event),
        }
    }

    pub(crate) fn expect_ready(&mut self) -> Result<()> {
        let event = self.next()?;
        ensure!(matches!(event, Event::Ready), "the {} is not ready", self.name);
        Ok(())
    }

    pub(crate) fn tell(&mut self, event: &Event) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        writeln!(stdin, "{}", serde_json::to_string(event)?)?;
        Ok(stdin.flush()?)
    }

    /// There is nothing more to tell.
    pub(crate) fn close(&mut self) {
        self.stdin = None;
    }

    pub(crate) fn wait(&mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "the {} ended with {status}", self.name);
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail when it has ended already, as it should have.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The memory this process has resident for itself, mapped files not counted, in MB.
pub(crate) fn resident_mb() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0 / 1e6)
}
