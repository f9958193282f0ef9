//! libtorch tensors in GPU memory: which are taken, and what is waited for.
//!
//! tch has no feature for CUDA: whether there is any is known when a program runs, and depends on how it was linked
//! (`libtorch_cuda` is dropped by the linker unless told otherwise). So this is always compiled.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use connect_core::{Accelerator, Device};

/// What is asked of libtorch about its GPUs; a trait, so that the decisions here can be tested without one.
pub(crate) trait Gpus: Send + Sync + 'static {
    /// How many there are for this program.
    fn count(&self) -> i64;
    /// Blocks until all streams of a device are done.
    fn synchronize(&self, ordinal: i64);
}

/// libtorch's own.
pub(crate) struct Torch;

impl Gpus for Torch {
    fn count(&self) -> i64 {
        if tch::Cuda::is_available() { tch::Cuda::device_count() } else { 0 }
    }

    fn synchronize(&self, ordinal: i64) {
        tch::Cuda::synchronize(ordinal);
    }
}

const NO_CUDA: &str = "this program has no CUDA: libtorch finds no such device, or its CUDA part is not linked \
                       (`-Wl,--no-as-needed -ltorch`); call `to_device(Device::Cpu)` first";
const UNKNOWN: &str = "it is on a device that tch has no name for (it says `Mps` of Metal and all others); call \
                       `to_device(Device::Cpu)` first";

/// Where a device's memory is, for a transport.
pub(crate) fn place(device: tch::Device, gpus: &dyn Gpus) -> Result<Device, &'static str> {
    match device {
        tch::Device::Cpu => Ok(Device::CPU),
        tch::Device::Cuda(ordinal) => match u32::try_from(ordinal) {
            Ok(id) if i64::from(id) < gpus.count() => Ok(Device::cuda(id)),
            _ => Err(NO_CUDA),
        },
        _ => Err(UNKNOWN),
    }
}

/// The device whose queues memory there depends on; none for system memory.
pub(crate) fn accelerator<G: Gpus>(device: Device, gpus: G) -> Option<Arc<dyn Accelerator>> {
    (!device.is_cpu()).then(|| Arc::new(Gpu { device, gpus }) as Arc<dyn Accelerator>)
}

struct Gpu<G> {
    device: Device,
    gpus: G,
}

impl<G: Gpus> Accelerator for Gpu<G> {
    fn device(&self) -> Device {
        self.device
    }

    /// Streams are not shown by tch, nor is binding a context: waiting for the device does that on the way. Once for
    /// each thread, and after the device was waited for elsewhere, it takes no time to speak of.
    fn bind(&self) -> Result<(), String> {
        thread_local!(static BOUND: RefCell<HashSet<Device>> = RefCell::default());
        if BOUND.with_borrow_mut(|bound| bound.insert(self.device)) {
            self.gpus.synchronize(self.device.id().into());
        }
        Ok(())
    }

    /// All streams of the device, of every thread.
    fn synchronize(&self) -> Result<(), String> {
        self.gpus.synchronize(self.device.id().into());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;

    use super::*;

    /// Two GPUs that are none: they write down who was waited for.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<Vec<i64>>>);

    impl Gpus for Fake {
        fn count(&self) -> i64 {
            2
        }

        fn synchronize(&self, ordinal: i64) {
            self.0.lock().unwrap().push(ordinal);
        }
    }

    #[test]
    fn what_is_no_gpu_of_this_program_is_refused_with_the_remedy() {
        let fake = Fake::default();
        assert_eq!(place(tch::Device::Cpu, &fake), Ok(Device::CPU));
        assert_eq!(place(tch::Device::Cuda(1), &fake), Ok(Device::cuda(1)));
        assert!(place(tch::Device::Cuda(2), &fake).unwrap_err().contains("no-as-needed"));
        assert!(place(tch::Device::Mps, &fake).unwrap_err().contains("to_device(Device::Cpu)"));
        assert!(accelerator(Device::CPU, fake).is_none());
    }

    #[test]
    fn a_device_is_waited_for_each_time_and_bound_once_in_each_thread() {
        let fake = Fake::default();
        let gpu = accelerator(Device::cuda(1), fake.clone()).unwrap();
        gpu.synchronize().unwrap();
        gpu.synchronize().unwrap();
        assert_eq!(*fake.0.lock().unwrap(), [1, 1]);
        let bind = || {
            gpu.bind().unwrap();
            gpu.bind().unwrap();
        };
        thread::scope(|scope| {
            scope.spawn(bind);
        });
        bind();
        assert_eq!(*fake.0.lock().unwrap(), [1, 1, 1, 1]);
    }

    #[test]
    fn a_machine_without_a_gpu_has_none() {
        assert_eq!(Torch.count() > 0, tch::Cuda::is_available());
        if Torch.count() == 0 {
            assert!(place(tch::Device::Cuda(0), &Torch).is_err());
        }
    }
}
