//! What is sent is what arrives: every element type, every kind of view, every way to send and receive.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod common;

use candle_core::{D, DType, Device, Tensor};
use common::{DTYPES, connector, counted, elements, of_type, storage};
use connect_candle::{TensorError, TensorExt, recv_new, recv_writable, send_tensors};
use connect_core::TensorEnvelope;

/// Views of one 4 x 6 x 8 tensor.
fn views() -> Vec<(&'static str, Tensor)> {
    let tensor = counted(&[4, 6, 8]);
    let row = counted(&[1, 8]);
    vec![
        ("whole", tensor.clone()),
        ("outer rows", tensor.narrow(0, 1, 2).unwrap()),
        ("middle rows", tensor.narrow(1, 2, 3).unwrap()),
        ("columns", tensor.narrow(2, 3, 4).unwrap()),
        ("one index", tensor.get(2).unwrap()),
        ("transposed", tensor.transpose(0, 1).unwrap()),
        ("inner transposed", tensor.t().unwrap()),
        ("permuted and cut", tensor.permute((2, 0, 1)).unwrap().narrow(0, 1, 5).unwrap()),
        ("broadcast", row.broadcast_as((3, 8)).unwrap()),
        ("broadcast inside", counted(&[4, 1]).broadcast_as((4, 5)).unwrap()),
        ("scalar", tensor.get(3).unwrap().get(5).unwrap().get(7).unwrap()),
        ("reshaped", tensor.reshape((24, 8)).unwrap().unsqueeze(D::Minus1).unwrap()),
    ]
}

#[test]
fn every_element_type_arrives_by_read_by_write_and_into_an_existing_tensor() {
    let connector = connector();
    for dtype in DTYPES {
        let sent = of_type(dtype, &[3, 5]);
        let (_, bytes) = storage(&sent);

        let offer = sent.send_readable(&connector).wait().unwrap();
        let received = recv_new(&connector, &offer.envelope("x").unwrap()).wait().unwrap();
        assert_eq!((received["x"].dtype(), received["x"].dims()), (dtype, &[3, 5][..]));
        assert_eq!(storage(&received["x"]).1, bytes, "read {dtype:?}");
        assert_eq!(offer.wait_for_completion().wait().unwrap().bytes, bytes.len() as u64);

        let offer = recv_writable(&connector, dtype, (3, 5)).wait().unwrap();
        let report = sent.send_into(&connector, offer.metadata()).wait().unwrap();
        let (written, _) = offer.wait_for_completion().wait().unwrap();
        assert_eq!((written.dtype(), report.bytes), (dtype, bytes.len() as u64));
        assert_eq!(storage(&written).1, bytes, "write {dtype:?}");

        let target = of_type(dtype, &[5, 3]);
        let offer = sent.send_readable(&connector).wait().unwrap();
        target.recv_into(&connector, offer.metadata()).wait().unwrap();
        assert_eq!((storage(&target).1, target.dims()), (bytes, &[5, 3][..]), "into {dtype:?}");
    }
}

#[test]
fn every_view_arrives_as_the_tensor_it_shows() {
    let connector = connector();
    for (what, view) in views() {
        let offer = view.send_readable(&connector).wait().unwrap();
        let received = recv_new(&connector, &offer.envelope(what).unwrap()).wait().unwrap();
        assert_eq!(received[what].dims(), view.dims(), "{what}");
        assert_eq!(elements(&received[what]), elements(&view), "{what}");
        assert!(received[what].is_contiguous());
    }
}

#[test]
fn every_view_that_holds_no_element_twice_can_be_received_into() {
    let connector = connector();
    for (what, view) in views() {
        let sent = (view.contiguous().unwrap() * 2.).unwrap();
        let offer = sent.send_readable(&connector).wait().unwrap();
        let result = view.recv_into(&connector, offer.metadata()).wait();
        if what.starts_with("broadcast") {
            assert!(result.unwrap_err().to_string().contains("share storage"), "{what}");
            offer.cancel().wait().unwrap_err();
        } else {
            assert_eq!(result.unwrap().bytes, 4 * view.elem_count() as u64, "{what}");
            assert_eq!(elements(&view), elements(&sent), "{what}");
        }
    }
}

#[test]
fn a_part_is_received_into_without_touching_the_rest() {
    let connector = connector();
    let tensor = counted(&[4, 4]);
    let offer =
        Tensor::zeros((4, 2), DType::F32, &Device::Cpu).unwrap().send_readable(&connector).wait().unwrap();
    tensor.narrow(1, 1, 2).unwrap().recv_into(&connector, offer.metadata()).wait().unwrap();
    let expected = [0., 0., 0., 3., 4., 0., 0., 7., 8., 0., 0., 11., 12., 0., 0., 15.];
    assert_eq!(elements(&tensor), expected);
}

#[test]
fn named_tensors_arrive_as_one_operation_with_views_shared_storage_and_empty_ones() {
    let connector = connector();
    let pool = counted(&[8, 16]);
    let empty = Tensor::zeros((0, 7), DType::BF16, &Device::Cpu).unwrap();
    let (left, right) = (pool.narrow(1, 0, 8).unwrap(), pool.narrow(1, 8, 8).unwrap());
    let half = pool.to_dtype(DType::F16).unwrap();
    let sent = [("left", &left), ("empty", &empty), ("right", &right), ("half", &half)];
    let offer = send_tensors(&connector, sent).wait().unwrap();
    let json = offer.envelope().to_json();

    let received = recv_new(&connector, &TensorEnvelope::from_json(&json).unwrap()).wait().unwrap();
    assert_eq!(received.report().bytes, 2 * 8 * 8 * 4 + 8 * 16 * 2);
    assert_eq!(
        received.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["left", "empty", "right", "half"]
    );
    for (name, tensor) in sent {
        assert_eq!((received[name].dims(), received[name].dtype()), (tensor.dims(), tensor.dtype()));
        let floats = |tensor: &Tensor| elements(&tensor.to_dtype(DType::F32).unwrap());
        assert_eq!(floats(&received[name]), floats(tensor), "{name}");
    }
    offer.wait_for_completion().wait().unwrap();
}

#[test]
fn every_operation_can_be_awaited_on_any_runtime_and_moved_between_threads() {
    async fn exchange() -> Result<f32, TensorError> {
        let connector = connector();
        let sent = counted(&[4, 4]);
        let offer = sent.send_readable(&connector).await?;
        let received = recv_new(&connector, &offer.envelope("x")?).await?;
        let first = offer.await?.bytes;
        sent.recv_into(&connector, received["x"].send_readable(&connector).await?.metadata()).await?;
        let writable = recv_writable(&connector, DType::F32, (4, 4)).await?;
        sent.send_into(&connector, writable.metadata()).await?;
        let (tensor, _) = writable.await?;
        Ok(first as f32 + elements(&tensor)[15])
    }
    fn is_send<T: Send>(future: T) -> T {
        future
    }
    assert_eq!(futures_executor::block_on(is_send(exchange())).unwrap(), 79.);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    assert_eq!(runtime.block_on(runtime.spawn(exchange())).unwrap().unwrap(), 79.);
}

#[test]
fn unlocked_receives_fill_blocks_while_other_blocks_are_offered() {
    let connector = connector();
    let pool = counted(&[4, 8]);
    let (served, free) = (pool.narrow(0, 0, 1).unwrap(), pool.narrow(0, 2, 2).unwrap());
    let serving = served.send_readable(&connector).wait().unwrap();
    let offer =
        Tensor::ones((2, 8), DType::F32, &Device::Cpu).unwrap().send_readable(&connector).wait().unwrap();
    let (before, _) = storage(&pool);
    // SAFETY: nobody but this thread uses the pool, and it does not until the lease is back.
    let received = unsafe { free.recv_into_unlocked(&connector, offer.metadata(), "blocks 2 and 3") };
    let (lease, report) = received.wait().unwrap();
    assert_eq!((lease, report.bytes), ("blocks 2 and 3", 64));
    assert_eq!((elements(&free), storage(&pool).0), (vec![1.; 16], before));
    assert_eq!(elements(&pool)[..16], elements(&counted(&[2, 8]))[..]);
    serving.cancel().wait().unwrap_err();
}
