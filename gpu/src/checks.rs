//! The checks, each a sentence.

use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use connect_candle::{TensorExt, cuda, recv_new, recv_new_on, recv_writable_on, send_tensors};
use connect_core::{Connector, TensorEnvelope};
use serde_json::json;

use crate::memory;
use crate::peer::{Peer, connector};
use crate::results::Results;

const SIZES: [usize; 4] = [4 << 10, 1 << 20, 64 << 20, 512 << 20];
const ROUNDS: u32 = 5;

pub(crate) fn run(gpu: &Device, python: Option<&str>, results: &mut Results) {
    let cpu = &Device::Cpu;
    results.check("a plain copy on the device, to compare with", || device_copy(gpu));
    results.check("plain memory is freed without an error", || frees(gpu));
    results.check("memory of the pool is recognised and refused", || pooled(gpu));
    for (name, from, to) in [
        ("GPU to GPU", gpu, gpu),
        ("host to GPU", cpu, gpu),
        ("GPU to host", gpu, cpu),
        ("host to host", cpu, cpu),
    ] {
        results.check(&format!("{name}, within one process"), || within(from, to));
        results.check(&format!("{name}, between two processes"), || between(from, to));
    }
    results.check("a peer writes into new memory of the GPU", || written(gpu));
    results.check("1,024 tensors of 64 KiB of the GPU and the host in one operation", || many(gpu));
    results.check("P3: what another thread queued is in what is read, 100 times", || produced(gpu));
    results.check("P3: what was received is in what another thread queues then, 100 times", || consumed(gpu));
    results.check("staged through the host, over `local`", || staged(gpu));
    match Device::new_cuda(1) {
        Ok(second) => {
            results.check("from one GPU to another, and both in one operation", || two(gpu, &second))
        }
        Err(_) => results.not_run("from one GPU to another, and both in one operation", "one GPU here"),
    }
    match python {
        Some(python) => {
            results.check("read by torch on the GPU through the Python original", || torch(gpu, python))
        }
        None => results.not_run(
            "read by torch on the GPU through the Python original",
            "no --python with torch and the original was named",
        ),
    }
}

fn rate(bytes: usize, seconds: f64) -> String {
    format!("{:.2} GB/s", bytes as f64 / seconds / 1e9)
}

fn wait(device: &Device) -> Result<()> {
    Ok(device.synchronize()?)
}

fn device_copy(gpu: &Device) -> Result<String> {
    let bytes = 512 << 20;
    let tensor = memory::tensor(1, bytes, gpu)?;
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        wait(gpu)?;
        let began = Instant::now();
        let copy = tensor.copy()?;
        wait(gpu)?;
        best = best.min(began.elapsed().as_secs_f64());
        drop(copy);
    }
    Ok(format!("512 MiB: {}", rate(bytes, best)))
}

/// cudarc frees with `cuMemFreeAsync` what was allocated with `cuMemAlloc`, and keeps errors for the next call.
fn frees(gpu: &Device) -> Result<String> {
    for _ in 0..8 {
        drop(cuda::zeros(1 << 20, DType::F32, gpu)?);
        wait(gpu)?;
    }
    let Device::Cuda(cuda) = gpu else { bail!("no CUDA device") };
    cuda.cuda_stream().context().check_err().context("an error was kept")?;
    Ok("8 times 4 MiB".to_owned())
}

fn pooled(gpu: &Device) -> Result<String> {
    let pooled = Tensor::zeros(1024, DType::F32, gpu)?;
    if cuda::is_plain(&pooled)? {
        return Ok("this device has no pool: Candle's own tensors are plain".to_owned());
    }
    match pooled.send_readable(&connector()?).wait() {
        Err(error) if error.to_string().contains("cuda::plain") => Ok("with the remedies".to_owned()),
        Err(error) => bail!("refused for another reason: {error}"),
        Ok(_) => bail!("it was taken"),
    }
}

fn within(from: &Device, to: &Device) -> Result<String> {
    let (sender, receiver) = (connector()?, connector()?);
    let mut seen = Vec::new();
    for (seed, bytes) in SIZES.into_iter().enumerate() {
        let tensor = memory::tensor(seed as u32, bytes, from)?;
        let mut best = f64::MAX;
        for _ in 0..ROUNDS {
            let offer = tensor.send_readable(&sender).wait()?;
            let received = recv_new_on(&receiver, &offer.envelope("x")?, to).wait()?;
            offer.wait_for_completion().wait()?;
            best = best.min(received.report().transfer.as_secs_f64());
            memory::check(&received["x"], seed as u32)?;
        }
        seen.push(format!("{} KiB: {}", bytes >> 10, rate(bytes, best)));
    }
    Ok(seen.join(", "))
}

fn between(from: &Device, to: &Device) -> Result<String> {
    let mut peer = Peer::start(to.is_cuda().then_some(0))?;
    let sender = connector()?;
    let mut seen = Vec::new();
    for (seed, bytes) in SIZES.into_iter().enumerate() {
        let tensor = memory::tensor(seed as u32, bytes, from)?;
        let mut best = f64::MAX;
        for _ in 0..ROUNDS {
            let offer = tensor.send_readable(&sender).wait()?;
            peer.tell(&json!({ "do": "receive", "envelope": offer.envelope("x")?.to_json(), "seed": seed }))?;
            best = best.min(peer.answer()?["seconds"].as_f64().context("seconds")?);
            offer.wait_for_completion().wait()?;
        }
        seen.push(format!("{} KiB: {}", bytes >> 10, rate(bytes, best)));
    }
    // And back: the other process offers.
    peer.tell(&json!({ "do": "offer", "bytes": 1 << 20, "seed": 9 }))?;
    let envelope = peer.answer()?["envelope"].as_str().context("an envelope")?.to_owned();
    let received = recv_new_on(&sender, &TensorEnvelope::from_json(&envelope)?, from).wait()?;
    memory::check(&received["x"], 9)?;
    Ok(seen.join(", "))
}

fn written(gpu: &Device) -> Result<String> {
    let (sender, receiver) = (connector()?, connector()?);
    let offer = recv_writable_on(&receiver, DType::U32, 1 << 20, gpu).wait()?;
    memory::tensor(5, 4 << 20, gpu)?.send_into(&sender, offer.metadata()).wait()?;
    let (tensor, report) = offer.wait_for_completion().wait()?;
    memory::check(&tensor, 5)?;
    Ok(format!("{} bytes", report.bytes))
}

fn many(gpu: &Device) -> Result<String> {
    let (sender, receiver) = (connector()?, connector()?);
    let one = |index: u32| {
        let device = if index.is_multiple_of(2) { gpu } else { &Device::Cpu };
        Ok((index.to_string(), memory::tensor(index, 64 << 10, device)?))
    };
    let tensors: Vec<(String, Tensor)> = (0..1024).map(one).collect::<Result<_>>()?;
    let offer = send_tensors(&sender, tensors.iter().map(|(name, tensor)| (name, tensor))).wait()?;
    let received = recv_new_on(&receiver, offer.envelope(), gpu).wait()?;
    for index in 0..1024 {
        memory::check(&received[index.to_string().as_str()], index)?;
    }
    Ok(rate(1024 * (64 << 10), received.report().transfer.as_secs_f64()))
}

/// Work that takes the device a while, and its result in plain memory; nothing is waited for.
fn queue_work(gpu: &Device, seed: u32) -> Result<Tensor> {
    let host = Tensor::from_vec(memory::numbers(seed, 1 << 20), 1 << 20, &Device::Cpu)?;
    let mut copy = host.to_device(gpu)?;
    for _ in 0..50 {
        copy = copy.copy()?;
    }
    Ok(cuda::plain(&copy)?)
}

fn produced(gpu: &Device) -> Result<String> {
    let (sender, receiver) = (connector()?, connector()?);
    for seed in 0..100 {
        let there = gpu.clone();
        let produced = thread::spawn(move || queue_work(&there, seed)).join();
        let tensor = produced.map_err(|_| anyhow::anyhow!("the producing thread panicked"))??;
        let offer = tensor.send_readable(&sender).wait()?;
        memory::check(&recv_new(&receiver, &offer.envelope("x")?).wait()?["x"], seed)?;
        offer.wait_for_completion().wait()?;
    }
    Ok("4 MiB behind 50 copies each".to_owned())
}

fn consumed(gpu: &Device) -> Result<String> {
    let (sender, receiver) = (connector()?, connector()?);
    for seed in 0..100 {
        let tensor = memory::tensor(seed, 4 << 20, &Device::Cpu)?;
        let offer = tensor.send_readable(&sender).wait()?;
        let received = recv_new_on(&receiver, &offer.envelope("x")?, gpu).wait()?["x"].clone();
        let looked = thread::spawn(move || memory::check(&received.copy()?, seed)).join();
        looked.map_err(|_| anyhow::anyhow!("the looking thread panicked"))??;
        offer.wait_for_completion().wait()?;
    }
    Ok("4 MiB each".to_owned())
}

fn staged(gpu: &Device) -> Result<String> {
    let (sender, receiver) = (Connector::local()?, Connector::local()?);
    let bytes = 64 << 20;
    let tensor = memory::tensor(3, bytes, gpu)?;
    let began = Instant::now();
    let offer = cuda::send_staged(&tensor, &sender).wait()?;
    let received = cuda::recv_new_staged(&receiver, &offer.envelope("x")?, gpu).wait()?;
    let seconds = began.elapsed().as_secs_f64();
    memory::check(&received["x"], 3)?;
    Ok(format!("64 MiB, both copies included: {}", rate(bytes, seconds)))
}

fn two(first: &Device, second: &Device) -> Result<String> {
    let seen = within(first, second)?;
    let (sender, receiver) = (connector()?, connector()?);
    let (a, b) = (memory::tensor(1, 1 << 20, first)?, memory::tensor(2, 1 << 20, second)?);
    let offer = send_tensors(&sender, [("a", &a), ("b", &b)]).wait()?;
    let received = recv_new(&receiver, offer.envelope()).wait()?;
    memory::check(&received["a"], 1)?;
    memory::check(&received["b"], 2)?;
    Ok(seen)
}

/// The original reads a tensor of this process into one of torch on the GPU, and answers with the sum of its bytes.
const PYTHON: &str = r#"
import asyncio, json, sys, torch
from dynamo.nixl_connect import Connector, Descriptor, RdmaMetadata
async def main():
    connector = Connector()
    for line in sys.stdin:
        document = json.loads(line)["metadata"]
        target = torch.zeros(1 << 20, dtype=torch.int32, device="cuda:0")
        torch.cuda.synchronize()
        operation = await connector.begin_read(RdmaMetadata.model_validate_json(document), Descriptor(target))
        await operation.wait_for_completion()
        torch.cuda.synchronize()
        print(json.dumps({"sum": int((target.to(torch.int64) & 0xFFFFFFFF).sum().item())}), flush=True)
asyncio.run(main())
"#;

fn torch(gpu: &Device, python: &str) -> Result<String> {
    let mut peer = Peer::spawn(std::process::Command::new(python).args(["-c", PYTHON]))?;
    let offer = memory::tensor(4, 4 << 20, gpu)?.send_readable(&connector()?).wait()?;
    peer.tell(&json!({ "metadata": offer.metadata().to_json() }))?;
    let sum = peer.answer()?["sum"].as_u64().context("a sum")?;
    let expected: u64 = memory::numbers(4, 1 << 20).into_iter().map(u64::from).sum();
    ensure!(sum == expected, "torch sees other bytes");
    offer.wait_for_completion().wait()?;
    Ok("4 MiB into a tensor of torch on the GPU".to_owned())
}
