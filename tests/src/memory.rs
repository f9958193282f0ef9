//! Buffers that hold the pattern, or take it. Buffer `i` of an operation has `seed + i`, as in the workers.

use anyhow::{Result, ensure};
use connect_core::{Descriptor, DescriptorMut};

use crate::pattern;

/// Buffers of these lengths, filled with the pattern.
///
/// # Errors
/// A length of zero.
pub fn sources(lengths: &[usize], seed: u64) -> Result<Vec<Descriptor>> {
    let buffers = lengths.iter().zip(seed..).map(|(len, seed)| Descriptor::new(pattern::bytes(*len, seed)));
    Ok(buffers.collect::<Result<_, _>>()?)
}

/// Buffers of these lengths, filled with zeros.
///
/// # Errors
/// A length of zero.
pub fn targets(lengths: &[usize]) -> Result<Vec<DescriptorMut>> {
    let buffers = lengths.iter().map(|len| DescriptorMut::new(vec![0u8; *len]));
    Ok(buffers.collect::<Result<_, _>>()?)
}

/// Whether the buffers that [`targets`] made hold the pattern now.
///
/// # Errors
/// They do not; the error names the first wrong byte.
pub fn check(targets: Vec<DescriptorMut>, seed: u64) -> Result<()> {
    for ((target, index), seed) in targets.into_iter().zip(0..).zip(seed..) {
        let buffer = target.into_memory::<Vec<u8>>();
        let Ok(buffer) = buffer else { anyhow::bail!("buffer {index} is not the one that was handed in") };
        let wrong = pattern::first_difference(&buffer, seed);
        ensure!(wrong.is_none(), "byte {wrong:?} of buffer {index} ({} bytes) is wrong", buffer.len());
    }
    Ok(())
}
