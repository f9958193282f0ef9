//! 12: a checkpoint from file to file, without loading it: verified, with a progress bar, and resumed after a failure.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use connect_core::checkpoint::{Checkpoint, Download, Manifest};
use connect_core::{Connector, TensorEnvelope};
use indicatif::ProgressBar;

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (path, copy) = (folder.path().join("model.safetensors"), folder.path().join("copy.safetensors"));
    let layer = |index| Ok((format!("layers.{index}"), Tensor::ones((64, 64), DType::F32, &Device::Cpu)?));
    let tensors: BTreeMap<String, Tensor> = (0..20).map(layer).collect::<Result<_>>()?;
    safetensors::serialize_to_file(&tensors, None, &path)?;

    // The server maps the file and registers it once. `select` would serve a part of it.
    let (server, client) = (Connector::local()?, Connector::local()?); // usually in two processes
    let served = Checkpoint::open(&path)?.serve(&server).wait()?;
    let manifest = served.checkpoint().manifest_with_digests()?.to_json();

    // The client lays the new file out, and asks for what is missing, some at a time.
    let manifest = Manifest::from_json(&manifest)?;
    let bar = ProgressBar::new(manifest.total_bytes());
    for (attempt, most) in [(1, 5), (2, usize::MAX)] {
        let download = Download::begin(&client, &copy, &manifest).wait()?;
        println!("attempt {attempt}: {} tensors are missing", download.missing().len());
        for names in download.missing().chunks(3).take(most) {
            let document = served.offer(names).wait().map(|offer| (offer.envelope().to_json(), offer))?;
            download.receive(&TensorEnvelope::from_json(&document.0)?).wait()?;
            bar.set_position(download.progress().bytes);
        }
        if attempt == 1 {
            continue; // the connection broke, say: what was received stays on the disk
        }
        download.finish()?; // only now is there a file of that name
    }
    bar.finish();

    let copied = Checkpoint::open(&copy)?;
    for tensor in served.checkpoint().tensors() {
        assert_eq!(copied.read(&tensor.name)?, served.checkpoint().read(&tensor.name)?);
    }
    println!("{} tensors arrived", copied.tensors().count());
    Ok(())
}
