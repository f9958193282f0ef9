//! What the kernel tells of a process, and signals to it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The processor time a process has used, over all its threads.
///
/// # Errors
/// The process is gone.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may hold anything, come the state (field 3) and the numbers.
    let (_, fields) = stat.rsplit_once(')').context("stat has a name in parentheses")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: u64 = fields.get(11).context("utime")?.parse::<u64>()? + fields[12].parse::<u64>()?;
    // USER_HZ is 100 on every Linux that Rust runs on.
    Ok(Duration::from_millis(ticks * 10))
}

/// A size from the kernel's account of a process, in bytes: `VmRSS`, `VmHWM`.
///
/// # Errors
/// The process is gone, or there is no such field.
pub fn memory(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()).context("no such field")?;
    Ok(kibibytes.parse::<u64>()? * 1024)
}

/// Sets the peak that `VmHWM` tells of back to what is resident now.
///
/// # Errors
/// The process is gone, or of another user.
pub fn reset_peak(pid: u32) -> Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// How many threads a process has.
///
/// # Errors
/// The process is gone.
pub fn threads(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/task"))?.count())
}

/// How many files a process has open.
///
/// # Errors
/// The process is gone, or of another user.
pub fn open_files(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Sends a signal: `STOP`, `CONT`, `KILL`.
///
/// # Errors
/// The process is gone.
pub fn signal(pid: u32, signal: &str) -> Result<()> {
    let number: Signal = format!("SIG{signal}").parse()?;
    kill(Pid::from_raw(pid.try_into()?), number).with_context(|| format!("kill -{signal} {pid}"))?;
    // A thread that runs on another core goes on for a moment.
    let stopped = || signal != "STOP" || is_stopped(pid);
    ensure!(eventually(Duration::from_secs(10), stopped), "process {pid} does not stop");
    Ok(())
}

/// Whether each thread of a process is stopped, or the process is gone.
fn is_stopped(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state comes after the name, which is in brackets and may have any characters.
        stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['T', 'Z']))
    })
}

/// Waits until `condition` holds; says whether it did in time.
pub fn eventually(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
