//! The Python original as both sides of a measurement.

use std::env;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::Samples;

/// A Python process that uses `dynamo.nixl_connect`.
pub struct Original {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Original {
    /// Starts one, with the interpreter that `cargo xtask setup` installed or `CONNECT_PYTHON` names.
    ///
    /// # Errors
    /// There is no such interpreter, or the package does not load in it.
    pub fn start() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let python = env::var_os("CONNECT_PYTHON")
            .map_or_else(|| root.join(".connect/venv/bin/python"), PathBuf::from);
        let mut child = Command::new(&python)
            .arg(root.join("tests/python/worker.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}; run `cargo xtask setup`", python.display()))?;
        let stdin = child.stdin.take().context("its input is a pipe")?;
        let stdout = child.stdout.take().context("its output is a pipe")?;
        let mut original = Self { child, stdin, lines: BufReader::new(stdout).lines() };
        original.answer("ready")?;
        Ok(original)
    }

    /// The Python process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Offers `size` bytes and leaves the offer open.
    ///
    /// # Errors
    /// The process is gone or reports an error.
    pub fn offer(&mut self, size: usize) -> Result<Value> {
        self.send(&json!({"do": "readable", "tensors": tensors(size), "timeout": 300}))?;
        Ok(self.answer("metadata")?["metadata"].take())
    }

    /// Reads what `offers` offers, `rounds` times, as the original measures itself: from `begin_read` to
    /// completion. Also returns the whole rounds.
    ///
    /// # Errors
    /// A process is gone or reports an error.
    pub fn read(&mut self, offers: &mut Self, size: usize, rounds: usize) -> Result<(Samples, Samples)> {
        let (mut reads, mut wholes) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let whole = Instant::now();
            let metadata = offers.offer(size)?;
            self.send(&json!({"do": "read", "metadata": metadata, "tensors": tensors(size)}))?;
            let answer = self.answer("complete")?;
            offers.answer("complete")?;
            wholes.push(whole.elapsed());
            reads.push(Duration::from_secs_f64(answer["seconds"].as_f64().context("no seconds")?));
        }
        Ok((reads.into_iter().collect(), wholes.into_iter().collect()))
    }

    fn send(&mut self, command: &Value) -> Result<()> {
        writeln!(self.stdin, "{command}")?;
        Ok(self.stdin.flush()?)
    }

    fn answer(&mut self, event: &str) -> Result<Value> {
        let line = self.lines.next().context("the Python process is gone")??;
        let answer: Value = serde_json::from_str(&line)?;
        if answer["event"] != event {
            bail!("the Python process answered {line}");
        }
        Ok(answer)
    }
}

impl Drop for Original {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tensors(size: usize) -> Value {
    json!([{"dtype": "uint8", "shape": [size], "seed": 0}])
}
