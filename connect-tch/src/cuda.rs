//! libtorch's GPUs: how many there are, and what operations over their memory wait for.
//!
//! tch has no feature for CUDA. Whether there is any is known when a program runs, and depends on how it was linked:
//! the linker drops `libtorch_cuda` unless told otherwise. So this is always compiled.
#![expect(unsafe_code, reason = "waits for a device without tch's unwrap")]

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use connect_core::{Accelerator, Device};
use tch::{Kind, Tensor};

use crate::error::first_line;
use crate::inspect::last_error;

/// What is asked of libtorch about its GPUs; a trait, so that what is decided here can be tested without one.
pub(crate) trait Gpus: Send + Sync + 'static {
    /// How many there are for this program.
    fn count(&self) -> usize;

    /// Queues a trifle from the calling thread, which gives that the device's context. Waits for nothing.
    fn enter(&self, ordinal: u32) -> Result<(), String>;

    /// Blocks until everything is done that any thread has queued on the device.
    fn synchronize(&self, ordinal: u32) -> Result<(), String>;
}

/// libtorch's own.
pub(crate) struct Torch;

impl Gpus for Torch {
    fn count(&self) -> usize {
        usize::try_from(tch::Cuda::device_count()).unwrap_or(0)
    }

    fn enter(&self, ordinal: u32) -> Result<(), String> {
        // CUDA binds a device's context to a thread when that first asks for work, and not when memory comes out of
        // libtorch's cache: so zeros, which are written, and not an empty tensor.
        let zero = Tensor::f_zeros([1], (Kind::Uint8, tch::Device::Cuda(ordinal as usize)));
        zero.map(drop).map_err(|error| first_line(&error.to_string()))
    }

    fn synchronize(&self, ordinal: u32) -> Result<(), String> {
        // `tch::Cuda::synchronize` panics for a device that failed.
        // SAFETY: takes a number, and reports exceptions on the side.
        unsafe { torch_sys::cuda::atc_synchronize(ordinal.into()) };
        last_error()
    }
}

/// A GPU as operations over its memory need it.
pub(crate) fn accelerator(device: Device, gpus: impl Gpus) -> Arc<dyn Accelerator> {
    Arc::new(Gpu { device, gpus })
}

struct Gpu<G> {
    device: Device,
    gpus: G,
}

impl<G: Gpus> Accelerator for Gpu<G> {
    fn device(&self) -> Device {
        self.device
    }

    /// Once for each thread: it keeps the context.
    fn bind(&self) -> Result<(), String> {
        thread_local!(static ENTERED: RefCell<HashSet<Device>> = RefCell::default());
        if !ENTERED.with_borrow(|entered| entered.contains(&self.device)) {
            self.gpus.enter(self.device.id())?;
            ENTERED.with_borrow_mut(|entered| entered.insert(self.device));
        }
        Ok(())
    }

    /// Of the device, not of a stream: tch does not show which one a tensor's work is in.
    fn synchronize(&self) -> Result<(), String> {
        self.gpus.synchronize(self.device.id())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;
    use std::thread;

    use super::*;

    /// GPUs that are none: they write down what they were asked.
    #[derive(Clone)]
    pub(crate) struct Fake {
        count: usize,
        asked: Arc<Mutex<Vec<String>>>,
        fails: Arc<Mutex<bool>>,
    }

    impl Fake {
        pub(crate) fn of(count: usize) -> Self {
            Self { count, asked: Arc::default(), fails: Arc::default() }
        }

        fn ask(&self, what: &str, ordinal: u32) -> Result<(), String> {
            self.asked.lock().unwrap().push(format!("{what} {ordinal}"));
            if *self.fails.lock().unwrap() { Err("an earlier kernel failed".to_owned()) } else { Ok(()) }
        }

        fn take_asked(&self) -> Vec<String> {
            std::mem::take(&mut self.asked.lock().unwrap())
        }
    }

    impl Gpus for Fake {
        fn count(&self) -> usize {
            self.count
        }

        fn enter(&self, ordinal: u32) -> Result<(), String> {
            self.ask("enter", ordinal)
        }

        fn synchronize(&self, ordinal: u32) -> Result<(), String> {
            self.ask("synchronize", ordinal)
        }
    }

    #[test]
    fn a_device_is_waited_for_each_time() {
        let fake = Fake::of(2);
        let gpu = accelerator(Device::cuda(1), fake.clone());
        gpu.synchronize().unwrap();
        gpu.synchronize().unwrap();
        assert_eq!(fake.take_asked(), ["synchronize 1", "synchronize 1"]);
        *fake.fails.lock().unwrap() = true;
        assert_eq!(gpu.synchronize().unwrap_err(), "an earlier kernel failed");
    }

    #[test]
    fn each_thread_gets_the_context_of_each_device_once_and_waits_for_nothing() {
        let fake = Fake::of(2);
        let gpus = [0, 1].map(|id| accelerator(Device::cuda(id), fake.clone()));
        let bind = || {
            for gpu in gpus.iter().chain(&gpus) {
                gpu.bind().unwrap();
            }
        };
        bind();
        assert_eq!(fake.take_asked(), ["enter 0", "enter 1"]);
        thread::scope(|scope| {
            scope.spawn(bind);
        });
        assert_eq!(fake.take_asked(), ["enter 0", "enter 1"]);
    }

    #[test]
    fn a_context_that_could_not_be_had_is_asked_for_again() {
        let fake = Fake::of(1);
        let gpu = accelerator(Device::cuda(0), fake.clone());
        *fake.fails.lock().unwrap() = true;
        assert_eq!(gpu.bind().unwrap_err(), "an earlier kernel failed");
        *fake.fails.lock().unwrap() = false;
        gpu.bind().unwrap();
        assert_eq!(fake.take_asked(), ["enter 0", "enter 0"]);
    }

    #[test]
    fn what_libtorch_says_of_a_gpu_that_is_not_there_is_an_error_and_no_panic() {
        let missing = u32::try_from(Torch.count()).unwrap();
        for said in [Torch.synchronize(missing), Torch.enter(missing)] {
            assert!(!said.unwrap_err().is_empty());
        }
    }
}
