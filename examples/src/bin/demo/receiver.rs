//! The second process: reads what is offered into new Candle tensors, and compares them with the file.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connect_candle::recv_new;
use connect_core::TensorEnvelope;
use connect_core::checkpoint::Checkpoint;
use connect_examples::TransportChoice;
use safetensors::View;

use crate::lines::{Event, resident_mb, say};

pub(crate) fn run(file: &Path, transport: TransportChoice) -> Result<()> {
    let connector = connect_examples::connector(transport, Duration::from_secs(60))?;
    let original = Checkpoint::open(file)?;
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
            // Dtype and shape came in the envelope, which is the sender's word; the file has the last one.
            let expected = original.tensors().find(|expected| expected.name == *name);
            let expected = expected.with_context(|| format!("the file has no {name}"))?;
            let dims = tensor.dims().iter().map(|&dim| dim as u64);
            ensure!(dims.eq(expected.shape.iter().copied()), "{name} has another shape");
            ensure!(tensor.data()[..] == original.read(name)?, "{name} arrived with other bytes");
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
