//! Each error names the tensor, its element type, shape and device, and the remedy.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod common;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use common::{connector, counted};
use connect_candle::{
    TensorError, TensorExt, recv_new, recv_writable, send_tensors, send_tensors_with_digests,
};
use connect_core::{TensorEnvelope, TensorSpec};

fn says(error: &TensorError, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

/// What sending a tensor called `k` is refused with.
fn refused(tensor: &Tensor) -> TensorError {
    send_tensors(&connector(), [("k", tensor)]).wait().unwrap_err()
}

#[test]
fn layouts_that_can_not_move() {
    let error = refused(&counted(&[256, 64]).t().unwrap());
    assert!(matches!(error, TensorError::Layout { .. }), "{error}");
    says(&error, &["tensor \"k\" (f32 [64, 256] on cpu)", "`.contiguous()`"]);

    let opaque = Tensor::from((Storage::Cpu(CpuStorage::F4(vec![1u8; 8])), (4, 4)));
    let error = refused(&opaque.narrow(0, 1, 1).unwrap());
    assert!(matches!(error, TensorError::OpaqueView { .. }), "{error}");
    says(&error, &["tensor \"k\" (f4 [1, 4] on cpu)", "send the tensor it was cut from"]);

    let error = Tensor::zeros((2, 0), DType::U8, &Device::Cpu).unwrap().send_readable(&connector()).wait();
    let error = error.unwrap_err();
    assert!(matches!(error, TensorError::Empty { .. }), "{error}");
    says(&error, &["tensor (u8 [2, 0] on cpu)", "no elements", "send its shape"]);
}

#[test]
fn element_types_that_candle_lacks() {
    let connector = connector();
    for dtype in [connect_core::DType::I8, connect_core::DType::C64, connect_core::DType::F8_E5M2] {
        let offer = connector.create_readable(vec![0u8; dtype.byte_len(6).unwrap() as usize]).wait().unwrap();
        let spec = TensorSpec::new("k", dtype, [2, 3], 0..1).unwrap();
        let envelope = TensorEnvelope::new(offer.metadata().clone(), vec![spec]).unwrap();
        let error = recv_new(&connector, &envelope).wait().unwrap_err();
        assert!(matches!(error, TensorError::DType { .. }) && !error.is_retryable(), "{error}");
        let kind = format!("tensor \"k\" ({dtype} [2, 3] on cpu)");
        says(&error, &[&kind, "Candle does not have", "convert it before sending"]);
    }
}

#[test]
fn shapes_beyond_memory() {
    let error = recv_writable(&connector(), DType::F64, (1 << 40, 1 << 18)).wait().unwrap_err();
    assert!(matches!(error, TensorError::Allocation { .. }) && error.is_retryable(), "{error}");
    says(&error, &["(f64 [1099511627776, 262144] on cpu)", "2305843009213693952 bytes", "check the shape"]);
}

#[test]
fn storages_that_others_have() {
    let connector = connector();
    let (tensor, other) = (counted(&[8]), counted(&[8]));
    let _offer = tensor.send_readable(&connector).wait().unwrap();
    let source = other.send_readable(&connector).wait().unwrap();
    let error = tensor.recv_into(&connector, source.metadata()).wait().unwrap_err();
    assert!(matches!(error, TensorError::Busy { .. }) && error.is_retryable(), "{error}");
    says(&error, &["tensor (f32 [8] on cpu)", "offered to a peer", "wait for that", "`Tensor::copy`"]);

    let target = counted(&[8]);
    let receiving = target.recv_into(&connector, source.metadata());
    let (guard, _) = target.storage_and_layout();
    let error = std::thread::scope(|scope| scope.spawn(|| receiving.wait().unwrap_err()).join().unwrap());
    drop(guard);
    assert!(matches!(error, TensorError::NotStored { .. }) && error.is_retryable(), "{error}");
    says(&error, &["tensor (f32 [8] on cpu)", "stayed locked", "`received`"]);
}

#[test]
fn sets_and_content_that_are_wrong() {
    let connector = connector();
    let (k, other) = (counted(&[8]), counted(&[2, 4]));
    let error = send_tensors(&connector, [("k", &k), ("k", &k)]).wait().unwrap_err();
    assert!(matches!(error, TensorError::Envelope(_)), "{error}");
    says(&error, &["tensor \"k\"", "the same field_name"]);

    let promised = send_tensors_with_digests(&connector, [("k", &k)]).wait().unwrap();
    let offered = send_tensors(&connector, [("k", &(other + 1.).unwrap())]).wait().unwrap();
    let (_, tensors, _) = promised.envelope().clone().into_parts();
    let swapped = TensorEnvelope::new(offered.metadata().clone(), tensors).unwrap();
    let error = recv_new(&connector, &swapped).wait().unwrap_err();
    assert!(matches!(error, TensorError::Digest(_)), "{error}");
    says(&error, &["tensor \"k\"", "not what was sent", "blake3:", "have it sent again"]);
}
