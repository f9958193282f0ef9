//! Existing tensors as targets: which can be, and receiving in place.
#![expect(unsafe_code, reason = "implements TargetMemory on the strength of the caller's promise")]

use connect_core::layout::{self, LayoutError};
use connect_core::{Connector, RdmaMetadata, Region, Report, TargetMemory, Task};
use tch::{Kind, Tensor};

use crate::Pending;
use crate::error::{TensorError, TensorInfo};
use crate::fresh::Plan;
use crate::inspect::{self, View};
use crate::send::piece_lens;

/// What must be received for this tensor.
///
/// # Errors
/// It can't be received into: no dense memory, elements that share storage, gradients, nothing at all.
pub(crate) fn check(tensor: &Tensor) -> Result<Plan, TensorError> {
    let (plan, ..) = examine(tensor)?;
    Ok(plan)
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
        let (info, regions) = target_regions(tensor, metadata)?;
        // Not a shallow clone: that is the same tensor object, whose `set_data` exchanges the storage.
        let keep = tensor.f_detach().map_err(|error| inspect::torch(&info, &error.to_string()))?;
        Ok(UnlockedTarget { regions, lease, _tensor: keep })
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
}

fn target_regions(
    tensor: &Tensor,
    metadata: &RdmaMetadata,
) -> Result<(TensorInfo, Vec<Region>), TensorError> {
    let (plan, view) = examine(tensor)?;
    let info = plan.info;
    if plan.kind == Kind::Bool {
        let reason = "truth values must be checked before they are there; use `recv_into`, or receive into a \
            tensor of uint8";
        return Err(TensorError::Unsupported { tensor: info, reason });
    }
    let regions = inspect::regions(&info, &view)?;
    let split = layout::split_to_match(&regions, &piece_lens(metadata));
    let split = split.map_err(|source| inspect::refused(&info, source))?;
    Ok((info, split))
}

/// A target and its view, which shows each element once.
fn examine(tensor: &Tensor) -> Result<(Plan, View), TensorError> {
    let (info, dtype) = inspect::check("", tensor)?;
    if tensor.requires_grad() {
        let reason = "it requires gradients, and autograd would not see what arrives; receive into `detach()`, \
            or into a new tensor";
        return Err(TensorError::Unsupported { tensor: info, reason });
    }
    let view = inspect::view(tensor, &info, dtype)?;
    if view.runs.is_empty() {
        return Err(TensorError::Empty { tensor: info });
    }
    let shape = info.shape.clone().unwrap_or_default();
    let expanded = shape.iter().zip(tensor.stride()).any(|(&dim, stride)| dim > 1 && stride == 0);
    if expanded {
        return Err(inspect::refused(&info, LayoutError::Overlap));
    }
    layout::check_disjoint(&view.runs).map_err(|source| inspect::refused(&info, source))?;
    let (kind, bytes) = (tensor.kind(), view.bytes());
    Ok((Plan { info, kind, shape, bytes }, view))
}
