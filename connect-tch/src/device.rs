//! Devices: which of libtorch's can be reached, and what this library calls them. The one place that knows.

use std::sync::Arc;

use connect_core::{Accelerator, Device};
use tch::Tensor;

use crate::cuda::{self, Gpus};
use crate::error::{TensorError, TensorInfo};

/// This library's name of a device. `None` for those that tch has no name for (it says `Mps` for meta, xpu and all
/// others) and for those that this library has none for.
pub(crate) fn name(device: tch::Device) -> Option<Device> {
    match device {
        tch::Device::Cpu => Some(Device::CPU),
        tch::Device::Cuda(ordinal) => u32::try_from(ordinal).ok().map(Device::cuda),
        _ => None,
    }
}

/// A device whose memory can be reached, as libtorch and as this library calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    torch: tch::Device,
    device: Device,
}

impl Place {
    pub(crate) const CPU: Self = Self { torch: tch::Device::Cpu, device: Device::CPU };

    /// Where a defined tensor is.
    ///
    /// # Errors
    /// [`TensorError::Device`].
    pub(crate) fn of(tensor: &Tensor, info: &TensorInfo) -> Result<Self, TensorError> {
        let reached = Self::among(&cuda::Torch, tensor.device());
        reached.map_err(|why| TensorError::Device { tensor: info.clone(), reason: why.of_a_tensor() })
    }

    /// Where a tensor is to be.
    ///
    /// # Errors
    /// [`TensorError::Device`], of the tensor that `info` describes.
    pub(crate) fn wanted(
        device: tch::Device,
        info: impl FnOnce() -> TensorInfo,
    ) -> Result<Self, TensorError> {
        let reached = Self::among(&cuda::Torch, device);
        reached.map_err(|why| TensorError::Device { tensor: info(), reason: why.of_a_target() })
    }

    /// The decision, for a program with these GPUs.
    pub(crate) fn among(gpus: &impl Gpus, torch: tch::Device) -> Result<Self, Unreachable> {
        match (torch, name(torch)) {
            (tch::Device::Cpu, _) => Ok(Self::CPU),
            (tch::Device::Cuda(ordinal), Some(device)) if ordinal < gpus.count() => {
                Ok(Self { torch, device })
            }
            (tch::Device::Cuda(_), _) => Err(Unreachable::NoSuchGpu),
            _ => Err(Unreachable::NoTransport),
        }
    }

    pub(crate) fn torch(self) -> tch::Device {
        self.torch
    }

    pub(crate) fn device(self) -> Device {
        self.device
    }

    /// What operations over memory there wait for; nothing for system memory.
    pub(crate) fn accelerator(self) -> Option<Arc<dyn Accelerator>> {
        (!self.device.is_cpu()).then(|| cuda::accelerator(self.device, cuda::Torch))
    }
}

/// Why memory on a device can't be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// libtorch finds no GPU of this number.
    NoSuchGpu,
    /// Neither the CPU nor a CUDA device.
    NoTransport,
}

impl Unreachable {
    fn of_a_tensor(self) -> &'static str {
        match self {
            Self::NoSuchGpu => "libtorch has lost its GPU; move it with `to_device(Device::Cpu)` first",
            Self::NoTransport => {
                "no transport reaches such memory; move it with `to_device(Device::Cpu)` first, or make a new one of a \
                 tensor on the device `meta`, which has no content"
            }
        }
    }

    fn of_a_target(self) -> &'static str {
        match self {
            Self::NoSuchGpu => {
                "libtorch finds no such GPU: there are fewer, or this program was linked without libtorch's CUDA part \
                 (connect-tch's README has the two lines for build.rs); or receive on `Device::Cpu`"
            }
            Self::NoTransport => {
                "no transport reaches the memory of `Device::Mps` and `Device::Vulkan`; receive on `Device::Cpu`, and \
                 move it from there with `to_device`"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::tests::Fake;

    #[test]
    fn the_cpu_and_the_gpus_there_are_can_be_reached_and_nothing_else() {
        let two = Fake::of(2);
        let there = |device| Place::among(&two, device).map(Place::device);
        assert_eq!(there(tch::Device::Cpu), Ok(Device::CPU));
        assert_eq!(there(tch::Device::Cuda(1)), Ok(Device::cuda(1)));
        for ordinal in [2, 1 << 32, usize::MAX] {
            assert_eq!(there(tch::Device::Cuda(ordinal)), Err(Unreachable::NoSuchGpu), "{ordinal}");
        }
        for device in [tch::Device::Mps, tch::Device::Vulkan] {
            assert_eq!(there(device), Err(Unreachable::NoTransport));
        }
        let none = Fake::of(0);
        assert_eq!(Place::among(&none, tch::Device::Cpu), Ok(Place::CPU));
        assert_eq!(Place::among(&none, tch::Device::Cuda(0)), Err(Unreachable::NoSuchGpu));
    }

    #[test]
    fn only_memory_of_a_gpu_is_waited_for() {
        assert!(Place::CPU.accelerator().is_none());
        let place = Place::among(&Fake::of(2), tch::Device::Cuda(1)).unwrap();
        assert_eq!(place.accelerator().unwrap().device(), Device::cuda(1));
    }
}
