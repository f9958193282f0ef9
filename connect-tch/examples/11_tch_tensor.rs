//! 11: a libtorch tensor from one process to another: example 03 with connect-tch.
//!
//! Without an argument the program starts both sides: `11_tch_tensor send | 11_tch_tensor receive`.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use connect_core::{Connector, TensorEnvelope};
use connect_tch::{TensorExt, recv_new};
use tch::{Device, Kind, Tensor};

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("send") => send(),
        Some("receive") => receive(),
        _ => both(),
    }
}

fn send() -> Result<()> {
    let tensor = Tensor::arange(6, (Kind::Float, Device::Cpu)).reshape([2, 3]);
    let connector = Connector::local()?;
    // SAFETY: nobody writes to the tensor or resizes it before the offer has ended.
    let offer = unsafe { tensor.send_readable(&connector) }.wait()?;
    println!("{}", offer.envelope("x")?.to_json()); // to the other process, over any channel
    offer.wait_for_completion().wait()?;
    Ok(())
}

fn receive() -> Result<()> {
    let document = std::io::stdin().lines().next().context("a line on standard input")??;
    let connector = Connector::local()?;
    let envelope = TensorEnvelope::from_json(&document)?;
    let tensors = recv_new(&connector, &envelope).wait()?;
    assert_eq!(Vec::<Vec<f32>>::try_from(&tensors["x"])?, [[0., 1., 2.], [3., 4., 5.]]);
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
