//! 04: a small model's weights, by name, as one operation.
//!
//! The envelope tells the receiver each tensor's name, element type and shape, so it needs no checkpoint
//! format in between.

use std::collections::HashMap;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use connect_candle::{recv_new, send_tensors};
use connect_core::{Connector, TensorEnvelope};

/// Two layers and a tied embedding, which is a transposed view of another weight: nothing is copied for it.
fn weights() -> candle_core::Result<Vec<(&'static str, Tensor)>> {
    let cpu = Device::Cpu;
    let embedding = Tensor::rand(-1f32, 1., (16, 8), &cpu)?;
    Ok(vec![
        ("embed.weight", embedding.clone()),
        ("up.weight", Tensor::rand(-1f32, 1., (8, 32), &cpu)?),
        ("up.bias", Tensor::zeros(32, DType::F32, &cpu)?),
        ("down.weight", Tensor::rand(-1f32, 1., (32, 8), &cpu)?),
        ("unembed.weight", embedding.t()?),
        ("steps", Tensor::new(&[1000i64], &cpu)?),
    ])
}

fn forward(weights: &HashMap<String, Tensor>, tokens: &Tensor) -> candle_core::Result<Tensor> {
    let x = weights["embed.weight"].index_select(tokens, 0)?;
    let up = x.matmul(&weights["up.weight"])?.broadcast_add(&weights["up.bias"])?;
    (x + up.relu()?.matmul(&weights["down.weight"])?)?.matmul(&weights["unembed.weight"].contiguous()?)
}

fn main() -> Result<()> {
    let (trainer, server) = (Connector::local()?, Connector::local()?);

    let ours = weights()?;
    let offer = send_tensors(&trainer, ours.iter().map(|(name, tensor)| (*name, tensor))).wait()?;
    let document = offer.envelope().to_json();

    let envelope = TensorEnvelope::from_json(&document)?;
    for spec in envelope.tensors() {
        println!("{:<16} {:<8} {:?}", spec.name, spec.dtype.to_string(), spec.shape);
    }
    let received = recv_new(&server, &envelope).wait()?;
    println!("{} bytes in {:?}", received.report().bytes, received.report().total);
    let theirs: HashMap<String, Tensor> = received.into(); // what `VarBuilder::from_tensors` takes

    let ours: HashMap<String, Tensor> = ours.into_iter().map(|(name, t)| (name.to_owned(), t)).collect();
    let tokens = Tensor::new(&[3u32, 1, 4], &Device::Cpu)?;
    let difference = (forward(&ours, &tokens)? - forward(&theirs, &tokens)?)?.abs()?.sum_all()?;
    assert_eq!(difference.to_scalar::<f32>()?, 0.);
    offer.wait_for_completion().wait()?;
    Ok(())
}
