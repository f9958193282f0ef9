//! Candle tensors by key, between two processes: this test program starts itself again as the other side.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use connect_candle::{recv_new, send_tensors};
use connect_core::{Connector, Rendezvous};

const FOLDER: &str = "CONNECT_RENDEZVOUS_FOLDER";

/// The other process: gets, doubles, puts back. It does nothing unless it was started by the test below.
#[test]
fn other_process() -> Result<()> {
    let Some(folder) = env::var_os(FOLDER) else { return Ok(()) };
    let (rendezvous, connector) = (Rendezvous::folder(folder)?, Connector::local()?);
    let got = rendezvous.get(&connector, "there", recv_new).wait()?;
    let doubled = [(&got["a"] * 2.)?, (&got["b"] * 2.)?];
    let tensors = ["a", "b"].into_iter().zip(&doubled);
    let put = rendezvous.put("back", [send_tensors(&connector, tensors)]).wait()?;
    for report in put.wait_for_completion().wait() {
        report?;
    }
    Ok(())
}

#[test]
fn tensors_go_to_another_process_by_key_and_come_back_doubled() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut other = Command::new(env::current_exe()?)
        .args(["--exact", "other_process"])
        .env(FOLDER, folder.path())
        .spawn()?;
    let (rendezvous, connector) = (Rendezvous::folder(folder.path())?, Connector::local()?);
    let (a, b) = (Tensor::arange(0f32, 8., &Device::Cpu)?, Tensor::arange(8f32, 16., &Device::Cpu)?);
    let put = rendezvous.put("there", [send_tensors(&connector, [("a", &a), ("b", &b)])]).wait()?;
    let got = rendezvous.get(&connector, "back", recv_new).wait()?;
    for (name, sent) in [("a", a), ("b", b)] {
        assert_eq!(got[name].to_vec1::<f32>()?, (sent * 2.)?.to_vec1::<f32>()?);
    }
    let reports = put.wait_for_completion().wait();
    ensure!(reports.into_iter().next().context("one offer")??.bytes == 64, "another length");
    ensure!(other.wait()?.success(), "the other process failed");
    Ok(())
}
