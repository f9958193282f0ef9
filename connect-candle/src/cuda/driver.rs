//! The calls of CUDA's driver that cudarc has no safe face for, and nothing else.
#![expect(unsafe_code, reason = "calls of a C interface")]

use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DriverError, result, sys};

use sys::CUpointer_attribute as Attribute;

/// Memory of the stream's device that belongs to no pool, for `len` elements of `T`, with whatever was in it.
pub(super) fn plain_memory<T>(stream: &Arc<CudaStream>, len: usize) -> Result<CudaSlice<T>, DriverError> {
    stream.context().bind_to_thread()?;
    // The driver has no memory of no bytes.
    let bytes = len.checked_mul(size_of::<T>()).ok_or(TOO_LARGE)?.max(1);
    // SAFETY: allocates; the context is bound to this thread.
    let address = unsafe { result::malloc_sync(bytes) }?;
    // SAFETY: the memory was allocated just now, has room for `len` elements, and nobody else frees it. What is in it
    // is not read as `T` before it was written: the callers fill it, or have a peer fill it.
    Ok(unsafe { stream.upgrade_device_ptr(address, len) })
}

/// What the driver says of more than it has, too.
pub(super) const TOO_LARGE: DriverError = DriverError(sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY);

/// Sets bytes to zero, in the order of the stream.
pub(super) fn clear(stream: &CudaStream, memory: &mut Range<'_>) -> Result<(), DriverError> {
    stream.context().bind_to_thread()?;
    // SAFETY: the range is memory of the context that its borrow keeps, and nobody else's.
    unsafe { result::memset_d8_async(memory.address, 0, memory.bytes, stream.cu_stream()) }
}

/// Device memory that is borrowed from whoever owns it.
pub(super) struct Range<'a> {
    pub(super) address: u64,
    pub(super) bytes: usize,
    pub(super) _owner: &'a mut dyn Send,
}

/// Makes writes of other devices into the current context's memory visible to it.
pub(super) fn flush_remote_writes() -> Result<(), DriverError> {
    use sys::CUflushGPUDirectRDMAWritesScope::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER as TO_OWNER;
    use sys::CUflushGPUDirectRDMAWritesTarget::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX as CURRENT;
    // SAFETY: takes no memory; the caller has bound the context.
    unsafe { sys::cuFlushGPUDirectRDMAWrites(CURRENT, TO_OWNER) }.result()
}

/// What the driver knows of an address, as far as it decides whether an engine can register it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    /// Memory of a device, and not of the host or of both.
    pub(super) is_device: bool,
    pub(super) is_managed: bool,
    /// Which device.
    pub(super) ordinal: i32,
    /// From a stream-ordered pool.
    pub(super) is_pooled: bool,
    /// Another process can open it by CUDA's first kind of handle, which memory that is mapped piece by piece lacks.
    pub(super) has_legacy_handles: bool,
    /// The allocation that it is in.
    pub(super) start: u64,
    pub(super) bytes: u64,
}

impl Kind {
    /// Asks the driver. A context must be bound to this thread.
    pub(super) fn of(address: u64) -> Result<Self, DriverError> {
        let memory_type: u32 = ask(Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address)?;
        let managed: u32 = ask(Attribute::CU_POINTER_ATTRIBUTE_IS_MANAGED, address)?;
        let pool: usize = ask(Attribute::CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE, address)?;
        let legacy: u32 = ask(Attribute::CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE, address)?;
        Ok(Self {
            is_device: memory_type == sys::CUmemorytype::CU_MEMORYTYPE_DEVICE as u32,
            // The driver writes one byte of these.
            is_managed: managed & 0xff != 0,
            ordinal: ask(Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address)?,
            is_pooled: pool != 0,
            has_legacy_handles: legacy & 0xff != 0,
            start: ask(Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, address)?,
            bytes: ask(Attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE, address)?,
        })
    }
}

/// One attribute of at most the size of `T`; what the driver does not write stays zero.
fn ask<T: bytemuck::Pod>(attribute: Attribute, address: u64) -> Result<T, DriverError> {
    let mut value = T::zeroed();
    let into: *mut T = &mut value;
    // SAFETY: `T` is as large as what the driver writes for this attribute (its reference says a pointer, an unsigned
    // int or a bool), and any bytes are a value of it. The address is not followed by this side.
    unsafe { sys::cuPointerGetAttribute(into.cast::<c_void>(), attribute, address) }.result()?;
    Ok(value)
}
