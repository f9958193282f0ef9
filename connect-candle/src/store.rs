//! Puts received content into an existing tensor, under its storage's write lock.
//!
//! The lock is held for an exchange of two pointers, or for one copy of a part: never while bytes travel.

use std::time::Duration;

use candle_core::{CpuStorage, Storage, Tensor};
use connect_core::layout::Run;
use parking_lot::RwLockReadGuard;

use crate::error::{TensorError, TensorInfo};
use crate::view::{self, Buffer};

/// How long to wait for other users of the storage. Longer than any single operation on the CPU runs, and
/// shorter than the deadlines of those who wait for the receive.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Replaces the storage if the tensor covers it, or writes its part of it.
///
/// # Errors
/// [`TensorError::NotStored`], with the content.
pub(crate) fn store(tensor: &Tensor, content: Storage, info: &TensorInfo) -> Result<(), TensorError> {
    // Candle hands out read guards only. A guard knows its lock, and the lock outlives it: it is the tensor's.
    let lock = RwLockReadGuard::rwlock(&tensor.storage_and_layout().0);
    let Some(mut guard) = lock.try_write_for(LOCK_WAIT) else {
        return Err(not_stored(content, info, "its storage stayed locked by other code"));
    };
    let (Ok(current), Ok(new)) = (Buffer::of(&guard, info), Buffer::of(&content, info)) else {
        return Err(not_stored(content, info, "its storage left for another device meanwhile"));
    };
    if current.device != new.device {
        return Err(not_stored(content, info, "its storage left for another device meanwhile"));
    }
    if current.dtype != new.dtype {
        return Err(not_stored(content, info, "its storage changed its element type meanwhile"));
    }
    let Ok(runs) = view::target_runs(&current, tensor.layout(), info) else {
        return Err(not_stored(content, info, "its storage shrank meanwhile"));
    };
    if current.is_covered_by(tensor.layout()) {
        let replaced = std::mem::replace(&mut *guard, content);
        drop(guard);
        // Unmapping a large buffer takes a while; readers need not wait for it.
        view::let_go(replaced);
        return Ok(());
    }
    match (&mut *guard, content) {
        (Storage::Cpu(current), Storage::Cpu(content)) => {
            scatter(current, &content, &runs);
            Ok(())
        }
        (_, content) => Err(not_stored(content, info, "its storage grew meanwhile")),
    }
}

/// Copies consecutive elements of `content` to `runs`.
fn scatter(target: &mut CpuStorage, content: &CpuStorage, runs: &[Run]) {
    macro_rules! scatter {
        ($($variant:ident)*) => {
            match (target, content) {
                $((CpuStorage::$variant(target), CpuStorage::$variant(content)) => copy_runs(target, content, runs),)*
                // Opaque elements move only as whole storages, and the caller compared the types.
                _ => {}
            }
        };
    }
    scatter!(U8 U32 I16 I32 I64 BF16 F16 F32 F64 F8E4M3);
}

fn copy_runs<T: Copy>(target: &mut [T], mut content: &[T], runs: &[Run]) {
    for run in runs {
        let (next, rest) = content.split_at(run.len);
        target[run.offset..][..run.len].copy_from_slice(next);
        content = rest;
    }
}

fn not_stored(content: Storage, info: &TensorInfo, reason: &'static str) -> TensorError {
    let received = Box::new(Tensor::from((content, info.shape.as_slice())));
    TensorError::NotStored { tensor: info.clone(), reason, received }
}
