//! Time: the clock that all processes of a machine share, and what a process has used of the processor.

use std::time::Duration;

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// The machine's monotonic clock, which reads the same in every process: a moment that one process writes
/// down can be compared with one of another.
///
/// # Errors
/// The system has no such clock.
pub fn now() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?))
}

/// The processor time that all threads of a process have used, to the nanosecond: `/proc` counts hundredths of
/// a second, which is more than most rounds use.
#[derive(Debug, Clone, Copy)]
pub struct CpuClock(ClockId);

impl CpuClock {
    /// The clock of process `pid`.
    ///
    /// # Errors
    /// The process is gone.
    pub fn of(pid: u32) -> Result<Self> {
        Ok(Self(ClockId::pid_cpu_clock_id(Pid::from_raw(pid.try_into()?))?))
    }

    /// What the process has used so far.
    ///
    /// # Errors
    /// The process is gone.
    pub fn used(self) -> Result<Duration> {
        Ok(Duration::from(self.0.now()?))
    }
}
