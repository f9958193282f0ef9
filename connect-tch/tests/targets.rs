//! Receiving into existing tensors, and digests.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod common;

use common::{KINDS, bytes, connector, counted, floats};
use connect_core::{MetadataError, TensorEnvelope};
use connect_tch::{
    ReadableTensors, TensorError, TensorExt, recv_new, recv_verified, send_tensors, send_tensors_with_digests,
};
use tch::{Device, Kind, Tensor};

fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Float, Device::Cpu))
}

#[test]
fn every_kind_and_view_is_received_into_without_touching_the_rest() {
    let connector = connector();
    for kind in KINDS {
        let (sent, target) = (counted(&[3, 5]).to_kind(kind), counted(&[5, 3]).to_kind(kind));
        // SAFETY: nobody else has the tensors, here and below.
        let offer = unsafe { sent.send_readable(&connector) }.wait().unwrap();
        // SAFETY: as above.
        let report = unsafe { target.recv_into(&connector, offer.metadata()) }.wait().unwrap();
        assert_eq!((bytes(&target), report.bytes), (bytes(&sent), bytes(&sent).len() as u64), "{kind:?}");
    }
    let pool = zeros(&[4, 6, 8]);
    let views = [
        ("whole", pool.shallow_clone()),
        ("rows", pool.narrow(0, 1, 2)),
        ("columns", pool.narrow(2, 3, 4)),
        ("transposed", pool.transpose(0, 1)),
        ("scalar", pool.get(3).get(5).get(7)),
    ];
    for (name, view) in &views {
        for unlocked in [false, true] {
            let _ = pool.shallow_clone().fill_(-1.);
            let sent = counted(&view.size());
            // SAFETY: as above.
            let offer = unsafe { sent.send_readable(&connector) }.wait().unwrap();
            if unlocked {
                // SAFETY: as above.
                let receiving = unsafe { view.recv_into_unlocked(&connector, offer.metadata(), *name) };
                let received = receiving.wait();
                if !view.is_contiguous() {
                    assert!(
                        matches!(received, Err(TensorError::Layout { .. })),
                        "pieces that differ: {name}"
                    );
                    continue;
                }
                assert_eq!(received.unwrap().0, *name);
            } else {
                // SAFETY: as above.
                unsafe { view.recv_into(&connector, offer.metadata()) }.wait().unwrap();
            }
            assert_eq!(floats(view), floats(&sent), "{name}");
            let untouched = floats(&pool).iter().filter(|&&value| value == -1.).count();
            assert_eq!(untouched, pool.numel() - view.numel(), "{name}");
        }
    }
}

#[test]
fn receiving_in_place_moves_no_storage_and_leaves_its_lease_with_the_operation() {
    let connector = connector();
    let pool = counted(&[4, 8]);
    let (served, free) = (pool.narrow(0, 0, 1), pool.narrow(0, 2, 2));
    let before = pool.data_ptr();
    // SAFETY: nobody uses the pool's third and fourth rows, and nobody writes to the first.
    let serving = unsafe { served.send_readable(&connector) }.wait().unwrap();
    let sent = Tensor::ones([2, 8], (Kind::Float, Device::Cpu));
    // SAFETY: as above.
    let offer = unsafe { sent.send_readable(&connector) }.wait().unwrap();
    // SAFETY: as above.
    let received = unsafe { free.recv_into_unlocked(&connector, offer.metadata(), "blocks 2 and 3") };
    let (lease, report) = received.wait().unwrap();
    assert_eq!((lease, report.bytes, pool.data_ptr()), ("blocks 2 and 3", 64, before));
    assert_eq!((floats(&free), &floats(&pool)[..16]), (vec![1.; 16], &floats(&counted(&[2, 8]))[..]));
    serving.cancel().wait().unwrap_err();
}

#[test]
fn autograd_sees_what_is_received_into_a_tensor_that_it_saved() {
    let connector = connector();
    let weight = Tensor::ones([4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let factor = Tensor::ones([4], (Kind::Float, Device::Cpu));
    let loss = (&weight * &factor).sum(Kind::Float);
    let sent = counted(&[4]);
    // SAFETY: nobody else has the tensors, here and below.
    let offer = unsafe { sent.send_readable(&connector) }.wait().unwrap();
    // SAFETY: as above.
    unsafe { factor.recv_into(&connector, offer.metadata()) }.wait().unwrap();
    let gradient = Tensor::f_run_backward(&[loss], &[&weight], false, false);
    assert!(gradient.unwrap_err().to_string().contains("modified by an inplace operation"));
}

#[test]
fn a_receive_that_is_dropped_leaves_the_tensor_as_it_was() {
    let connector = connector();
    let (sent, target) = (counted(&[8]), zeros(&[8]));
    // SAFETY: nobody else has the tensors, here and below.
    let offer = unsafe { sent.send_readable(&connector) }.wait().unwrap();
    // SAFETY: as above.
    drop(unsafe { target.recv_into(&connector, offer.metadata()) });
    assert_eq!(floats(&target), [0.; 8]);
}

/// The envelope of one offer around the memory of another: bytes that were changed on their way.
fn swapped(promised: &ReadableTensors, offered: &ReadableTensors) -> TensorEnvelope {
    let (_, tensors, _) = promised.envelope().clone().into_parts();
    TensorEnvelope::new(offered.metadata().clone(), tensors).unwrap()
}

#[test]
fn tensors_of_every_kind_and_views_pass_their_digests() {
    let connector = connector();
    for kind in KINDS {
        let sent = counted(&[3, 5]).to_kind(kind);
        // SAFETY: nobody else has the tensors, here and below.
        let offer = unsafe { send_tensors_with_digests(&connector, [("x", &sent)]) }.wait().unwrap();
        let envelope = TensorEnvelope::from_json(&offer.envelope().to_json()).unwrap();
        let received = recv_verified(&connector, &envelope).wait().unwrap();
        assert_eq!(bytes(&received["x"]), bytes(&sent), "{kind:?}");
    }
    let tensor = counted(&[4, 6, 8]);
    let (view, none) = (tensor.permute([2, 0, 1]).narrow(0, 1, 5), tensor.narrow(0, 0, 0));
    let sent = [("view", &view), ("none", &none), ("whole", &tensor)];
    // SAFETY: as above.
    let offer = unsafe { send_tensors_with_digests(&connector, sent) }.wait().unwrap();
    let received = recv_verified(&connector, offer.envelope()).wait().unwrap();
    assert_eq!((floats(&received["view"]), received["none"].size()), (floats(&view), vec![0, 6, 8]));
}

#[test]
fn one_flipped_byte_is_caught_and_names_its_tensor() {
    let connector = connector();
    let (first, good) = (counted(&[5]), counted(&[300]));
    let flipped = good.copy();
    let _ = flipped.get(299).fill_(-1.);
    let offer = |k: &Tensor| {
        // SAFETY: nobody else has the tensors.
        unsafe { send_tensors_with_digests(&connector, [("first", &first), ("k", k)]) }.wait().unwrap()
    };
    let error = recv_new(&connector, &swapped(&offer(&good), &offer(&flipped))).wait().unwrap_err();
    let TensorError::Digest(mismatch) = &error else { panic!("{error}") };
    assert_eq!(mismatch.name, "k");
    assert!(error.to_string().contains("\"k\"") && !error.is_retryable(), "{error}");
}

#[test]
fn a_receiver_that_requires_digests_transfers_nothing_without_them() {
    let connector = connector();
    let tensor = counted(&[8]);
    // SAFETY: nobody else has the tensor.
    let offer = unsafe { send_tensors(&connector, [("x", &tensor)]) }.wait().unwrap();
    let error = recv_verified(&connector, offer.envelope()).wait().unwrap_err();
    assert!(matches!(error, TensorError::Envelope(MetadataError::DigestMissing { .. })), "{error}");
    assert!(recv_new(&connector, offer.envelope()).wait().is_ok(), "the offer was not used up");
}
