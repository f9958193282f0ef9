//! Digests: what arrives is what was sent, or nothing is handed out.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod common;

use candle_core::Tensor;
use common::{DTYPES, connector, counted, of_type, storage};
use connect_candle::{
    ReadableTensors, TensorError, TensorExt, recv_new, recv_verified, send_tensors, send_tensors_with_digests,
};
use connect_core::{Connector, MetadataError, TensorEnvelope};

/// The envelope of one offer around the memory of another: bytes that were changed on their way.
fn swapped(promised: &ReadableTensors, offered: &ReadableTensors) -> TensorEnvelope {
    let (_, tensors, _) = promised.envelope().clone().into_parts();
    let swapped = TensorEnvelope::new(offered.metadata().clone(), tensors).unwrap();
    TensorEnvelope::from_json(&swapped.to_json()).unwrap()
}

fn offer(connector: &Connector, tensors: &[(&str, &Tensor)]) -> ReadableTensors {
    send_tensors_with_digests(connector, tensors.iter().map(|(name, tensor)| (*name, *tensor)))
        .wait()
        .unwrap()
}

#[test]
fn tensors_of_every_type_and_views_pass_their_digests() {
    let (sender, receiver) = (connector(), connector());
    for dtype in DTYPES {
        let sent = of_type(dtype, &[3, 5]);
        let offer = offer(&sender, &[("x", &sent)]);
        let json = offer.envelope().to_json();
        let received = recv_verified(&receiver, &TensorEnvelope::from_json(&json).unwrap()).wait().unwrap();
        assert_eq!(storage(&received["x"]).1, storage(&sent).1, "{dtype:?}");
    }
    let tensor = counted(&[4, 6, 8]);
    let view = tensor.permute((2, 0, 1)).unwrap().narrow(0, 1, 5).unwrap();
    let none = tensor.narrow(0, 0, 0).unwrap();
    let offer = offer(&sender, &[("view", &view), ("none", &none), ("whole", &tensor)]);
    let received = recv_verified(&receiver, offer.envelope()).wait().unwrap();
    assert_eq!(received["view"].to_vec3::<f32>().unwrap(), view.to_vec3::<f32>().unwrap());
    assert_eq!(received["none"].dims(), [0, 6, 8]);
}

#[test]
fn one_flipped_byte_is_caught_and_names_its_tensor() {
    let (sender, receiver) = (connector(), connector());
    let (first, good) = (counted(&[5]), counted(&[300]));
    for element in [0, 150, 299] {
        let mut values = good.to_vec1::<f32>().unwrap();
        values[element] = f32::from_bits(values[element].to_bits() ^ 1);
        let flipped = Tensor::new(values, good.device()).unwrap();
        let promised = offer(&sender, &[("first", &first), ("k", &good)]);
        let offered = offer(&sender, &[("first", &first), ("k", &flipped)]);
        let envelope = swapped(&promised, &offered);
        // Whether or not the receiver insists.
        let receive = if element == 0 { recv_new } else { recv_verified };
        let error = receive(&receiver, &envelope).wait().unwrap_err();
        let TensorError::Digest(mismatch) = &error else { panic!("{error}") };
        assert_eq!(mismatch.name, "k");
        assert_ne!(mismatch.expected, mismatch.found);
        assert!(!error.is_retryable());
    }
}

#[test]
fn a_receiver_that_requires_digests_transfers_nothing_without_them() {
    let connector = connector();
    let tensor = counted(&[8]);
    let offer = send_tensors(&connector, [("x", &tensor)]).wait().unwrap();
    let error = recv_verified(&connector, offer.envelope()).wait().unwrap_err();
    let TensorError::Envelope(MetadataError::DigestMissing { name }) = &error else { panic!("{error}") };
    assert_eq!(name, "x");
    // The offer was not used up.
    assert!(recv_new(&connector, offer.envelope()).wait().is_ok());
}

#[test]
fn plain_operations_carry_no_digests() {
    let connector = connector();
    let offer = counted(&[8]).send_readable(&connector).wait().unwrap();
    assert!(!offer.envelope("x").unwrap().to_json().contains("digest"));
    assert!(!offer.metadata().to_json().contains("digest"));
}
