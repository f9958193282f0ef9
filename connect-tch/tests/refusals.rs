//! Every tensor that can't move is refused by name, with its element type, shape, device and remedy; and the remedy
//! works.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod common;

use common::{bytes, connector, counted, floats};
use connect_core::{DType, Error, RdmaMetadata, TensorEnvelope, TensorSpec};
use connect_tch::{TensorError, TensorExt, TensorInfo, recv_new, recv_writable, send_tensors};
use tch::{CModule, Device, IValue, Kind, Tensor};

/// What sending a tensor called `odd` is refused with.
fn refused(tensor: &Tensor) -> String {
    // SAFETY: nobody writes to the tensor here.
    let error = unsafe { send_tensors(&connector(), [("odd", tensor)]) }.wait().unwrap_err();
    assert!(!error.is_retryable());
    error.to_string()
}

/// What receiving into a tensor is refused with, in both ways.
fn refused_as_target(tensor: &Tensor) -> String {
    let connector = connector();
    let sent = counted(&[4]);
    // SAFETY: nobody else has the tensors, here and below.
    let offer = unsafe { sent.send_readable(&connector) }.wait().unwrap();
    // SAFETY: as above.
    let error = unsafe { tensor.recv_into(&connector, offer.metadata()) }.wait().unwrap_err().to_string();
    // SAFETY: as above.
    let unlocked = unsafe { tensor.recv_into_unlocked(&connector, offer.metadata(), ()) };
    assert_eq!(unlocked.wait().unwrap_err().to_string(), error);
    error
}

fn eye() -> Tensor {
    Tensor::eye(4, (Kind::Float, Device::Cpu))
}

/// A tensor that tch has no call for, from a TorchScript method of `data/odd.py`.
fn odd(method: &str) -> Tensor {
    let module = CModule::load_data(&mut &include_bytes!("data/odd.pt")[..]).unwrap();
    match module.method_is(method, &[IValue::Tensor(eye())]).unwrap() {
        IValue::Tensor(tensor) => tensor,
        other => panic!("{other:?}"),
    }
}

fn says(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "no {word:?} in: {error}");
    }
}

#[test]
fn every_layout_without_dense_memory_is_refused_with_a_remedy_that_works() {
    let coo = eye().to_sparse_sparse_dim(2);
    let csr = eye().to_sparse_csr(None);
    let csc = eye().to_sparse_csc(None);
    let bsr = eye().to_sparse_bsr([2, 2], None);
    let bsc = eye().to_sparse_bsc([2, 2], None);
    let mkldnn = eye().to_mkldnn();
    for (tensor, name) in
        [(coo, "(COO)"), (csr, "CSR"), (csc, "CSC"), (bsr, "BSR"), (bsc, "BSC"), (mkldnn, "mkldnn")]
    {
        for error in [refused(&tensor), refused_as_target(&tensor)] {
            says(&error, &[name, "F32 [4, 4] on cpu", "`to_dense`"]);
        }
        says(&refused(&tensor), &["tensor \"odd\""]);
        let dense = tensor.to_dense(None, false);
        // SAFETY: nobody else has the tensor.
        let offer = unsafe { dense.send_readable(&connector()) }.wait().unwrap();
        drop(offer);
        assert_eq!(floats(&dense), floats(&eye()));
    }
}

#[test]
fn quantised_and_lazy_tensors_are_refused_with_a_remedy_that_works() {
    let quantised = eye().quantize_per_tensor(0.1, 0, Kind::QUInt8);
    for error in [refused(&quantised), refused_as_target(&quantised)] {
        says(&error, &["QUInt8 [4, 4] on cpu", "quantised", "`int_repr()`"]);
    }
    says(&refused(&eye().quantize_per_tensor(0.1, 0, Kind::QInt8)), &["QInt8"]);
    says(&refused(&eye().quantize_per_tensor(0.1, 0, Kind::QInt32)), &["QInt32"]);

    let complex = Tensor::ones([4], (Kind::ComplexFloat, Device::Cpu));
    let conjugated = complex.conj();
    for error in [refused(&conjugated), refused_as_target(&conjugated)] {
        says(&error, &["C64 [4] on cpu", "`resolve_conj`"]);
    }
    let negated = complex.conj().imag();
    says(&refused(&negated), &["F32 [4] on cpu", "negated", "`resolve_neg`"]);

    for remedied in [quantised.int_repr(), conjugated.resolve_conj(), negated.resolve_neg()] {
        // SAFETY: nobody else has the tensor.
        drop(unsafe { remedied.send_readable(&connector()) }.wait().unwrap());
    }
}

#[test]
fn tensors_without_memory_or_a_shape_are_refused() {
    says(&refused(&Tensor::new()), &["tensor \"odd\" can't move", "undefined", "assign it"]);
    says(&refused_as_target(&Tensor::new()), &["undefined"]);
    let zero = Tensor::internal_efficientzerotensor([4], (Kind::Float, Device::Cpu));
    for error in [refused(&zero), refused_as_target(&zero)] {
        says(&error, &["F32 [4] on cpu", "without memory", "`zeros`"]);
    }
    says(&refused(&odd("nested")), &["nested", "one by one"]);
}

#[test]
fn devices_out_of_reach_are_refused_and_never_called_by_another_name() {
    let meta = odd("meta");
    for error in [refused(&meta), refused_as_target(&meta)] {
        says(&error, &["F32 [4, 4] on a device that this library has no name for", "to_device", "`meta`"]);
        assert!(!error.to_lowercase().contains("mps"), "{error}");
    }
}

#[test]
fn element_types_without_a_name_are_refused_with_theirs() {
    let unsigned = odd("unsigned");
    for error in [refused(&unsigned), refused_as_target(&unsigned)] {
        says(&error, &["unknown type [4, 4] on cpu", "unknown to tch", "`to_kind`"]);
    }
    for kind in [Kind::ComplexDouble, Kind::ComplexHalf] {
        let tensor = Tensor::zeros([2, 2], (kind, Device::Cpu));
        says(&refused(&tensor), &[&format!("{kind:?} [2, 2] on cpu"), "no name", "`to_kind`"]);
        let error = recv_writable(&connector(), kind, [2, 2]).wait().unwrap_err();
        assert!(matches!(error, TensorError::DType { .. }), "{error}");
        says(&error.to_string(), &[&format!("{kind:?} [2, 2] on cpu")]);
    }
    // And those that only a peer has.
    for dtype in [DType::U16, DType::U32, DType::U64, DType::F8_E8M0] {
        let connector = connector();
        let bytes = dtype.byte_len(6).unwrap();
        let offer = connector.create_readable(vec![1u8; bytes as usize]).wait().unwrap();
        let spec = TensorSpec::new("odd", dtype, [2, 3], 0..1).unwrap();
        let envelope = TensorEnvelope::new(offer.metadata().clone(), vec![spec]).unwrap();
        let error = recv_new(&connector, &envelope).wait().unwrap_err();
        assert!(matches!(error, TensorError::DType { .. }), "{error}");
        let name = dtype.to_string();
        says(&error.to_string(), &["tensor \"odd\"", "[2, 3] on cpu", &name, "tch does not have", "convert"]);
    }
}

#[test]
fn views_that_can_not_be_described_are_refused_with_their_remedy() {
    let fragmented = counted(&[256, 64]).transpose(0, 1);
    says(&refused(&fragmented), &["F32 [64, 256] on cpu", ".contiguous()"]);
    let expanded = counted(&[1, 4]).expand([3, 4], false);
    says(&refused_as_target(&expanded), &["F32 [3, 4] on cpu", "share storage"]);
    let overlapping = counted(&[8]).as_strided([3, 4], [2, 1], 0);
    says(&refused_as_target(&overlapping), &["share storage"]);
}

#[test]
fn nothing_to_move_is_refused() {
    let empty = counted(&[0, 3]);
    // SAFETY: nobody else has the tensor.
    let error = unsafe { empty.send_readable(&connector()) }.wait().unwrap_err();
    assert!(matches!(error, TensorError::Empty { .. }), "{error}");
    says(&error.to_string(), &["F32 [0, 3] on cpu", "no elements", "send its shape"]);
    says(&refused_as_target(&empty), &["no elements"]);
    for shape in [&[0i64, 3][..], &[-1, 3]] {
        let error = recv_writable(&connector(), Kind::Float, shape).wait().unwrap_err();
        assert!(matches!(error, TensorError::Empty { .. }), "{error}");
    }
}

#[test]
fn shapes_beyond_memory_are_refused() {
    let error = recv_writable(&connector(), Kind::Double, [1 << 40, 1 << 18]).wait().unwrap_err();
    assert!(matches!(error, TensorError::Allocation { .. }) && error.is_retryable(), "{error}");
    says(&error.to_string(), &["F64 [1099511627776, 262144] on cpu", "2305843009213693952 bytes", "memory"]);
}

#[test]
fn a_target_that_requires_gradients_is_refused_and_its_detached_self_is_not() {
    let weight = counted(&[4]).set_requires_grad(true);
    says(&refused_as_target(&weight), &["F32 [4] on cpu", "requires gradients", "`detach()`"]);
    says(&refused_as_target(&(&weight * 2.)), &["requires gradients"]);
    let connector = connector();
    let sent = counted(&[4]) + 1.;
    // SAFETY: nobody else has the tensors, here and below.
    let offer = unsafe { sent.send_readable(&connector) }.wait().unwrap();
    // SAFETY: as above.
    unsafe { weight.detach().recv_into(&connector, offer.metadata()) }.wait().unwrap();
    assert_eq!(floats(&weight), [1., 2., 3., 4.]);
}

#[test]
fn truth_values_that_are_none_are_refused_however_they_come() {
    let connector = connector();
    let content = || vec![0u8, 1, 2, 1];
    let offered = |metadata: &RdmaMetadata| {
        let spec = TensorSpec::new("mask", DType::BOOL, [4], 0..1).unwrap();
        TensorEnvelope::new(metadata.clone(), vec![spec]).unwrap()
    };
    let not_bool = |error: TensorError| {
        assert!(matches!(error, TensorError::NotBool { byte: 2, .. }) && !error.is_retryable(), "{error}");
        says(&error.to_string(), &["BOOL [4] on cpu", "a byte 2", "uint8"]);
    };
    let offer = connector.create_readable(content()).wait().unwrap();
    not_bool(recv_new(&connector, &offered(offer.metadata())).wait().unwrap_err());

    let target = Tensor::from_slice(&[true, true, true, false]);
    let offer = connector.create_readable(content()).wait().unwrap();
    // SAFETY: nobody else has the tensor, here and below.
    not_bool(unsafe { target.recv_into(&connector, offer.metadata()) }.wait().unwrap_err());
    assert_eq!(bytes(&target), [1, 1, 1, 0], "the old content stands");

    let offer = recv_writable(&connector, Kind::Bool, [4]).wait().unwrap();
    let write = connector.begin_write(content(), offer.metadata()).wait().unwrap();
    write.wait_for_completion().wait().unwrap();
    not_bool(offer.wait_for_completion().wait().unwrap_err());

    let offer = connector.create_readable(content()).wait().unwrap();
    // SAFETY: as above.
    let unlocked = unsafe { target.recv_into_unlocked(&connector, offer.metadata(), ()) };
    says(&unlocked.wait().unwrap_err().to_string(), &["BOOL [4] on cpu", "`recv_into`", "uint8"]);
    assert_eq!(bytes(&target), [1, 1, 1, 0]);
}

#[test]
fn content_that_libtorch_would_not_copy_comes_back_with_the_error() {
    let connector = connector();
    let sent = counted(&[4]);
    // SAFETY: nobody else has the tensors, here and below.
    let offer = unsafe { sent.send_readable(&connector) }.wait().unwrap();
    let mut target = Tensor::zeros([4], (Kind::Float, Device::Cpu));
    // SAFETY: as above.
    let receiving = unsafe { target.recv_into(&connector, offer.metadata()) };
    let _ = target.resize_([3]);
    let error = receiving.wait().unwrap_err();
    says(&error.to_string(), &["F32 [4] on cpu", "was not stored", "`received`"]);
    let TensorError::NotStored { received, .. } = error else { panic!("{error}") };
    assert_eq!(floats(&received.into_tensor()), [0., 1., 2., 3.]);
}

#[test]
fn bytes_and_directions_that_do_not_fit_are_refused_before_the_transfer() {
    let connector = connector();
    let sent = counted(&[8]);
    // SAFETY: nobody else has the tensors, here and below.
    let offer = unsafe { sent.send_readable(&connector) }.wait().unwrap();
    // SAFETY: as above.
    let error = unsafe { counted(&[9]).recv_into(&connector, offer.metadata()) }.wait().unwrap_err();
    assert!(matches!(error, TensorError::Layout { .. }), "{error}");
    says(&error.to_string(), &["F32 [9] on cpu"]);
    // SAFETY: as above.
    let error = unsafe { sent.send_into(&connector, offer.metadata()) }.wait().unwrap_err();
    assert!(matches!(error, TensorError::Operation(Error::Metadata(_))), "the wrong direction: {error}");
    // SAFETY: as above.
    let error = unsafe { send_tensors(&connector, [("x", &sent), ("x", &sent)]) }.wait().unwrap_err();
    assert!(matches!(error, TensorError::Envelope(_)), "{error}");
    says(&error.to_string(), &["\"x\"", "the same field_name"]);
    assert!(recv_new(&connector, &offer.envelope("x").unwrap()).wait().is_ok(), "the offer still stands");
}

/// What libtorch has not been seen to do.
#[test]
fn an_error_of_libtorch_s_own_names_the_tensor_and_a_remedy() {
    let mut tensor = TensorInfo::default();
    (tensor.name, tensor.kind, tensor.shape) = ("k".to_owned(), Some(Kind::Half), Some(vec![2, 8]));
    tensor.device = Some(connect_core::Device::cuda(1));
    let error = TensorError::Torch { tensor, reason: "no".to_owned() };
    says(&error.to_string(), &["tensor \"k\" (F16 [2, 8] on cuda:1)", "no", "`Tensor::copy`"]);
}
