//! Devices: which of libtorch's can be reached. The one place that knows.

use connect_core::Device;
use tch::Tensor;

use crate::error::{TensorError, TensorInfo};

/// Where a defined tensor lives. `None` for devices that tch has no name for (it says `Mps` for meta, xpu and all
/// others) and for those that this library has none for.
pub(crate) fn device_of(tensor: &Tensor) -> Option<Device> {
    match tensor.device() {
        tch::Device::Cpu => Some(Device::CPU),
        tch::Device::Cuda(id) => u32::try_from(id).ok().map(Device::cuda),
        _ => None,
    }
}

/// Refuses what this build can't reach.
pub(crate) fn check(info: &TensorInfo) -> Result<Device, TensorError> {
    let refused = |reason| Err(TensorError::Device { tensor: info.clone(), reason });
    match info.device {
        Some(device) if device == Device::CPU => Ok(device),
        Some(_) => {
            refused("only CPU tensors can move with this build; move it with `to_device(Device::Cpu)` first")
        }
        None => refused(
            "only CPU tensors can move with this build; move it with `to_device(Device::Cpu)` first, or make a new \
             one of a tensor on the device `meta`, which has no content",
        ),
    }
}
