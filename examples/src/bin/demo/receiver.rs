//! The second process: reads what is offered into new Candle tensors, and compares them with the file.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use connect_candle::recv_new;
use connect_core::TensorEnvelope;
use connect_examples::TransportChoice;
use memmap2::Mmap;
use safetensors::{SafeTensors, View};

use crate::lines::{Event, resident_mb, say};

pub(crate) fn run(file: &Path, transport: TransportChoice) -> Result<()> {
    let connector = connect_examples::connector(transport, Duration::from_secs(60))?;
    // SAFETY: the demo's own file, or one that its user names and does not change meanwhile.
    let map = unsafe { Mmap::map(&File::open(file)?) }?;
    let original = SafeTensors::deserialize(&map)?;
    let mut received = Vec::new();
    say(&Event::Ready)?;
    for line in io::stdin().lines() {
        let Event::Offer { envelope } = serde_json::from_str(&line?)? else {
            anyhow::bail!("only offers are expected");
        };
        let envelope: TensorEnvelope = serde_json::from_value(envelope)?;

        let started = Instant::now();
        connector.connect(envelope.metadata()).wait()?;
        let connected = Instant::now();
        let tensors = recv_new(&connector, &envelope).wait()?;
        let seconds = connected.elapsed().as_secs_f64();

        for (name, tensor) in &tensors {
            let expected = original.tensor(name)?;
            ensure!(tensor.dims() == expected.shape(), "{name} has another shape");
            ensure!(tensor.data() == expected.data(), "{name} arrived with other bytes");
        }
        let report = tensors.report();
        say(&Event::Received {
            bytes: report.bytes,
            descriptors: report.descriptors,
            seconds,
            connect_seconds: (connected - started).as_secs_f64(),
        })?;
        received.push(tensors);
    }
    say(&Event::Finished { resident_mb: resident_mb()? })
}
