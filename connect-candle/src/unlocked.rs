//! Receiving in place without a lock, for paged pools whose engine knows which blocks are free.
#![expect(unsafe_code, reason = "implements TargetMemory on the strength of the caller's promise")]

use candle_core::Tensor;
use connect_core::accelerator::Accelerators;
use connect_core::{Connector, RdmaMetadata, Region, Report, TargetMemory, Task};

use crate::Pending;
use crate::error::{TensorError, TensorInfo};
use crate::send::empty;
use crate::{hold, view};

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
    let (regions, accelerators) = match target_regions(tensor, metadata) {
        Ok(target) => target,
        Err(error) => return Task::ready(Err(error)),
    };
    let target = UnlockedTarget { regions, accelerators, lease, _tensor: tensor.clone() };
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
    accelerators: Accelerators,
    lease: L,
    _tensor: Tensor,
}

// SAFETY: the regions were computed from the tensor's storage, inside its buffer and without overlap, and
// the tensor keeps the storage alive. That its buffer is not replaced, and its elements not used, until this
// value is gone is what the caller of `recv_into_unlocked` promised. Candle's elements are numbers, which
// take any bit pattern. The addresses come from the vector's own pointer to its buffer, not from a reference
// to the elements.
unsafe impl<L: Send + 'static> TargetMemory for UnlockedTarget<L> {
    fn regions(&mut self) -> Vec<Region> {
        self.regions.clone()
    }

    fn accelerators(&self) -> Accelerators {
        self.accelerators.clone()
    }
}

fn target_regions(
    tensor: &Tensor,
    metadata: &RdmaMetadata,
) -> Result<(Vec<Region>, Accelerators), TensorError> {
    let info = TensorInfo::new("", tensor);
    view::check_device(tensor.device(), &info)?;
    if tensor.elem_count() == 0 {
        return Err(empty(tensor));
    }
    // Only for the look at the addresses: an offer of other blocks of the same pool may go on.
    let pin = hold::pin(tensor).map_err(|denied| denied.into_error(&info))?;
    let regions = view::target_regions(pin.storage(), tensor.layout(), &info)?;
    let accelerators = view::accelerator(pin.storage()).into_iter().collect();
    Ok((view::split_to_match(&regions, &view::piece_lens(metadata), &info)?, accelerators))
}
