//! 03: a Candle tensor from one process to another. The README shows `send` and `receive`.
//!
//! Without an argument the program starts both sides: `03_candle_tensor send | 03_candle_tensor receive`.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use connect_candle::{TensorExt, recv_new};
use connect_core::{Connector, TensorEnvelope};

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("send") => send(),
        Some("receive") => receive(),
        _ => both(),
    }
}

fn send() -> Result<()> {
    let tensor = Tensor::arange(0f32, 6., &Device::Cpu)?.reshape((2, 3))?;
    let connector = Connector::local()?;
    let offer = tensor.send_readable(&connector).wait()?;
    println!("{}", offer.envelope("x")?.to_json()); // to the other process, over any channel
    offer.wait_for_completion().wait()?;
    Ok(())
}

fn receive() -> Result<()> {
    let document = std::io::stdin().lines().next().context("a line on standard input")??;
    let connector = Connector::local()?;
    let envelope = TensorEnvelope::from_json(&document)?;
    let tensors = recv_new(&connector, &envelope).wait()?;
    assert_eq!(tensors["x"].to_vec2::<f32>()?, [[0., 1., 2.], [3., 4., 5.]]);
    Ok(())
}

fn both() -> Result<()> {
    let this = std::env::current_exe()?;
    let mut sender = Command::new(&this).arg("send").stdout(Stdio::piped()).spawn()?;
    let document = sender.stdout.take().context("the sender's output is a pipe")?;
    let receiver = Command::new(&this).arg("receive").stdin(document).status()?;
    ensure!(receiver.success() && sender.wait()?.success(), "a process failed");
    println!("the tensor arrived");
    Ok(())
}
