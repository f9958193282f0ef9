//! Devices that this machine has not: refused by name, with what to do, before anything is asked of a peer.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod common;

use common::{connector, counted, floats};
use connect_core::{Device, TensorEnvelope};
use connect_tch::{TensorError, TensorExt, recv_new_on, recv_writable_on, send_tensors};
use tch::Kind;

/// What receiving is refused with.
fn refusal<T>(result: Result<T, TensorError>) -> String {
    match result {
        Err(error @ TensorError::Device { .. }) => error.to_string(),
        Err(other) => panic!("refused for another reason: {other}"),
        Ok(_) => panic!("it was taken"),
    }
}

fn says(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "no {word:?} in: {error}");
    }
}

#[test]
fn devices_that_are_not_there_are_refused_by_name_and_leave_the_offer_alone() {
    let connector = connector();
    let tensor = counted(&[2, 3]);
    // SAFETY: nobody writes to the tensor.
    let offer = unsafe { send_tensors(&connector, [("x", &tensor)]) }.wait().unwrap();
    let envelope = TensorEnvelope::from_json(&offer.envelope().to_json()).unwrap();
    assert_eq!(envelope.metadata().descriptors()[0].device(), Device::CPU);
    // One more than there are.
    let missing = tch::Cuda::device_count().max(0) as usize;
    let gpu = tch::Device::Cuda(missing);
    let name = format!("F32 [2, 3] on cuda:{missing})");
    let remedy = ["libtorch finds no such GPU", "README", "`Device::Cpu`"];

    let error = refusal(recv_new_on(&connector, &envelope, gpu).wait());
    says(&error, &["tensor \"x\" (", &name]);
    says(&error, &remedy);
    let error = refusal(recv_writable_on(&connector, Kind::Float, [2, 3], gpu).wait());
    says(&error, &["tensor (", &name]);
    says(&error, &remedy);
    // A number that would be the CPU's, cut to what libtorch takes.
    refusal(recv_new_on(&connector, &envelope, tch::Device::Cuda(u32::MAX as usize)).wait());

    for device in [tch::Device::Mps, tch::Device::Vulkan] {
        let error = refusal(recv_new_on(&connector, &envelope, device).wait());
        says(&error, &["tensor \"x\"", "`Device::Mps`", "receive on `Device::Cpu`", "`to_device`"]);
        refusal(recv_writable_on(&connector, Kind::Float, [2, 3], device).wait());
    }

    let received = recv_new_on(&connector, &envelope, tch::Device::Cpu).wait().unwrap();
    assert_eq!(floats(&received["x"]), floats(&tensor));
    offer.wait_for_completion().wait().unwrap();
}

#[test]
fn a_device_of_choice_may_be_the_cpu() {
    let connector = connector();
    let offer = recv_writable_on(&connector, Kind::Float, [2, 3], tch::Device::Cpu).wait().unwrap();
    let tensor = counted(&[2, 3]);
    // SAFETY: nobody writes to the tensor.
    unsafe { tensor.send_into(&connector, offer.metadata()) }.wait().unwrap();
    let (written, _) = offer.wait_for_completion().wait().unwrap();
    assert_eq!((written.device(), floats(&written)), (tch::Device::Cpu, floats(&tensor)));
}
