//! Who waits for whom, who is refused, and what an ended operation leaves behind.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod common;

use std::sync::mpsc;
use std::time::Duration;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, Tensor};
use common::{A_MOMENT, connector, counted, elements, eventually};
use connect_candle::{TensorError, TensorExt, recv_new, send_tensors};
use connect_core::Error;

/// Replaces the buffer behind every clone of a tensor, as safe code may.
struct Replace;

impl InplaceOp1 for Replace {
    fn name(&self) -> &'static str {
        "replace"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        *storage = CpuStorage::F32(vec![9.; layout.shape().elem_count()]);
        Ok(())
    }
}

#[test]
fn replacing_the_storage_of_an_offered_tensor_waits_until_the_offer_ends() {
    let connector = connector();
    let tensor = counted(&[64]);
    let offer = tensor.send_readable(&connector).wait().unwrap();
    let writer = std::thread::spawn({
        let tensor = tensor.clone();
        move || tensor.inplace_op1(&Replace).unwrap()
    });
    std::thread::sleep(A_MOMENT);
    assert!(!writer.is_finished());
    assert_eq!(elements(&tensor)[63], 63., "readers go on");
    let received = recv_new(&connector, &offer.envelope("x").unwrap()).wait().unwrap();
    assert_eq!(elements(&received["x"]), elements(&counted(&[64])));
    offer.wait_for_completion().wait().unwrap();
    writer.join().unwrap();
    assert_eq!(elements(&tensor), [9.; 64]);
}

#[test]
fn an_offer_that_is_dropped_or_cancelled_releases_its_pin() {
    let connector = connector();
    let tensor = counted(&[8]);
    for cancel in [false, true] {
        let offer = tensor.send_readable(&connector).wait().unwrap();
        if cancel {
            assert!(matches!(offer.cancel().wait(), Err(Error::Cancelled { .. })));
        } else {
            drop(offer);
        }
        let (done, written) = mpsc::channel();
        let tensor = tensor.clone();
        std::thread::spawn(move || done.send(tensor.zero_set().is_ok()).unwrap());
        assert_eq!(written.recv_timeout(Duration::from_secs(10)), Ok(true));
    }
}

#[test]
fn one_storage_is_offered_many_times_at_once_while_a_writer_waits() {
    let connector = connector();
    let pool = counted(&[16, 8]);
    let views: Vec<_> = (0..16).map(|row| pool.narrow(0, row, 1).unwrap()).collect();
    let names: Vec<_> = (0..16).map(|row| format!("block {row}")).collect();
    let first = views[0].send_readable(&connector).wait().unwrap();
    let writer = std::thread::spawn({
        let pool = pool.clone();
        move || pool.zero_set().unwrap()
    });
    std::thread::sleep(A_MOMENT);
    let offer = send_tensors(&connector, names.iter().zip(&views)).wait().unwrap();
    let received = recv_new(&connector, offer.envelope()).wait().unwrap();
    assert_eq!(elements(&received["block 15"])[7], 127.);
    assert!(!writer.is_finished());
    offer.wait_for_completion().wait().unwrap();
    first.cancel().wait().unwrap_err();
    writer.join().unwrap();
}

#[test]
fn an_offered_tensor_is_busy_for_a_receive_until_its_offer_ends() {
    let connector = connector();
    let tensor = counted(&[8]);
    let offer = tensor.send_readable(&connector).wait().unwrap();
    let other = Tensor::ones(8, DType::F32, &Device::Cpu).unwrap().send_readable(&connector).wait().unwrap();
    let error = tensor.recv_into(&connector, other.metadata()).wait().unwrap_err();
    assert!(matches!(error, TensorError::Busy { .. }) && error.is_retryable(), "{error}");
    assert!(error.to_string().contains("(f32 [8] on cpu)"), "{error}");
    drop(offer);
    eventually("the release", || {
        !matches!(tensor.recv_into(&connector, other.metadata()).wait(), Err(TensorError::Busy { .. }))
    });
    assert_eq!(elements(&tensor), [1.; 8]);
}

#[test]
fn a_tensor_that_is_being_received_into_is_busy_and_free_again_when_that_is_dropped() {
    let connector = connector();
    let tensor = counted(&[8]);
    let other = counted(&[8]).send_readable(&connector).wait().unwrap();
    let receiving = tensor.recv_into(&connector, other.metadata());
    // The bytes may be there already; the tensor takes them only when the receive is waited for.
    let busy = tensor.narrow(0, 0, 4).unwrap().send_readable(&connector).wait().unwrap_err();
    assert!(matches!(busy, TensorError::Busy { .. }), "{busy}");
    tensor.zero_set().unwrap(); // nobody waits: no lock is held
    drop(receiving);
    drop(tensor.send_readable(&connector).wait().unwrap());
    assert_eq!(elements(&tensor), [0.; 8]);
}

#[test]
fn content_that_can_not_be_stored_comes_back_with_the_error() {
    let connector = connector();
    let tensor = counted(&[8]);
    let other = Tensor::ones(8, DType::F32, &Device::Cpu).unwrap().send_readable(&connector).wait().unwrap();
    let receiving = tensor.recv_into(&connector, other.metadata());
    let (guard, _) = tensor.storage_and_layout();
    let error = std::thread::scope(|scope| scope.spawn(|| receiving.wait().unwrap_err()).join().unwrap());
    drop(guard);
    let TensorError::NotStored { received, .. } = error else { panic!("{error}") };
    assert_eq!(elements(&received), [1.; 8]);
    assert_eq!(elements(&tensor), elements(&counted(&[8])));
}

#[test]
fn each_unsupported_tensor_is_refused_by_name_with_its_remedy() {
    let connector = connector();
    let refused = |name: &str, tensor: &Tensor| {
        let error = send_tensors(&connector, [(name, tensor)]).wait().unwrap_err().to_string();
        assert!(error.contains(&format!("{name:?}")), "{error}");
        error
    };
    let fragmented = counted(&[256, 64]).t().unwrap();
    assert!(refused("fragmented", &fragmented).contains(".contiguous()"));

    let opaque = |bytes| Tensor::from((Storage::Cpu(CpuStorage::F4(vec![1u8; bytes])), (4, 4)));
    let sliced = opaque(8).narrow(0, 1, 1).unwrap();
    assert!(refused("sliced", &sliced).contains("as a whole"));
    assert!(refused("short opaque", &opaque(7)).contains("needs 8 bytes of a storage that has 7"));

    let short = Tensor::from((Storage::Cpu(CpuStorage::F32(vec![0.; 3])), 4));
    assert!(refused("short", &short).contains("needs 16 bytes of a storage that has 12"));

    let empty = Tensor::zeros((2, 0), DType::F32, &Device::Cpu).unwrap();
    let error = empty.send_readable(&connector).wait().unwrap_err();
    assert!(matches!(error, TensorError::Empty { .. }), "{error}");
    let twice = counted(&[2]);
    let error = send_tensors(&connector, [("x", &twice), ("x", &twice)]).wait().unwrap_err();
    assert!(matches!(error, TensorError::Envelope(_)), "{error}");
}

#[test]
fn bytes_that_do_not_fit_are_refused_before_the_transfer() {
    let connector = connector();
    let offer = counted(&[8]).send_readable(&connector).wait().unwrap();
    let error = counted(&[9]).recv_into(&connector, offer.metadata()).wait().unwrap_err();
    assert!(matches!(error, TensorError::Layout { .. }), "{error}");
    let error = counted(&[8]).send_into(&connector, offer.metadata()).wait().unwrap_err();
    assert!(matches!(error, TensorError::Operation(Error::Metadata(_))), "the wrong direction: {error}");
    assert!(recv_new(&connector, &offer.envelope("x").unwrap()).wait().is_ok(), "the offer still stands");
}
