//! Dynamo's own workers: the transfer code of the wheel ai-dynamo, unmodified, as the peer (`python/dynamo_worker.py`
//! says what is around it).
#![cfg(feature = "nixl")]

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use connect_candle::{TensorExt, dtype_of, recv_new};
use connect_core::transport::nixl::NixlConfig;
use connect_core::wire::{EMBEDDINGS_TENSOR_NAME, MM_KWARGS_ITEM_NAME, MmKwargsTransfer};
use connect_core::{
    Cancellation, Connector, Error, MediaDescriptor, ReadableOperation, TensorEnvelope, TensorSpec,
};
use connect_tests::child::Worker;
use connect_tests::{pattern, require};
use safetensors::View;
use serde_json::{Value, json};

/// What embeddings come in, and one that is not of 16 bits.
const DTYPES: [DType; 4] = [DType::BF16, DType::F16, DType::F32, DType::U8];
const SHAPE: [usize; 3] = [3, 5, 7];
/// Serialised items: a small one, one that fits the receiver's pool, and one that does not.
const SIZES: [usize; 3] = [7, 100_000, 3 << 20];

/// One test at a time, so that one Python at a time spins.
static TURN: Mutex<()> = Mutex::new(());

fn peers(test: impl FnOnce(&Connector, &mut Worker) -> Result<()>) -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if !require::nixl() {
        return Ok(());
    }
    let Some(interpreter) = require::python() else { return Ok(()) };
    let mut command = std::process::Command::new(interpreter);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/dynamo_worker.py"));
    let mut worker = Worker::ready(command)?;
    test(&Connector::builder().nixl(NixlConfig::default()).build()?, &mut worker)
}

fn spec(what: &str, dtype: DType, seed: u64) -> Result<Value> {
    let name = dtype_of(dtype).and_then(|dtype| dtype.torch_name());
    Ok(json!({"do": what, "dtype": name, "shape": SHAPE, "seed": seed}))
}

fn tensor(dtype: DType, seed: u64) -> Result<Tensor> {
    let bytes = pattern::bytes(SHAPE.iter().product::<usize>() * dtype.size_in_bytes(), seed);
    Ok(Tensor::from_raw_buffer(&bytes, dtype, &SHAPE, &Device::Cpu)?)
}

/// Waits for the worker's end of a transfer, which it says it has seen whole.
fn verified(worker: &mut Worker, id: u64) -> Result<Value> {
    let answer = worker.expect(id, "complete")?;
    ensure!(answer["verified"] == true, "other bytes arrived: {answer}");
    Ok(answer)
}

#[test]
fn embeddings_of_dynamos_sender_become_candle_tensors() -> Result<()> {
    peers(|rust, worker| {
        for (dtype, seed) in DTYPES.into_iter().zip(0..) {
            let id = worker.send(spec("send_embeddings", dtype, seed)?)?;
            let request = worker.expect(id, "request")?["request"].to_string();
            let tensors = recv_new(rust, &TensorEnvelope::from_transfer_request_json(&request)?).wait()?;
            let received = &tensors[EMBEDDINGS_TENSOR_NAME];
            ensure!(received.dtype() == dtype && received.dims() == SHAPE, "{received:?}");
            assert_eq!(received.data(), tensor(dtype, seed)?.data());
            worker.expect(id, "complete")?;
        }
        Ok(())
    })
}

#[test]
fn candle_tensors_become_embeddings_of_dynamos_receiver() -> Result<()> {
    peers(|rust, worker| {
        for (dtype, seed) in DTYPES.into_iter().zip(20..) {
            let offer = tensor(dtype, seed)?.send_readable(rust).wait()?;
            let request = offer.envelope(EMBEDDINGS_TENSOR_NAME)?.to_transfer_request_json()?;
            let mut command = spec("receive_embeddings", dtype, seed)?;
            command["request"] = serde_json::from_str(&request)?;
            let id = worker.send(command)?;
            offer.wait_for_completion().wait()?;
            verified(worker, id)?;
        }
        Ok(())
    })
}

/// An item as Dynamo frames it: two buffers, each with its length.
fn item(size: usize, seed: u64) -> Vec<u8> {
    let mut framed = 2u32.to_le_bytes().to_vec();
    for buffer in [pattern::bytes(size, seed), b"and an aux buffer".to_vec()] {
        framed.extend((buffer.len() as u64).to_le_bytes());
        framed.extend(buffer);
    }
    framed
}

#[test]
fn inputs_that_dynamos_front_end_has_processed_are_read() -> Result<()> {
    peers(|rust, worker| {
        let id = worker.send(json!({"do": "send_mm_kwargs", "sizes": SIZES, "seed": 40}))?;
        let extra_args = worker.expect(id, "extra_args")?["extra_args"]["mm_kwargs_nixl"].to_string();
        let transfer = MmKwargsTransfer::from_json(&extra_args)?;
        assert_eq!(transfer.modality, "image");
        assert_eq!(transfer.mm_hashes, ["hash 0", "hash 1", "hash 2", "hash of another"]);
        assert_eq!(transfer.items.len(), SIZES.len());
        // All reads are under way before the first is waited for.
        let reads: Vec<_> = transfer.items.iter().map(|item| recv_new(rust, item)).collect();
        for ((read, size), seed) in reads.into_iter().zip(SIZES).zip(40..) {
            let received = read.wait()?[MM_KWARGS_ITEM_NAME].to_vec1::<u8>()?;
            ensure!(received == item(size, seed), "other bytes arrived");
        }
        worker.expect(id, "complete")?;
        Ok(())
    })
}

/// An offer and the envelope of its one tensor.
fn offer(
    rust: &Connector,
    name: &str,
    shape: &[u64],
    bytes: Vec<u8>,
) -> Result<(ReadableOperation, TensorEnvelope)> {
    let offer = rust.create_readable(bytes).wait()?;
    let tensor = TensorSpec::new(name, connect_core::DType::U8, shape, 0..1)?;
    let envelope = TensorEnvelope::new(offer.metadata().clone(), vec![tensor])?;
    Ok((offer, envelope))
}

#[test]
fn dynamos_workers_read_processed_inputs_that_rust_offers() -> Result<()> {
    peers(|rust, worker| {
        let (mut offers, mut items) = (Vec::new(), Vec::new());
        for (size, seed) in SIZES.into_iter().zip(60..) {
            let bytes = item(size, seed);
            let (offer, envelope) = offer(rust, MM_KWARGS_ITEM_NAME, &[bytes.len() as u64], bytes)?;
            offers.push(offer);
            items.push(envelope);
        }
        let mm_hashes = vec!["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let transfer = MmKwargsTransfer { modality: "video".to_owned(), items, mm_hashes }.to_json()?;
        let transfer: Value = serde_json::from_str(&transfer)?;
        let command = json!({"do": "receive_mm_kwargs", "transfer": transfer, "sizes": SIZES, "seed": 60});
        let id = worker.send(command)?;
        for offer in offers {
            offer.wait_for_completion().wait()?;
        }
        let answer = verified(worker, id)?;
        assert_eq!((&answer["modality"], &answer["hashes"]), (&json!("video"), &json!(["a", "b", "c"])));
        Ok(())
    })
}

/// The other direction, the front-end's own media, is `media_of_dynamo_s_front_end_is_read` in interop_python.rs.
#[test]
fn dynamos_workers_read_media_that_rust_offers() -> Result<()> {
    peers(|rust, worker| {
        let frames = json!({"source_fps": 29.97, "frames": [0, 30]});
        for (shape, seed) in [([2, 2, 3], 80), ([480, 640, 3], 81)] {
            let bytes = pattern::bytes(shape.iter().product::<u64>() as usize, seed);
            let (offer, envelope) = offer(rust, "frame", &shape, bytes)?;
            let media = MediaDescriptor::of(&envelope)?
                .with_metadata(frames.clone())?
                .with_content_hash("0123456789abcdef");
            let descriptor: Value = serde_json::from_str(&media.to_json())?;
            let command = json!({
                "do": "read_media", "descriptor": descriptor, "dtype": "uint8", "shape": shape, "seed": seed
            });
            let id = worker.send(command)?;
            let answer = verified(worker, id)?;
            assert_eq!((&answer["metadata"], &answer["hash"]), (&frames, &json!("0123456789abcdef")));
            // The worker makes up a key of its own, so the offer has to be ended here.
            let ended = offer.cancel().wait();
            assert!(
                matches!(
                    ended,
                    Err(Error::Cancelled { outcome: Cancellation::Drained | Cancellation::Parked, .. })
                ),
                "{ended:?}"
            );
        }
        Ok(())
    })
}
