//! Devices that this machine has not: refused by name, with what to do, before anything is asked of a peer.

use connect_core::{Connector, Device, TensorEnvelope};
use connect_tch::{TensorError, TensorExt, recv_new_on, recv_writable_on};
use tch::{Kind, Tensor};

fn refusal<T>(result: Result<T, TensorError>) -> String {
    match result {
        Err(TensorError::Unsupported { reason, .. }) => reason.to_owned(),
        Err(other) => panic!("refused for another reason: {other}"),
        Ok(_) => panic!("it was taken"),
    }
}

#[test]
fn a_gpu_that_is_not_there_and_devices_without_a_name_are_refused_on_the_receiving_side() {
    let connector = Connector::local().unwrap();
    let tensor = Tensor::arange(6, (Kind::Float, tch::Device::Cpu));
    // SAFETY: nobody writes to the tensor or resizes it.
    #[expect(unsafe_code, reason = "the method is")]
    let offer = unsafe { tensor.send_readable(&connector) }.wait().unwrap();
    let envelope = TensorEnvelope::from_json(&offer.envelope("x").unwrap().to_json()).unwrap();
    assert_eq!(envelope.metadata().descriptors()[0].device(), Device::CPU);
    // One more than there are.
    let gpu = tch::Device::Cuda(tch::Cuda::device_count().max(0) as usize);
    let reason = refusal(recv_new_on(&connector, &envelope, gpu).wait());
    assert!(reason.contains("to_device(Device::Cpu)") && reason.contains("no-as-needed"), "{reason}");
    refusal(recv_writable_on(&connector, Kind::Float, &[2], gpu).wait());
    assert!(refusal(recv_new_on(&connector, &envelope, tch::Device::Mps).wait()).contains("Mps"));
    // The offer stands.
    let received = recv_new_on(&connector, &envelope, tch::Device::Cpu).wait().unwrap();
    assert_eq!(Vec::<f32>::try_from(&received["x"]).unwrap(), [0., 1., 2., 3., 4., 5.]);
}
