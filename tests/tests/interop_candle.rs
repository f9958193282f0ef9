//! Candle tensors against the torch tensors of the Python original, in every element type that both have.
#![cfg(feature = "nixl")]

use anyhow::{Context, Result, ensure};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use connect_candle::{TensorExt, dtype_of, recv_new, recv_writable};
use connect_core::transport::nixl::NixlConfig;
use connect_core::{Connector, RdmaMetadata, TensorEnvelope, TensorSpec};
use connect_tests::child::Shared;
use connect_tests::{pattern, require};
use safetensors::View;
use serde_json::{Value, json};

/// Candle's types that torch has too.
const DTYPES: [DType; 11] = [
    DType::U8,
    DType::U32,
    DType::I16,
    DType::I32,
    DType::I64,
    DType::BF16,
    DType::F16,
    DType::F32,
    DType::F64,
    DType::F8E4M3,
    DType::F8E8M0,
];

/// Not a multiple of anything.
const SHAPE: [usize; 3] = [3, 5, 7];

fn peers() -> Result<Option<(Connector, Shared)>> {
    if !require::nixl() {
        return Ok(None);
    }
    let Some(python) = Shared::python()? else { return Ok(None) };
    Ok(Some((Connector::builder().nixl(NixlConfig::default()).build()?, python)))
}

/// A tensor whose bytes are the pattern.
fn tensor(dtype: DType, seed: u64) -> Result<Tensor> {
    let elements: usize = SHAPE.iter().product();
    if dtype == DType::F8E8M0 {
        // Opaque to Candle, which makes no such tensor itself.
        let storage = Storage::Cpu(CpuStorage::F8E8M0(pattern::bytes(elements, seed)));
        return Ok(Tensor::from((storage, &SHAPE[..])));
    }
    let bytes = pattern::bytes(elements * dtype.size_in_bytes(), seed);
    Ok(Tensor::from_raw_buffer(&bytes, dtype, &SHAPE, &Device::Cpu)?)
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let (storage, _) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F8E8M0(bytes)) => bytes.clone(),
        _ => {
            drop(storage);
            tensor.data().into_owned()
        }
    }
}

fn torch(dtype: DType, seed: u64) -> Result<Value> {
    let name = dtype_of(dtype).and_then(|dtype| dtype.torch_name()).context("a type that torch has")?;
    Ok(json!([{"dtype": name, "shape": SHAPE, "seed": seed}]))
}

fn check(tensor: &Tensor, dtype: DType, seed: u64) -> Result<()> {
    ensure!(tensor.dtype() == dtype && tensor.dims() == SHAPE, "{tensor:?}");
    let found = bytes(tensor);
    ensure!(found == pattern::bytes(found.len(), seed) && !found.is_empty(), "{dtype:?} arrived differently");
    Ok(())
}

#[test]
fn candle_tensors_are_read_by_python() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    for (dtype, seed) in DTYPES.into_iter().zip(0..) {
        let tensor = tensor(dtype, seed)?;
        let offer = tensor.send_readable(&rust).wait()?;
        let metadata: Value = serde_json::from_str(&offer.metadata().to_json())?;
        let command = json!({"do": "read", "metadata": metadata, "tensors": torch(dtype, seed)?});
        let id = python.send(command)?;
        python.completed(id).with_context(|| format!("{dtype:?}"))?;
        offer.wait_for_completion().wait()?;
    }
    Ok(())
}

#[test]
fn candle_tensors_are_written_to_python() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    for (dtype, seed) in DTYPES.into_iter().zip(20..) {
        let id = python.send(json!({"do": "writable", "tensors": torch(dtype, seed)?}))?;
        let metadata = RdmaMetadata::from_json(&python.expect(id, "metadata")?["metadata"].to_string())?;
        tensor(dtype, seed)?.send_into(&rust, &metadata).wait()?;
        python.completed(id).with_context(|| format!("{dtype:?}"))?;
    }
    Ok(())
}

#[test]
fn torch_tensors_become_new_candle_tensors() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    for (dtype, seed) in DTYPES.into_iter().zip(40..) {
        let id = python.send(json!({"do": "readable", "tensors": torch(dtype, seed)?}))?;
        let metadata = RdmaMetadata::from_json(&python.expect(id, "metadata")?["metadata"].to_string())?;
        let shape = SHAPE.map(|dim| dim as u64).to_vec();
        let spec = TensorSpec::new("x", dtype_of(dtype).context("a wire name")?, shape, 0..1)?;
        let tensors = recv_new(&rust, &TensorEnvelope::new(metadata, vec![spec])?).wait()?;
        check(&tensors["x"], dtype, seed)?;
        python.completed(id)?;
    }
    Ok(())
}

#[test]
fn torch_tensors_replace_the_content_of_candle_tensors() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    for (dtype, seed) in DTYPES.into_iter().zip(60..) {
        let id = python.send(json!({"do": "readable", "tensors": torch(dtype, seed)?}))?;
        let metadata = RdmaMetadata::from_json(&python.expect(id, "metadata")?["metadata"].to_string())?;
        let target = tensor(dtype, seed + 1)?;
        let alias = target.clone();
        target.recv_into(&rust, &metadata).wait()?;
        check(&alias, dtype, seed)?;
        python.completed(id)?;
    }
    Ok(())
}

#[test]
fn python_writes_new_candle_tensors() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    for (dtype, seed) in DTYPES.into_iter().zip(80..) {
        let offer = recv_writable(&rust, dtype, &SHAPE[..]).wait()?;
        let metadata: Value = serde_json::from_str(&offer.metadata().to_json())?;
        let command = json!({"do": "write", "metadata": metadata, "tensors": torch(dtype, seed)?});
        let id = python.send(command)?;
        let (tensor, _) = offer.wait_for_completion().wait()?;
        check(&tensor, dtype, seed)?;
        python.completed(id)?;
    }
    Ok(())
}

/// A view travels as its pieces. Python wants as many descriptors as are offered, so the one tensor is
/// received as its rows.
#[test]
fn strided_candle_views_are_read_by_python_piece_by_piece() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    let whole = Tensor::from_vec(pattern::bytes(8 * 4096, 9), (8, 4096), &Device::Cpu)?;
    let view = whole.narrow(1, 0, 2000)?;
    let offer = view.send_readable(&rust).wait()?;
    assert_eq!(offer.metadata().descriptors().len(), 8);
    // Byte i of row r is byte 4096 * r + i of the pattern, so each row has a seed of its own.
    let rows: Vec<Value> = (0..8u64)
        .map(|row| json!({"dtype": "uint8", "shape": [2000], "seed": (31 * 4096 * row + 9) % 251}))
        .collect();
    let metadata: Value = serde_json::from_str(&offer.metadata().to_json())?;
    let id = python.send(json!({"do": "read", "metadata": metadata, "tensors": rows}))?;
    python.completed(id)?;
    offer.wait_for_completion().wait()?;
    Ok(())
}
