//! A CUDA device as operations over its memory need it: [`accelerator`], and freeing in order.

use std::sync::Arc;

use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, sys};
use candle_core::{CudaDevice, CudaStorage, Device, Tensor};
use connect_core::Accelerator;
use connect_core::accelerator::run_on_thread_of;

use super::driver;

/// The primary context of a GPU, which all of Candle's devices of its number share.
pub(crate) struct Gpu {
    context: Arc<CudaContext>,
}

/// The device that a Candle device is.
pub(crate) fn accelerator(device: &CudaDevice) -> Arc<dyn Accelerator> {
    Arc::new(Gpu { context: Arc::clone(device.cuda_stream().context()) })
}

impl Accelerator for Gpu {
    fn device(&self) -> connect_core::Device {
        connect_core::Device::cuda(self.context.ordinal() as u32)
    }

    fn bind(&self) -> Result<(), String> {
        self.context.bind_to_thread().map_err(said)
    }

    /// Of the context, not of a stream: `Device::synchronize` of Candle waits for the calling thread's alone.
    fn synchronize(&self) -> Result<(), String> {
        self.context.synchronize().map_err(said)?;
        if self.needs_flush().map_err(said)? {
            driver::flush_remote_writes().map_err(said)?;
        }
        Ok(())
    }
}

impl Gpu {
    /// Whether what other devices write over PCIe may reach this GPU's memory after the news of it, and the host is
    /// the one to do something about that.
    fn needs_flush(&self) -> Result<bool, DriverError> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS as OPTIONS,
            CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING as ORDERING,
        };
        const BY_HOST: i32 =
            sys::CUflushGPUDirectRDMAWritesOptions::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST as i32;
        const FOR_OWNER: i32 =
            sys::CUGPUDirectRDMAWritesOrdering::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER as i32;
        let (options, ordering) = (self.context.attribute(OPTIONS)?, self.context.attribute(ORDERING)?);
        Ok(options & BY_HOST != 0 && ordering < FOR_OWNER)
    }
}

pub(super) fn said(error: DriverError) -> String {
    error.to_string()
}

/// Drops another handle of the tensor on its device's thread once all that was queued is over, so that it is not this
/// thread that frees the memory, in the order of a stream that no work is in.
pub(crate) fn drop_in_order(tensor: &Tensor) {
    if let Device::Cuda(device) = tensor.device() {
        let (gpu, tensor) = (accelerator(device), tensor.clone());
        run_on_thread_of(gpu.device(), move || in_order(gpu.as_ref(), tensor));
    }
}

/// The same of a storage.
pub(crate) fn free_in_order(storage: CudaStorage) {
    let gpu = accelerator(&storage.device);
    run_on_thread_of(gpu.device(), move || in_order(gpu.as_ref(), storage));
}

fn in_order<T>(gpu: &dyn Accelerator, memory: T) {
    // The first error may be one that the context remembered of something else, and tells before it waits. What a
    // device that failed had is of no use to anybody, and may still be written by what it was at: it is kept.
    match gpu.synchronize().or_else(|_| gpu.synchronize()) {
        Ok(()) => drop(memory),
        Err(_) => std::mem::forget(memory),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use candle_core::DType;
    use candle_core::cuda_backend::CudaStorageSlice;

    use crate::cuda::memory::allocate;
    use crate::error::TensorInfo;

    #[test]
    fn memory_that_is_replaced_is_freed_after_what_other_threads_queued_on_it() {
        let Device::Cuda(device) = Device::new_cuda(0).unwrap() else { panic!("not a GPU") };
        let info = TensorInfo::described("", DType::U8, &[64]);
        let (storage, _) = allocate(&device, &info, 64, true).unwrap();
        accelerator(&device).synchronize().unwrap();
        let (queued, is_queued) = mpsc::channel();
        let (freed, is_freed) = mpsc::channel::<()>();
        let copying = thread::spawn(move || {
            let CudaStorageSlice::U8(bytes) = &storage.slice else { panic!("other elements") };
            let copy = bytes.try_clone().unwrap();
            queued.send(storage).unwrap();
            is_freed.recv().unwrap();
            device.clone_dtoh(&copy).unwrap()
        });
        free_in_order(is_queued.recv().unwrap());
        // The device's thread takes one after the other.
        let (done, is_done) = mpsc::channel();
        run_on_thread_of(connect_core::Device::cuda(0), move || done.send(()).unwrap());
        is_done.recv().unwrap();
        freed.send(()).unwrap();
        assert_eq!(copying.join().unwrap(), [0; 64]);
    }
}
