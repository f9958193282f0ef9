//! Existing tensors as targets: which can be, and receiving in place.
#![expect(unsafe_code, reason = "implements TargetMemory on the strength of the caller's promise")]

use connect_core::accelerator::Accelerators;
use connect_core::layout;
use connect_core::{Connector, RdmaMetadata, Region, Report, TargetMemory, Task};
use tch::{Kind, Tensor};

use crate::Pending;
use crate::device::Place;
use crate::error::TensorError;
use crate::fresh::Plan;
use crate::inspect::{self, Dense, View};
use crate::send::piece_lens;

/// What must be received for this tensor, in pieces like the peer's, and where.
///
/// # Errors
/// It can't be received into: no dense memory, elements that share storage, gradients, nothing at all.
pub(crate) fn check(tensor: &Tensor, metadata: &RdmaMetadata) -> Result<(Plan, Place), TensorError> {
    let (Dense { info, place, .. }, view) = examine(tensor)?;
    let (kind, shape) = (tensor.kind(), info.shape.clone().unwrap_or_default());
    Ok((Plan { info, kind, shape, bytes: view.bytes(), pieces: piece_lens(metadata) }, place))
}

/// Receives straight into the tensor's part of its storage.
///
/// # Safety
/// As [`TensorExt::recv_into_unlocked`](crate::TensorExt::recv_into_unlocked).
pub(crate) unsafe fn recv_into_unlocked<L: Send + 'static>(
    tensor: &Tensor,
    connector: &Connector,
    metadata: &RdmaMetadata,
    lease: L,
) -> Pending<(L, Report)> {
    let prepare = || {
        let (Dense { info, place, .. }, regions) = target_regions(tensor, metadata)?;
        // Not a shallow clone: that is the same tensor object, whose `set_data` exchanges the storage.
        let keep = tensor.f_detach().map_err(|error| inspect::torch(&info, &error.to_string()))?;
        Ok(UnlockedTarget { regions, place, lease, _tensor: keep })
    };
    let target = match prepare() {
        Ok(target) => target,
        Err(error) => return Task::ready(Err(error)),
    };
    Task::after(connector.begin_read(metadata, target), |begun| match begun {
        Ok(operation) => Task::after(operation.wait_for_completion(), |ended| {
            let received = ended.map_err(|failed| failed.error.into());
            Task::ready(received.map(|received| (received.memory.lease, received.report)))
        }),
        Err(failed) => Task::ready(Err(failed.error.into())),
    })
}

/// Elements of a living tensor. Dropped only when nothing writes to them any more.
struct UnlockedTarget<L> {
    regions: Vec<Region>,
    place: Place,
    lease: L,
    _tensor: Tensor,
}

// SAFETY: the regions are those of the tensor's elements, without overlap, and the tensor keeps the storage
// alive. That nobody moves it or uses the elements until this value is gone is what the caller of
// `recv_into_unlocked` promised. The elements are numbers, which take any bit pattern: `Bool` is refused.
unsafe impl<L: Send + 'static> TargetMemory for UnlockedTarget<L> {
    fn regions(&mut self) -> Vec<Region> {
        self.regions.clone()
    }

    fn accelerators(&self) -> Accelerators {
        self.place.accelerator().into_iter().collect()
    }
}

fn target_regions(tensor: &Tensor, metadata: &RdmaMetadata) -> Result<(Dense, Vec<Region>), TensorError> {
    let (dense, view) = examine(tensor)?;
    if tensor.kind() == Kind::Bool {
        let reason = "truth values must be checked before they are there; use `recv_into`, or receive into a \
            tensor of uint8";
        return Err(TensorError::Unsupported { tensor: dense.info, reason });
    }
    let regions = inspect::regions(&dense.info, &view)?;
    let split = layout::split_to_match(&regions, &piece_lens(metadata));
    let split = split.map_err(|source| inspect::refused(&dense.info, source))?;
    Ok((dense, split))
}

/// A target and its view, which shows each element once.
fn examine(tensor: &Tensor) -> Result<(Dense, View), TensorError> {
    let dense = inspect::check("", tensor)?;
    let info = &dense.info;
    if tensor.requires_grad() {
        let reason = "it requires gradients, and autograd would not see what arrives; receive into `detach()`, \
            or into a new tensor";
        return Err(TensorError::Unsupported { tensor: dense.info, reason });
    }
    let view = inspect::view(tensor, &dense)?;
    if view.runs.is_empty() {
        return Err(TensorError::Empty { tensor: dense.info });
    }
    layout::check_disjoint(&view.runs).map_err(|source| inspect::refused(info, source))?;
    Ok((dense, view))
}

#[cfg(test)]
mod tests {
    use connect_core::{Device, Error, MemoryError};

    use super::*;
    use crate::cuda::tests::Fake;

    #[test]
    fn p3_elements_on_a_gpu_are_received_into_only_after_its_device_was_waited_for() {
        let connector = Connector::local().unwrap();
        let offer = connector.create_readable(vec![1f32; 4]).wait().unwrap();
        let tensor = Tensor::zeros([4], (Kind::Float, tch::Device::Cpu));
        let (dense, regions) = target_regions(&tensor, offer.metadata()).unwrap();
        let mut target = UnlockedTarget { regions, place: dense.place, lease: (), _tensor: tensor };
        assert!(target.accelerators().is_empty(), "system memory waits for nothing");
        // It is called a GPU's which is not there: libtorch can't wait for that, and says so.
        target.place = Place::among(&Fake::of(1000), tch::Device::Cuda(999)).unwrap();
        let failed = connector.begin_read(offer.metadata(), target).wait().err().unwrap();
        let Error::Memory(MemoryError::Accelerator { device, reason }) = failed.error else { panic!() };
        assert!(device == Device::cuda(999) && !reason.contains("panicked"), "{device}: {reason}");
    }
}
