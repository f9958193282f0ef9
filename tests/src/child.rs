//! [`Worker`]: a process that speaks the JSON lines of `python/worker.py`, in Python or in Rust.
//!
//! Nothing here waits without a limit, and no process outlives its [`Worker`]: it is killed on drop, and a
//! worker ends by itself with its standard input, should this process be killed.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::require;

/// How long a worker may take for one answer. Python imports torch first, on two cores beside spinning
/// progress threads of other agents.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// How long a worker may take to get ready: the first Python on a fresh machine reads gigabytes of torch from a
/// disk, while others that are ready spin on both cores.
const START: Duration = Duration::from_secs(300);

/// A worker process.
pub struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Value>,
    /// Answers that came while others were waited for.
    unclaimed: Vec<Value>,
    stderr: Arc<Mutex<Vec<u8>>>,
    next_id: u64,
    name: String,
}

impl Worker {
    /// Starts the Python original, and waits until it is ready.
    ///
    /// # Errors
    /// It does not start; the error shows what it wrote to stderr.
    pub fn python(interpreter: &Path, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(interpreter);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/worker.py")).args(arguments);
        Self::ready(command)
    }

    /// Starts the Rust worker, whose path a test knows as `env!("CARGO_BIN_EXE_worker")`, and waits until
    /// it is ready.
    ///
    /// # Errors
    /// It does not start; the error shows what it wrote to stderr.
    pub fn rust<S: AsRef<OsStr>>(worker: &str, arguments: &[S]) -> Result<Self> {
        let mut command = Command::new(worker);
        command.args(arguments);
        Self::ready(command)
    }

    /// Starts any program that speaks the protocol, and waits until it is ready.
    ///
    /// # Errors
    /// It does not start; the error shows what it wrote to stderr.
    pub fn ready(command: Command) -> Result<Self> {
        let mut worker = Self::spawn(command)?;
        let ready = worker.next_within(START, |answer| answer["event"] == "ready");
        ready.context("the worker does not get ready")?;
        Ok(worker)
    }

    /// Starts any program that speaks the protocol.
    ///
    /// # Errors
    /// The system refuses.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let name = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("stdout is piped")?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Whatever else is printed is no answer, but the test shall see it.
                let answer = serde_json::from_str(&line).unwrap_or_else(|_| json!({"noise": line}));
                if sender.send(answer).is_err() {
                    return;
                }
            }
        });
        let log = Arc::new(Mutex::new(Vec::new()));
        let copy = Arc::clone(&log);
        thread::spawn(move || copy_to(stderr, &copy));
        Ok(Self { child, stdin, lines, unclaimed: Vec::new(), stderr: log, next_id: 1, name })
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a command, whose answers carry the id that is returned.
    ///
    /// # Errors
    /// The process is gone.
    pub fn send(&mut self, mut command: Value) -> Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        command["id"] = id.into();
        let line = format!("{command}\n");
        let stdin = self.stdin.as_mut().context("its standard input is closed")?;
        let written = stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush());
        written.with_context(|| format!("sending to {}{}", self.name, self.last_words()))?;
        Ok(id)
    }

    /// The next answer to command `id`, whatever it is.
    ///
    /// # Errors
    /// The process ended, or did not answer for [`PATIENCE`].
    pub fn answer(&mut self, id: u64) -> Result<Value> {
        self.next(|answer| answer["id"] == id)
    }

    /// The next answer to command `id`, which must be `event`.
    ///
    /// # Errors
    /// It is something else, or none comes.
    pub fn expect(&mut self, id: u64, event: &str) -> Result<Value> {
        let answer = self.answer(id)?;
        ensure!(
            answer["event"] == event,
            "{} answered {answer} instead of {event}{}",
            self.name,
            self.last_words()
        );
        Ok(answer)
    }

    /// Sends a command and takes its first answer, which must be `event`.
    ///
    /// # Errors
    /// As [`expect`](Self::expect).
    pub fn ask(&mut self, command: Value, event: &str) -> Result<Value> {
        let id = self.send(command)?;
        self.expect(id, event)
    }

    /// Offers memory: `readable` or `writable`, one tensor of bytes for each length. Returns the command's
    /// id and the metadata document.
    ///
    /// # Errors
    /// As [`expect`](Self::expect).
    pub fn offer(&mut self, what: &str, lengths: &[usize], seed: u64) -> Result<(u64, String)> {
        let id = self.send(json!({"do": what, "tensors": tensors(lengths, seed)}))?;
        let answer = self.expect(id, "metadata")?;
        Ok((id, answer["metadata"].to_string()))
    }

    /// Reads or writes what `metadata` offers, without waiting for the end.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn begin(&mut self, what: &str, metadata: &str, lengths: &[usize], seed: u64) -> Result<u64> {
        let metadata: Value = serde_json::from_str(metadata)?;
        self.send(json!({"do": what, "metadata": metadata, "tensors": tensors(lengths, seed)}))
    }

    /// Waits until a transfer is complete and its tensors hold the pattern.
    ///
    /// # Errors
    /// As [`expect`](Self::expect), or other bytes arrived.
    pub fn completed(&mut self, id: u64) -> Result<Value> {
        let answer = self.expect(id, "complete")?;
        let verified = answer["verified"].as_array().context("a completion says what it verified")?;
        ensure!(answer["status"] == "COMPLETE", "{answer}");
        ensure!(!verified.is_empty() && verified.iter().all(|ok| ok == true), "wrong bytes: {answer}");
        Ok(answer)
    }

    /// What the process has written to stderr so far.
    pub fn stderr(&self) -> String {
        let log = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills the process (`SIGKILL`) and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Closes the process's standard input, and waits until it has ended.
    ///
    /// # Errors
    /// It goes on for [`PATIENCE`].
    pub fn end(&mut self) -> Result<ExitStatus> {
        self.stdin = None;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        bail!("{} does not end{}", self.name, self.last_words())
    }

    /// The next answer for which `wanted` holds; others are kept.
    ///
    /// # Errors
    /// The process ended, or gave no such answer for [`PATIENCE`].
    pub fn next(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.next_within(PATIENCE, wanted)
    }

    fn next_within(&mut self, patience: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        if let Some(at) = self.unclaimed.iter().position(&wanted) {
            return Ok(self.unclaimed.remove(at));
        }
        let deadline = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if wanted(&line) => return Ok(line),
                Ok(line) => self.unclaimed.push(line),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{} gave no answer in {patience:?}{}", self.name, self.last_words())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.end()?;
                    bail!("{} ended ({status}) without an answer{}", self.name, self.last_words())
                }
            }
        }
    }

    /// What may explain a failure.
    fn last_words(&self) -> String {
        format!("\nunclaimed answers: {:?}\nstderr:\n{}", self.unclaimed, self.stderr())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("{}{}", self.name, self.last_words());
        }
    }
}

fn tensors(lengths: &[usize], seed: u64) -> Value {
    let one = |(i, len): (usize, &usize)| json!({"dtype": "uint8", "shape": [len], "seed": seed + i as u64});
    lengths.iter().enumerate().map(one).collect()
}

fn copy_to(mut from: impl Read, to: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        to.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..read]);
    }
}

/// One Python worker for all tests of a file: each burns a core with its progress thread, and takes seconds
/// to start. Tests that use it run one after another.
///
/// It is never dropped, and ends with this process.
static SHARED: Mutex<Option<Worker>> = Mutex::new(None);

/// The Python worker that the tests of a file share, locked.
pub struct Shared(MutexGuard<'static, Option<Worker>>);

impl Shared {
    /// Locks the worker, and starts it if it does not run; `None` where there is no Python.
    ///
    /// # Errors
    /// It does not start.
    pub fn python() -> Result<Option<Self>> {
        let Some(interpreter) = require::python() else { return Ok(None) };
        let mut worker = SHARED.lock().unwrap_or_else(|poisoned| {
            // A test failed with it, so nobody knows what it is still busy with.
            SHARED.clear_poison();
            let mut worker = poisoned.into_inner();
            *worker = None;
            worker
        });
        if !worker.as_mut().is_some_and(Worker::is_alive) {
            *worker = Some(Worker::python(&interpreter, &[])?);
        }
        Ok(Some(Self(worker)))
    }
}

impl Deref for Shared {
    type Target = Worker;

    fn deref(&self) -> &Worker {
        self.0.as_ref().expect("started when it was locked")
    }
}

impl DerefMut for Shared {
    fn deref_mut(&mut self) -> &mut Worker {
        self.0.as_mut().expect("started when it was locked")
    }
}
