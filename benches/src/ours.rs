//! This library as both sides of a measurement: [`Offers`] runs the passive side in a second process.

use std::env;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
#[cfg(feature = "nixl")]
use connect_core::transport::nixl::{NixlConfig, NixlProgress};
use connect_core::{Connector, Deadline, RdmaMetadata};

use crate::Samples;

/// Which transport is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// The embedded transport.
    Local,
    /// NIXL over UCX, driven by the connector's own thread: the default.
    Nixl,
    /// NIXL over UCX, with NIXL's progress thread asleep until something arrives.
    NixlThread,
}

impl Engine {
    /// A connector over this transport.
    ///
    /// # Errors
    /// The transport can't be had, or was not built in.
    pub fn connector(self) -> Result<Connector> {
        let builder = Connector::builder().default_deadline(Deadline::after(Duration::from_secs(60)));
        match self {
            Self::Local => Ok(builder.build()?),
            #[cfg(feature = "nixl")]
            Self::Nixl => Ok(builder.nixl(NixlConfig::default()).build()?),
            #[cfg(feature = "nixl")]
            Self::NixlThread => Ok(builder
                .nixl(NixlConfig::default().progress(NixlProgress::Thread(Duration::from_millis(10))))
                .build()?),
            #[cfg(not(feature = "nixl"))]
            Self::Nixl | Self::NixlThread => {
                anyhow::bail!("built without NIXL; build with `--features nixl`")
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Nixl => "nixl",
            Self::NixlThread => "nixl-thread",
        }
    }
}

/// The passive side: for each line on standard input, a size, it offers that many bytes, prints the
/// metadata, and a second line once they were read.
///
/// # Errors
/// An operation failed, or the other side is gone.
pub fn serve(engine: Engine) -> Result<()> {
    let connector = engine.connector()?;
    let mut stdout = io::stdout().lock();
    let mut buffer = std::sync::Arc::new(Vec::new());
    for line in io::stdin().lines() {
        let size: usize = line?.trim().parse()?;
        if buffer.len() != size {
            buffer = std::sync::Arc::new((0..size).map(|i| (i % 251) as u8).collect::<Vec<u8>>());
        }
        let offer = connector.create_readable(buffer.clone()).wait()?;
        writeln!(stdout, "{}", offer.metadata().to_json())?;
        stdout.flush()?;
        offer.wait_for_completion().wait()?;
        writeln!(stdout, "done")?;
        stdout.flush()?;
    }
    Ok(())
}

/// A second process that offers memory.
pub struct Offers {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Offers {
    /// Starts this program again as the passive side.
    ///
    /// # Errors
    /// The process can't be started.
    pub fn start(engine: Engine) -> Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .args(["--serve", engine.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("its input is a pipe")?;
        let stdout = child.stdout.take().context("its output is a pipe")?;
        Ok(Self { child, stdin, lines: BufReader::new(stdout).lines() })
    }

    /// The other process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Offers `size` bytes and leaves the offer open.
    ///
    /// # Errors
    /// The other process is gone.
    pub fn offer(&mut self, size: usize) -> Result<RdmaMetadata> {
        writeln!(self.stdin, "{size}")?;
        self.stdin.flush()?;
        Ok(RdmaMetadata::from_json(&self.line()?)?)
    }

    /// Reads `size` bytes `rounds` times, from `begin_read` to completion, into one buffer, and checks what
    /// arrives. Also returns the whole rounds: offer, metadata as JSON, read, both sides know.
    ///
    /// # Errors
    /// An operation failed, or moved wrong bytes.
    pub fn read(&mut self, connector: &Connector, size: usize, rounds: usize) -> Result<(Samples, Samples)> {
        let mut buffer = vec![0u8; size];
        let (mut reads, mut wholes) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            buffer.fill(0);
            let whole = Instant::now();
            let metadata = self.offer(size)?;
            let read = Instant::now();
            let received = connector.begin_read(&metadata, buffer).wait()?.wait_for_completion().wait()?;
            reads.push(read.elapsed());
            ensure!(self.line()? == "done", "the other side did not learn of the read");
            wholes.push(whole.elapsed());
            buffer = received.memory;
            ensure!(buffer.iter().enumerate().all(|(i, byte)| *byte == (i % 251) as u8), "wrong bytes");
        }
        Ok((reads.into_iter().collect(), wholes.into_iter().collect()))
    }

    fn line(&mut self) -> Result<String> {
        Ok(self.lines.next().context("the other side is gone")??)
    }
}

impl Drop for Offers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
