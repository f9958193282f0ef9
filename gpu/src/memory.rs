//! Tensors with a known content, on a device and in system memory.

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use connect_candle::cuda;

/// Numbers that a seed repeats; neighbours differ, and so do seeds.
pub(crate) fn numbers(seed: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)).collect()
}

/// A tensor of `bytes` bytes that an engine can register.
pub(crate) fn tensor(seed: u32, bytes: usize, device: &Device) -> Result<Tensor> {
    let host = Tensor::from_vec(numbers(seed, bytes / 4), bytes / 4, &Device::Cpu)?;
    Ok(if device.is_cuda() { cuda::plain(&host.to_device(device)?)? } else { host })
}

/// Compares every byte.
pub(crate) fn check(tensor: &Tensor, seed: u32) -> Result<()> {
    let found = tensor.flatten_all()?.to_device(&Device::Cpu)?.to_vec1::<u32>()?;
    let expected = numbers(seed, found.len());
    let wrong = found.iter().zip(&expected).position(|(found, expected)| found != expected);
    ensure!(wrong.is_none(), "element {wrong:?} of {} is wrong", found.len());
    Ok(())
}
