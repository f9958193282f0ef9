//! [`CpuTime`]: how much processor a process has used.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Clock ticks per second in `/proc/PID/stat`; fixed to 100 for programs on every Linux architecture.
const TICKS_PER_SECOND: u64 = 100;

/// A moment in a process' life.
#[derive(Debug, Clone, Copy)]
pub struct CpuTime {
    pid: u32,
    used: Duration,
    at: Instant,
}

impl CpuTime {
    /// Reads the time that all threads of process `pid` have used.
    ///
    /// # Errors
    /// The process is gone.
    pub fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is the program's name in brackets, and may hold blanks.
        let (_, fields) = stat.rsplit_once(')').context("malformed stat")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks =
            |index: usize| -> Result<u64> { Ok(fields.get(index).context("malformed stat")?.parse()?) };
        // utime and stime are fields 14 and 15 of the line.
        let ticks = ticks(11)? + ticks(12)?;
        let used = Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND);
        Ok(Self { pid, used, at: Instant::now() })
    }

    /// The share of one core used since this moment, 1.0 being a whole one.
    ///
    /// # Errors
    /// The process is gone.
    pub fn share_since(&self) -> Result<f64> {
        let now = Self::of(self.pid)?;
        Ok((now.used - self.used).as_secs_f64() / (now.at - self.at).as_secs_f64())
    }
}
