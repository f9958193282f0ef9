//! [`Pair`]: the two processes of an engine, as seen by the process that measures.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::engine::{Answer, Engine};
use crate::lines::Lines;
use crate::{Load, Round};

/// How long an answer may take. The longest rounds are of a minute, and the original's start may read gigabytes of
/// torch from a cold disk.
const PATIENCE: Duration = Duration::from_secs(300);

/// An engine's processes. They are stopped but for the rounds they are asked for: many pairs take turns, and some
/// of them spin.
pub struct Pair {
    active: Lines,
    /// Both sides are in it.
    group: Pid,
}

impl Pair {
    /// Starts both processes, and waits until they are ready.
    ///
    /// # Errors
    /// They do not start; the error says what is missing.
    pub fn start(engine: Engine) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        engine.set_transports(command.args(["--active", &engine.name()]).process_group(0));
        let active = Lines::start(&mut command)?;
        let group = Pid::from_raw(active.pid().try_into()?);
        let mut pair = Self { active, group };
        pair.answer().with_context(|| format!("starting {}", engine.label()))?;
        pair.signal(Signal::SIGSTOP)?;
        Ok(pair)
    }

    /// Has them do one round.
    ///
    /// # Errors
    /// An operation failed, or moved wrong bytes.
    pub fn round(&mut self, load: &Load) -> Result<Round> {
        self.signal(Signal::SIGCONT)?;
        self.active.send(load)?;
        let round = self.answer()?;
        self.signal(Signal::SIGSTOP)?;
        round.context("no round in the answer")
    }

    fn answer(&mut self) -> Result<Option<Round>> {
        // Killed, they end their output, and whoever waits for it learns of that.
        let (answered, waiting) = mpsc::channel::<()>();
        let group = self.group;
        thread::spawn(move || {
            if waiting.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                let _ = killpg(group, Signal::SIGKILL);
            }
        });
        let answer = self.active.receive();
        drop(answered);
        match answer? {
            Answer::Ready => Ok(None),
            Answer::Done(round) => Ok(Some(*round)),
            Answer::Failed(reason) => bail!(reason),
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(killpg(self.group, signal)?)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = self.signal(Signal::SIGKILL);
    }
}
