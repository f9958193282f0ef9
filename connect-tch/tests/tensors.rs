//! libtorch tensors over the embedded transport, in one process.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod common;

use common::{KINDS, bytes, connector, counted, floats};
use connect_core::TensorEnvelope;
use connect_tch::{TensorExt, recv_new, recv_writable, send_tensors};
use tch::{Device, Kind, Tensor};

#[test]
fn every_kind_arrives_by_read_and_by_write() {
    let connector = connector();
    for kind in KINDS {
        let sent = counted(&[3, 5]).to_kind(kind);

        // SAFETY: nobody else has the tensor, here and below.
        let offer = unsafe { sent.send_readable(&connector) }.wait().unwrap();
        let received = recv_new(&connector, &offer.envelope("x").unwrap()).wait().unwrap();
        assert_eq!((received["x"].kind(), received["x"].size()), (kind, vec![3, 5]));
        assert_eq!(bytes(&received["x"]), bytes(&sent), "read {kind:?}");
        offer.wait_for_completion().wait().unwrap();

        let offer = recv_writable(&connector, kind, [3, 5]).wait().unwrap();
        // SAFETY: as above.
        unsafe { sent.send_into(&connector, offer.metadata()) }.wait().unwrap();
        let (written, report) = offer.wait_for_completion().wait().unwrap();
        assert_eq!(report.bytes, bytes(&sent).len() as u64);
        assert_eq!(bytes(&written), bytes(&sent), "write {kind:?}");
    }
}

#[test]
fn views_shared_storage_and_empty_tensors_arrive_under_their_names() {
    let connector = connector();
    let tensor = counted(&[4, 6, 8]);
    let sent = [
        ("whole", tensor.shallow_clone()),
        ("columns", tensor.narrow(2, 3, 4)),
        ("transposed", tensor.transpose(0, 1)),
        ("expanded", counted(&[1, 8]).expand([3, 8], false)),
        ("scalar", tensor.get(3).get(5).get(7)),
        ("empty", tensor.narrow(0, 0, 0)),
        ("needs grad", counted(&[7]).set_requires_grad(true)),
    ];
    // SAFETY: nobody writes to the tensors here.
    let offer = unsafe { send_tensors(&connector, sent.iter().map(|(name, tensor)| (name, tensor))) };
    let offer = offer.wait().unwrap();
    let envelope = TensorEnvelope::from_json(&offer.envelope().to_json()).unwrap();
    let received = recv_new(&connector, &envelope).wait().unwrap();
    for (name, tensor) in &sent {
        assert_eq!(
            (received[*name].size(), floats(&received[*name])),
            (tensor.size(), floats(&tensor.detach()))
        );
    }
    offer.wait_for_completion().wait().unwrap();
}

#[test]
fn nothing_is_copied_on_the_way() {
    let connector = connector();
    let tensor = counted(&[4, 8]);
    // SAFETY: nobody writes to the tensor here.
    let offer = unsafe { tensor.narrow(0, 1, 2).send_readable(&connector) }.wait().unwrap();
    assert_eq!(offer.metadata().regions()[0].addr(), tensor.data_ptr() as u64 + 32);

    let offer = recv_writable(&connector, Kind::Float, [4, 8]).wait().unwrap();
    let addr = offer.metadata().regions()[0].addr();
    // SAFETY: as above.
    unsafe { tensor.send_into(&connector, offer.metadata()) }.wait().unwrap();
    assert_eq!(offer.wait_for_completion().wait().unwrap().0.data_ptr() as u64, addr);
}

#[test]
fn an_offer_keeps_the_storage_alive_when_every_handle_is_gone_or_points_elsewhere() {
    // So large that memory which is freed leaves the process.
    const ELEMENTS: i64 = 16 << 20;
    let connector = connector();
    // No view, which would keep what it is a view of.
    let mut tensor = Tensor::arange(ELEMENTS, (Kind::Float, Device::Cpu));
    // SAFETY: nobody writes to the storage; `set_data` only turns the handle to another one.
    let offer = unsafe { tensor.send_readable(&connector) }.wait().unwrap();
    tensor.set_data(&Tensor::zeros([ELEMENTS], (Kind::Float, Device::Cpu)));
    drop(tensor);
    let _in_its_place = Tensor::ones([ELEMENTS], (Kind::Float, Device::Cpu));
    let received = recv_new(&connector, &offer.envelope("x").unwrap()).wait().unwrap();
    assert_eq!(received["x"], counted(&[ELEMENTS]));
}

#[test]
fn the_futures_move_between_threads() {
    fn is_send<T: Send>(future: T) -> T {
        future
    }
    let connector = connector();
    let tensor = counted(&[8]);
    // SAFETY: nobody writes to the tensor here.
    let sending = is_send(unsafe { tensor.send_readable(&connector) });
    let received = futures_executor::block_on(is_send(async move {
        let offer = sending.await?;
        recv_new(&connector, &offer.envelope("x")?).await
    }));
    assert_eq!(floats(&received.unwrap()["x"]), floats(&tensor));
}
