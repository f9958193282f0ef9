//! How much memory a process has.

use std::fs;

use anyhow::{Context, Result};

/// The resident memory of process `pid`, in bytes.
///
/// # Errors
/// The process is gone.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kibibytes = line.split_whitespace().next().context("VmRSS without a number")?;
    Ok(kibibytes.parse::<u64>()? * 1024)
}
