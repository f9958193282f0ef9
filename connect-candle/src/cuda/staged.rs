//! Tensors that go through system memory, because the caller says so.

use candle_core::{Device, Tensor};
use connect_core::{Connector, ReadableTensor, Task, TensorEnvelope};

use super::accelerator;
use crate::error::{TensorError, TensorInfo};
use crate::{NamedTensors, Pending, TensorExt, recv_new};

/// Copies a CUDA tensor to system memory, and offers the copy. Every transport moves that, and every kind of GPU memory
/// can be copied; it costs the way over the bus and the memory.
///
/// The copy is made on the device's thread, after all that was queued on the device before.
///
/// # Errors
/// Those of [`send_readable`](TensorExt::send_readable) on the copy, and [`TensorError::Candle`].
pub fn send_staged(tensor: &Tensor, connector: &Connector) -> Pending<ReadableTensor> {
    let Device::Cuda(device) = tensor.device() else { return tensor.send_readable(connector) };
    let (tensor, connector) = (tensor.clone(), connector.with_deadline_from_now());
    let copied = connector.run_on(accelerator(device), move || moved(&tensor, &Device::Cpu));
    Task::after(copied, move |copied| match copied.map_err(TensorError::from).and_then(|copy| copy) {
        Ok(copy) => copy.send_readable(&connector),
        Err(error) => Task::ready(Err(error)),
    })
}

/// Receives into system memory, and copies from there to a device. The other half of [`send_staged`], for transports
/// that don't reach GPU memory.
///
/// # Errors
/// Those of [`recv_new`], and [`TensorError::Candle`].
pub fn recv_new_staged(
    connector: &Connector,
    envelope: &TensorEnvelope,
    device: &Device,
) -> Pending<NamedTensors> {
    let Device::Cuda(cuda) = device else { return recv_new(connector, envelope) };
    let (gpu, device, connector) = (accelerator(cuda), device.clone(), connector.with_deadline_from_now());
    Task::after(recv_new(&connector, envelope), move |received| {
        let received = match received {
            Ok(received) => received,
            Err(error) => return Task::ready(Err(error)),
        };
        let there = std::sync::Arc::clone(&gpu);
        let copied = connector.run_on(gpu, move || {
            let report = received.report().clone();
            let copy = |(name, tensor): (String, Tensor)| Ok((name, moved(&tensor, &device)?));
            let tensors = received.into_iter().map(copy).collect::<Result<Vec<_>, TensorError>>()?;
            // The copies are in this thread's queue, and whoever gets the tensors works in another.
            let done = there.synchronize();
            let device = there.device();
            done.map_err(|reason| connect_core::MemoryError::Accelerator { device, reason })
                .map_err(|error| TensorError::Operation(error.into()))?;
            Ok(NamedTensors::new(tensors, report))
        });
        Task::after(copied, |copied| Task::ready(copied.map_err(TensorError::from).and_then(|made| made)))
    })
}

fn moved(tensor: &Tensor, device: &Device) -> Result<Tensor, TensorError> {
    let failed =
        |source| TensorError::Candle { tensor: TensorInfo::new("", tensor), source: Box::new(source) };
    tensor.to_device(device).map_err(failed)
}
