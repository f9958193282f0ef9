//! The other process: it offers and receives as it is told, line by line.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use connect_candle::{TensorExt, recv_new_on};
use connect_core::transport::nixl::NixlConfig;
use connect_core::{Connector, TensorEnvelope};
use serde_json::{Value, json};

use crate::memory;

/// A connector over NIXL.
pub(crate) fn connector() -> Result<Connector> {
    Ok(Connector::builder().nixl(NixlConfig::default()).build()?)
}

/// A process like this one.
pub(crate) struct Peer {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Peer {
    pub(crate) fn start(device: Option<usize>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("peer");
        if let Some(device) = device {
            command.arg("--device").arg(device.to_string());
        }
        Self::spawn(&mut command)
    }

    /// Any program that answers line by line.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (to, from) = (child.stdin.take(), child.stdout.take());
        let from = BufReader::new(from.context("its output is piped")?);
        Ok(Self { child, to: to.context("its input is piped")?, from })
    }

    /// Tells it something.
    pub(crate) fn tell(&mut self, line: &Value) -> Result<()> {
        writeln!(self.to, "{line}")?;
        Ok(self.to.flush()?)
    }

    /// What it answers.
    pub(crate) fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.from.read_line(&mut line)? > 0, "the other process ended");
        let answer: Value = serde_json::from_str(&line)?;
        match answer["error"].as_str() {
            Some(error) => bail!("the other process: {error}"),
            None => Ok(answer),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process itself.
pub(crate) fn serve(device: Option<usize>) -> Result<()> {
    let device = device.map_or(Ok(Device::Cpu), Device::new_cuda)?;
    let connector = connector()?;
    for line in std::io::stdin().lines() {
        let line: Value = serde_json::from_str(&line?)?;
        if let Err(error) = obey(&line, &connector, &device) {
            println!("{}", json!({ "error": format!("{error:#}") }));
        }
    }
    Ok(())
}

fn obey(line: &Value, connector: &Connector, device: &Device) -> Result<()> {
    let seed = line["seed"].as_u64().unwrap_or(0) as u32;
    match line["do"].as_str() {
        Some("offer") => {
            let bytes = line["bytes"].as_u64().context("how much")? as usize;
            let offer = memory::tensor(seed, bytes, device)?.send_readable(connector).wait()?;
            println!("{}", json!({ "envelope": offer.envelope("x")?.to_json() }));
            offer.wait_for_completion().wait()?;
        }
        Some("receive") => {
            let envelope = TensorEnvelope::from_json(line["envelope"].as_str().context("an envelope")?)?;
            let received = recv_new_on(connector, &envelope, device).wait()?;
            let seconds = received.report().transfer.as_secs_f64();
            memory::check(&received["x"], seed)?;
            println!("{}", json!({ "seconds": seconds }));
        }
        _ => bail!("what to do with {line} is not known"),
    }
    Ok(())
}
