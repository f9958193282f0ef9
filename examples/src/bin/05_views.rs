//! 05: strided views and slices. A view is sent as the list of its contiguous pieces, never as a hidden copy.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use connect_candle::{TensorError, TensorExt, recv_new};
use connect_core::{Connector, Descriptor, DescriptorMut};

fn main() -> Result<()> {
    let (sender, receiver) = (Connector::local()?, Connector::local()?);

    // Columns 2..4 of a 3 x 6 matrix are three pieces of two elements each.
    let matrix = Tensor::arange(0f32, 18., &Device::Cpu)?.reshape((3, 6))?;
    let columns = matrix.narrow(1, 2, 2)?;
    let offer = columns.send_readable(&sender).wait()?;
    assert_eq!(offer.metadata().descriptors().len(), 3);
    let tensors = recv_new(&receiver, &offer.envelope("columns")?).wait()?;
    assert_eq!(tensors["columns"].to_vec2::<f32>()?, [[2., 3.], [8., 9.], [14., 15.]]);

    // Rows are contiguous, so rows 1..3 are one piece, received into part of an existing tensor.
    let offer = matrix.narrow(0, 1, 2)?.send_readable(&sender).wait()?;
    assert_eq!(offer.metadata().descriptors().len(), 1);
    let target = Tensor::zeros((4, 6), DType::F32, &Device::Cpu)?;
    target.narrow(0, 2, 2)?.recv_into(&receiver, offer.metadata()).wait()?;
    assert_eq!(target.sum(1)?.to_vec1::<f32>()?, [0., 0., 51., 87.]);

    // A large transposed matrix is millions of single elements. Copying it once is cheaper, and only the
    // caller may decide that: the error names the remedy.
    let transposed = Tensor::zeros((2048, 2048), DType::F32, &Device::Cpu)?.t()?;
    let error = transposed.send_readable(&sender).wait().err().context("an error")?;
    assert!(matches!(error, TensorError::Layout { .. }));
    println!("{error}");

    // Without a tensor library: descriptors are cut from a buffer and share it.
    let buffer = Descriptor::new((0..100u8).collect::<Vec<u8>>())?;
    let offer = sender.create_readable(vec![buffer.slice(10..15)?, buffer.slice(90..95)?]).wait()?;
    let (left, right) = DescriptorMut::new(vec![0u8; 10])?.split_at(5)?;
    let read = receiver.begin_read(offer.metadata(), vec![left, right]).wait()?;
    let mut parts = read.wait_for_completion().wait()?.memory;
    // The buffer comes back with the last of its parts.
    parts.truncate(1);
    let whole = parts.pop().and_then(|part| part.into_memory::<Vec<u8>>().ok());
    assert_eq!(whole.as_deref(), Some(&[10, 11, 12, 13, 14, 90, 91, 92, 93, 94][..]));
    Ok(())
}
