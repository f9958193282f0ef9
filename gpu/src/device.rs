//! The GPU, or a loud failure.

use anyhow::{Context, Result, bail};
use candle_core::Device;

/// A real one.
pub(crate) struct Found {
    pub(crate) device: Device,
    /// Name, memory, driver.
    pub(crate) description: String,
}

/// The first GPU.
///
/// # Errors
/// There is none, or it is the fake one of the tests.
pub(crate) fn find() -> Result<Found> {
    let device = Device::new_cuda(0).context(
        "NO GPU: CUDA's driver found no device that works. This suite shows something on a machine with a GPU only, and \
         passes nowhere else",
    )?;
    let Device::Cuda(cuda) = &device else { bail!("NO GPU: candle made another device") };
    let stream = cuda.cuda_stream();
    let context = stream.context();
    let name = context.name()?;
    if name.contains("fake") {
        bail!("NO GPU: this is {name:?}, the stand-in of the tests. What it does says nothing about a GPU");
    }
    let (major, minor) = context.compute_capability()?;
    let gib = context.total_mem()? >> 30;
    Ok(Found { description: format!("{name}, {gib} GiB, compute capability {major}.{minor}"), device })
}
