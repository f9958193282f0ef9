//! [`Prey`]: the survivor's hold on a victim's process.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::plan::Op;
use super::{Way, victim};

/// How long a victim may take for what is not the subject.
const PATIENCE: Duration = Duration::from_secs(20);

/// A victim's process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Prey {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Value>,
    unclaimed: Vec<Value>,
    fallen: Arc<OnceLock<(Instant, WaitStatus)>>,
    is_continued: bool,
    threads: Vec<JoinHandle<()>>,
    next_id: u64,
}

impl Prey {
    /// Starts this very program as a victim, without waiting until it is ready.
    ///
    /// # Errors
    /// The system refuses.
    pub fn spawn(way: Way, arguments: &[String]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["victim", "--transport", &way.to_string()]).args(arguments);
        command.envs(way.environment());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        if std::env::var_os("RUST_LOG").is_none() {
            command.stderr(Stdio::null());
        }
        let mut child = command.spawn().context("starting a victim")?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("stdout is piped")?;
        let (sender, lines) = channel();
        let reader = thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Ok(answer) = serde_json::from_str(&line) else { continue };
                if sender.send(answer).is_err() {
                    return;
                }
            }
        });
        let fallen = Arc::new(OnceLock::new());
        let (seen, pid) = (Arc::clone(&fallen), child.id());
        let watcher = thread::spawn(move || {
            // It stays to be reaped by `Child`, which alone may do that.
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT;
            if let Ok(status) = waitid(Id::Pid(Pid::from_raw(pid as i32)), flags) {
                let _ = seen.set((Instant::now(), status));
            }
        });
        let threads = vec![reader, watcher];
        Ok(Self {
            child,
            stdin,
            lines,
            unclaimed: Vec::new(),
            fallen,
            is_continued: false,
            threads,
            next_id: 1,
        })
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn ready(&mut self) -> Result<()> {
        self.next(PATIENCE, |answer| answer["ready"] == true).context("a victim does not start")?;
        Ok(())
    }

    /// From here on its trigger counts.
    pub fn arm(&mut self) {
        self.send(&json!({"do": "arm"}));
    }

    /// Tells it to do its part of an operation; `metadata` is the survivor's offer. Returns the operation's id.
    pub fn begin(&mut self, op: &Op, metadata: Option<&Value>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&json!({
            "id": id,
            "do": op.deed.command(),
            "lengths": op.lengths,
            "seed": op.seed,
            "deadline": op.their_deadline.as_millis() as u64,
            "metadata": metadata,
        }));
        id
    }

    fn send(&mut self, command: &Value) {
        // It may be dead already, and then nothing it is told matters.
        let _ = self.stdin.as_mut().map(|stdin| writeln!(stdin, "{command}"));
    }

    /// The metadata of the offer with this id; `None` if it ends, or stops, before it says so.
    pub fn metadata(&mut self, id: u64) -> Option<Value> {
        let answer = self.next(PATIENCE, |answer| answer["id"] == id)?;
        if answer["metadata"].is_null() {
            // How it ended, which somebody will ask for.
            self.unclaimed.push(answer);
            return None;
        }
        Some(answer["metadata"].clone())
    }

    /// How the operation with this id ended: what is wrong with its bytes, or the category of the error.
    ///
    /// # Errors
    /// It does not tell within `patience`.
    pub fn outcome(&mut self, id: u64, patience: Duration) -> Result<Value> {
        let is_end =
            |answer: &Value| answer["id"] == id && (!answer["done"].is_null() || !answer["error"].is_null());
        self.next(patience, is_end).context("a victim's operation does not end")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        // It may be dead already; it can't be anybody else, because nobody has reaped it.
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    /// Continues it, now and whenever it stops itself later, should its trigger go off after all.
    pub fn go_on(&mut self) {
        self.is_continued = true;
        self.signal(Signal::SIGCONT);
    }

    /// When it first stopped or ended, if it has.
    pub fn fallen(&self) -> Option<(Instant, WaitStatus)> {
        self.fallen.get().copied()
    }

    /// Waits until it has stopped or ended.
    pub fn falls_within(&self, patience: Duration) -> Option<(Instant, WaitStatus)> {
        let until = Instant::now() + patience;
        while self.fallen().is_none() && Instant::now() < until {
            thread::sleep(Duration::from_micros(200));
        }
        self.fallen()
    }

    /// Closes its standard input.
    pub fn shut_down(&mut self) {
        self.stdin = None;
    }

    /// Shuts it down, and waits until it has ended. Says whether its connector was closed by then.
    ///
    /// # Errors
    /// It ends with an error or by a signal, or goes on for too long.
    pub fn end(mut self) -> Result<bool> {
        self.shut_down();
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > until {
                bail!("a victim does not end when it is told to");
            }
            self.has_stopped();
            thread::sleep(Duration::from_millis(1));
        };
        let closed = status.code() != Some(victim::NOT_CLOSED.into());
        ensure!(status.success() || !closed, "a victim that was told to end did so badly: {status}");
        Ok(closed)
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(mut self) -> Option<ExitStatus> {
        let _ = self.child.kill();
        self.child.wait().ok()
    }

    fn next(&mut self, patience: Duration, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        if let Some(at) = self.unclaimed.iter().position(&wanted) {
            return Some(self.unclaimed.remove(at));
        }
        let until = Instant::now() + patience;
        while Instant::now() < until {
            // What a process had said before it was stopped is here before the next look.
            let has_stopped = self.has_stopped();
            match self.lines.recv_timeout(Duration::from_millis(20)) {
                Ok(line) if wanted(&line) => return Some(line),
                Ok(line) => self.unclaimed.push(line),
                Err(RecvTimeoutError::Timeout) if has_stopped => return None,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        None
    }

    /// Whether it is stopped, and is to stay so.
    fn has_stopped(&self) -> bool {
        if !matches!(self.fallen(), Some((_, WaitStatus::Stopped(..)))) {
            return false;
        }
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let is_stopped = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
        if is_stopped && self.is_continued {
            self.signal(Signal::SIGCONT);
        }
        is_stopped && !self.is_continued
    }
}

impl Drop for Prey {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
