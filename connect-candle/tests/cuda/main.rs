//! Tensors in GPU memory, on a fake CUDA driver: that is host memory and a queue of work that is done as late as can
//! be (`xtask/fakecuda/driver.c`). What is shown is order and addresses, and nothing about a GPU.
//!
//! `cargo xtask test --only cuda` runs them.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

#[path = "../common/mod.rs"]
mod common;
mod fake;
mod transport;

use std::sync::mpsc;
use std::thread;

use candle_core::{DType, Device, Storage, Tensor};
use connect_candle::{
    TensorError, TensorExt, cuda, recv_new, recv_new_on, recv_writable_on, send_tensors,
    send_tensors_with_digests,
};
use connect_core::transport::TransportError;
use connect_core::{Connector, Error, TensorEnvelope};
use fake::Arrival::{self, InContext, OverTheBus};
use transport::connector;

const NUMBERS: usize = 600;

fn gpu(ordinal: usize) -> Device {
    Device::new_cuda(ordinal).unwrap()
}

fn numbers(from: f32) -> Vec<f32> {
    (0..NUMBERS).map(|i| from + i as f32).collect()
}

/// A tensor in plain memory whose content another thread queued, and did not wait for.
fn produced_elsewhere(device: &Device, from: f32) -> Tensor {
    let device = device.clone();
    let produce = move || cuda::plain(&Tensor::from_vec(numbers(from), (20, 30), &device).unwrap()).unwrap();
    thread::spawn(produce).join().unwrap()
}

/// What a thread of its own sees that looks now.
fn seen_elsewhere(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.clone();
    thread::spawn(move || tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()).join().unwrap()
}

/// Has a thread queue a copy of the tensor. It waits for the copy, and says what is in it, when it is asked.
fn copied_elsewhere(tensor: &Tensor) -> impl FnOnce() -> Vec<f32> + use<> {
    let (tensor, (copied, is_copied), (ask, asked)) =
        (tensor.clone(), mpsc::channel(), mpsc::channel::<()>());
    let thread = thread::spawn(move || {
        let copy = tensor.copy().unwrap();
        drop(tensor);
        copied.send(()).unwrap();
        asked.recv().unwrap();
        copy.flatten_all().unwrap().to_vec1().unwrap()
    });
    is_copied.recv().unwrap();
    move || {
        ask.send(()).unwrap();
        thread.join().unwrap()
    }
}

fn envelope(offer: &connect_candle::ReadableTensor) -> TensorEnvelope {
    TensorEnvelope::from_json(&offer.envelope("x").unwrap().to_json()).unwrap()
}

#[test]
fn p3_what_another_thread_queued_is_in_what_a_peer_reads() {
    let _alone = fake::alone();
    let (sender, receiver) = (connector(InContext), Connector::local().unwrap());
    let device = gpu(0);
    let tensor = produced_elsewhere(&device, 1.);
    assert!(fake::queued(0) > 0, "the test needs something that is not done yet");
    fake::trace();
    let offer = tensor.send_readable(&sender).wait().unwrap();
    let trace = fake::trace();
    let place =
        |line: &str| trace.iter().position(|one| one == line).unwrap_or_else(|| panic!("{line}: {trace:?}"));
    assert!(place("synchronize context 0") < place("offered"), "{trace:?}");
    // The peer knows these addresses as those of a GPU, which its own transport refuses.
    let refused = recv_new(&receiver, &envelope(&offer)).wait().unwrap_err();
    assert!(is_unsupported(&refused), "{refused}");
    let receiver = connector(InContext);
    let received = recv_new(&receiver, &envelope(&offer)).wait().unwrap();
    assert_eq!(received["x"].flatten_all().unwrap().to_vec1::<f32>().unwrap(), numbers(1.));
    offer.wait_for_completion().wait().unwrap();
}

#[test]
fn p3_what_another_thread_queued_is_in_what_is_written_to_a_peer() {
    let _alone = fake::alone();
    let (sender, receiver) = (connector(InContext), connector(InContext));
    let offer = recv_writable_on(&receiver, DType::F32, (20, 30), &Device::Cpu).wait().unwrap();
    let tensor = produced_elsewhere(&gpu(0), 7.);
    tensor.send_into(&sender, offer.metadata()).wait().unwrap();
    let (received, _) = offer.wait_for_completion().wait().unwrap();
    assert_eq!(received.flatten_all().unwrap().to_vec1::<f32>().unwrap(), numbers(7.));
}

fn received_on_a_gpu(arrival: Arrival) {
    let _alone = fake::alone();
    let (sender, receiver) = (connector(arrival), connector(arrival));
    let device = gpu(1);
    let host = Tensor::from_vec(numbers(2.), (20, 30), &Device::Cpu).unwrap();
    // Read by this side into new memory.
    let offer = host.send_readable(&sender).wait().unwrap();
    let received = recv_new_on(&receiver, &envelope(&offer), &device).wait().unwrap();
    assert!(received["x"].device().same_device(&device) && cuda::is_plain(&received["x"]).unwrap());
    assert_eq!(seen_elsewhere(&received["x"]), numbers(2.));
    // Written by a peer.
    let offer = recv_writable_on(&receiver, DType::F32, (20, 30), &device).wait().unwrap();
    host.send_into(&sender, offer.metadata()).wait().unwrap();
    let (written, _) = offer.wait_for_completion().wait().unwrap();
    assert_eq!(seen_elsewhere(&written), numbers(2.));
    // Into an existing tensor, which takes over the memory.
    let offer = host.send_readable(&sender).wait().unwrap();
    let target = produced_elsewhere(&device, 100.);
    let clone = target.clone();
    target.recv_into(&receiver, offer.metadata()).wait().unwrap();
    assert_eq!(seen_elsewhere(&clone), numbers(2.));
    // In place, in two blocks of a pool.
    let pool = cuda::zeros((4, 300), DType::F32, &device).unwrap();
    let offer = host.send_readable(&sender).wait().unwrap();
    let blocks = pool.narrow(0, 1, 2).unwrap();
    // SAFETY: nobody else uses the pool.
    #[expect(unsafe_code, reason = "the method is")]
    let receive = unsafe { blocks.recv_into_unlocked(&receiver, offer.metadata(), ()) };
    receive.wait().unwrap();
    let all = seen_elsewhere(&pool);
    assert_eq!((&all[300..900], &all[..300], &all[900..]), (&*numbers(2.), &[0.; 300][..], &[0.; 300][..]));
}

#[test]
fn p3_what_arrives_by_a_copy_in_the_context_is_seen_by_every_thread() {
    received_on_a_gpu(InContext);
}

#[test]
fn p3_what_arrives_over_the_bus_is_seen_by_every_thread() {
    received_on_a_gpu(OverTheBus);
}

#[test]
fn memory_is_freed_after_what_other_threads_queued_on_it() {
    let _alone = fake::alone();
    let (sender, receiver) = (connector(InContext), connector(InContext));
    let device = gpu(0);
    let tensor = produced_elsewhere(&device, 3.);
    let offer = tensor.send_readable(&sender).wait().unwrap();
    let copy = copied_elsewhere(&tensor);
    // The offer has the last handle.
    drop(tensor);
    recv_new(&receiver, &envelope(&offer)).wait().unwrap();
    offer.wait_for_completion().wait().unwrap();
    drop(sender);
    assert_eq!(copy(), numbers(3.));
}

#[test]
fn every_element_type_and_view_moves_from_one_gpu_to_another() {
    let _alone = fake::alone();
    let (sender, receiver) = (connector(InContext), connector(InContext));
    let (here, there) = (gpu(0), gpu(1));
    let host = Tensor::arange(0f32, 24., &Device::Cpu).unwrap().reshape((2, 3, 4)).unwrap();
    for dtype in [
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
    ] {
        let host = host.to_dtype(dtype).unwrap();
        let tensor = cuda::plain(&host.to_device(&here).unwrap()).unwrap();
        let views = |tensor: &Tensor| {
            [
                tensor.clone(),
                tensor.narrow(1, 1, 2).unwrap(),
                tensor.transpose(0, 2).unwrap(),
                tensor.get(1).unwrap(),
            ]
        };
        for (view, expected) in views(&tensor).into_iter().zip(views(&host)) {
            let offer = view.send_readable(&sender).wait().unwrap();
            let received = recv_new_on(&receiver, &envelope(&offer), &there).wait().unwrap();
            let received = received["x"].to_device(&Device::Cpu).unwrap();
            let bytes = |tensor: &Tensor| common::storage(&tensor.force_contiguous().unwrap()).1;
            assert_eq!((received.dims(), bytes(&received)), (expected.dims(), bytes(&expected)), "{dtype:?}");
        }
    }
}

#[test]
fn tensors_of_the_cpu_and_of_two_gpus_are_one_operation() {
    let _alone = fake::alone();
    let (sender, receiver) = (connector(InContext), connector(OverTheBus));
    let (a, c) = (produced_elsewhere(&gpu(0), 1.), produced_elsewhere(&gpu(1), 3.));
    let b = Tensor::from_vec(numbers(2.), NUMBERS, &Device::Cpu).unwrap();
    let offer = send_tensors(&sender, [("a", &a), ("b", &b), ("c", &c)]).wait().unwrap();
    let devices: Vec<String> =
        offer.envelope().metadata().descriptors().iter().map(|one| one.device().to_string()).collect();
    assert_eq!(devices, ["cuda:0", "cpu", "cuda:1"]);
    let received = recv_new_on(&receiver, offer.envelope(), &gpu(1)).wait().unwrap();
    for (name, from) in [("a", 1.), ("b", 2.), ("c", 3.)] {
        assert_eq!(seen_elsewhere(&received[name]), numbers(from), "{name}");
    }
}

#[test]
fn a_device_with_a_stream_of_its_own_is_waited_for_as_well() {
    let _alone = fake::alone();
    let (sender, receiver) = (connector(InContext), connector(InContext));
    let device = Device::new_cuda_with_stream(0).unwrap();
    let offer = produced_elsewhere(&device, 8.).send_readable(&sender).wait().unwrap();
    let received = recv_new_on(&receiver, &envelope(&offer), &device).wait().unwrap();
    assert_eq!(seen_elsewhere(&received["x"]), numbers(8.));
}

#[test]
fn memory_from_the_pool_is_refused_with_the_remedies_and_each_of_them_works() {
    let _alone = fake::alone();
    let (sender, receiver) = (connector(InContext), connector(InContext));
    let device = gpu(0);
    let pooled = Tensor::from_vec(numbers(6.), NUMBERS, &device).unwrap();
    assert!(!cuda::is_plain(&pooled).unwrap());
    let refused = pooled.send_readable(&sender).wait().unwrap_err();
    let text = refused.to_string();
    assert!(matches!(refused, TensorError::Device { .. }), "{text}");
    for remedy in ["cuda::plain", "cuda::zeros", "cuda::send_staged", "on cuda:0"] {
        assert!(text.contains(remedy), "{text}");
    }
    let offer = cuda::plain(&pooled).unwrap().send_readable(&sender).wait().unwrap();
    let received = recv_new_on(&receiver, &envelope(&offer), &device).wait().unwrap();
    assert_eq!(seen_elsewhere(&received["x"]), numbers(6.));
    let zeros = cuda::zeros(NUMBERS, DType::F32, &device).unwrap();
    let offer = zeros.send_readable(&sender).wait().unwrap();
    assert_eq!(seen_elsewhere(&recv_new(&receiver, &envelope(&offer)).wait().unwrap()["x"]), [0.; NUMBERS]);
    // A plain tensor is not copied once more.
    assert_eq!(address(&cuda::plain(&zeros).unwrap()), address(&zeros));
}

fn address(tensor: &Tensor) -> usize {
    let (storage, _) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { panic!("not on a GPU") };
    std::ptr::from_ref(storage).addr()
}

fn is_unsupported(error: &TensorError) -> bool {
    let TensorError::Operation(Error::Transport { source, .. }) = error else { return false };
    matches!(source, TransportError::UnsupportedDevice { .. })
}

#[test]
fn the_local_transport_refuses_gpu_memory_by_name_and_moves_what_is_staged() {
    let _alone = fake::alone();
    let (sender, receiver) = (Connector::local().unwrap(), Connector::local().unwrap());
    let device = gpu(0);
    let tensor = produced_elsewhere(&device, 9.);
    let refused = tensor.send_readable(&sender).wait().unwrap_err();
    assert!(is_unsupported(&refused) && refused.to_string().contains("cuda:0"), "{refused}");
    let offer = cuda::send_staged(&tensor, &sender).wait().unwrap();
    let onto = |envelope: &TensorEnvelope| recv_new_on(&receiver, envelope, &device).wait();
    assert!(is_unsupported(&onto(&envelope(&offer)).unwrap_err()));
    let received = cuda::recv_new_staged(&receiver, &envelope(&offer), &device).wait().unwrap();
    assert_eq!(seen_elsewhere(&received["x"]), numbers(9.));
}

#[test]
fn digests_are_checked_on_what_arrived_on_a_gpu_and_not_made_there() {
    let _alone = fake::alone();
    let (sender, receiver) = (connector(InContext), connector(OverTheBus));
    let host = Tensor::from_vec(numbers(1.), NUMBERS, &Device::Cpu).unwrap();
    let offer = send_tensors_with_digests(&sender, [("x", &host)]).wait().unwrap();
    let received = recv_new_on(&receiver, offer.envelope(), &gpu(0)).wait().unwrap();
    assert_eq!(seen_elsewhere(&received["x"]), numbers(1.));
    let device = produced_elsewhere(&gpu(0), 1.);
    let refused = send_tensors_with_digests(&sender, [("x", &device)]).wait().unwrap_err();
    assert!(
        matches!(&refused, TensorError::Device { .. }) && refused.to_string().contains("digest"),
        "{refused}"
    );
}

#[test]
fn a_part_of_a_storage_on_a_gpu_is_no_target_and_a_shape_beyond_its_memory_is_an_error() {
    let _alone = fake::alone();
    let (sender, receiver) = (connector(InContext), connector(InContext));
    let device = gpu(0);
    let offer = produced_elsewhere(&device, 1.).send_readable(&sender).wait().unwrap();
    let pool = cuda::zeros((2, NUMBERS), DType::F32, &device).unwrap();
    let refused = pool.get(1).unwrap().recv_into(&receiver, offer.metadata()).wait().unwrap_err();
    assert!(refused.to_string().contains("recv_into_unlocked"), "{refused}");
    let refused = recv_writable_on(&receiver, DType::F64, 1usize << 40, &device).wait().unwrap_err();
    assert!(matches!(refused, TensorError::Allocation { .. }), "{refused}");
    assert!(refused.to_string().contains("(f64 [1099511627776] on cuda:0)"), "{refused}");
}
