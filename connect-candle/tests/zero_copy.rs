//! Nothing is copied where the documentation says so: the addresses are the same.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod common;

use candle_core::{DType, Device, Tensor};
use common::{connector, counted, elements, storage};
use connect_candle::{TensorExt, recv_new, recv_writable, send_tensors};

#[test]
fn what_is_offered_are_the_tensors_own_elements() {
    let connector = connector();
    let tensor = counted(&[4, 8]);
    let (base, bytes) = storage(&tensor);
    let offer = tensor.send_readable(&connector).wait().unwrap();
    let whole = &offer.metadata().descriptors()[0];
    assert_eq!((whole.region().addr(), whole.size()), (base, bytes.len() as u64));

    let rows = tensor.narrow(0, 1, 2).unwrap();
    let columns = tensor.narrow(1, 2, 3).unwrap();
    let offer = send_tensors(&connector, [("rows", &rows), ("columns", &columns)]).wait().unwrap();
    let pieces: Vec<_> = offer.metadata().regions().iter().map(|r| (r.addr() - base, r.len())).collect();
    assert_eq!(pieces, [(32, 64), (8, 12), (40, 12), (72, 12), (104, 12)]);
}

#[test]
fn a_written_tensor_is_the_memory_that_was_offered() {
    let connector = connector();
    let offer = recv_writable(&connector, DType::BF16, (64, 64)).wait().unwrap();
    let addr = offer.metadata().regions()[0].addr();
    let sent = Tensor::ones((64, 64), DType::BF16, &Device::Cpu).unwrap();
    sent.send_into(&connector, offer.metadata()).wait().unwrap();
    let (tensor, _) = offer.wait_for_completion().wait().unwrap();
    assert_eq!(storage(&tensor).0, addr);
}

#[test]
fn receiving_into_a_whole_tensor_exchanges_its_buffer_for_every_alias() {
    let connector = connector();
    let tensor = counted(&[4, 8]);
    let (alias, view) = (tensor.clone(), tensor.narrow(0, 3, 1).unwrap());
    let (before, _) = storage(&tensor);
    let offer =
        Tensor::ones((4, 8), DType::F32, &Device::Cpu).unwrap().send_readable(&connector).wait().unwrap();
    tensor.recv_into(&connector, offer.metadata()).wait().unwrap();
    assert_ne!(storage(&tensor).0, before);
    assert_eq!(storage(&alias).0, storage(&tensor).0);
    assert_eq!((elements(&alias), elements(&view)), (vec![1.; 32], vec![1.; 8]));
}

#[test]
fn receiving_into_a_part_keeps_the_buffer() {
    let connector = connector();
    let tensor = counted(&[4, 8]);
    let (before, _) = storage(&tensor);
    let offer = counted(&[1, 8]).send_readable(&connector).wait().unwrap();
    tensor.narrow(0, 3, 1).unwrap().recv_into(&connector, offer.metadata()).wait().unwrap();
    assert_eq!(storage(&tensor).0, before);
}

/// Resident memory in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
}

#[test]
fn a_received_tensor_costs_its_own_bytes_of_memory_and_no_more() {
    const BYTES: usize = 256 << 20;
    let connector = connector();
    let sent = Tensor::ones(BYTES / 4, DType::F32, &Device::Cpu).unwrap();
    let offer = sent.send_readable(&connector).wait().unwrap();
    let envelope = offer.envelope("x").unwrap();
    let before = resident();
    let received = recv_new(&connector, &envelope).wait().unwrap();
    let grown = resident() - before;
    assert!(grown < BYTES + BYTES / 8, "{grown} bytes for a tensor of {BYTES}");
    assert_eq!(received["x"].elem_count(), BYTES / 4);
}
