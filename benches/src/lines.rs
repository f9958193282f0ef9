//! [`Lines`]: a child process that is talked to in lines of JSON.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A child process that answers each line on its standard input with a line on its standard output. It is killed
/// with this value, and ends by itself with its input.
pub struct Lines {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    line: String,
}

impl Lines {
    /// Starts it.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", command.get_program().display()))?;
        let stdin = child.stdin.take().context("its input is a pipe")?;
        let stdout = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        Ok(Self { child, stdin, stdout, line: String::new() })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says something.
    ///
    /// # Errors
    /// The process is gone.
    pub fn send(&mut self, message: &impl Serialize) -> Result<()> {
        write_line(&mut self.stdin, message)
    }

    /// Waits for the next answer.
    ///
    /// # Errors
    /// The process is gone, or says something else.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.line.clear();
        if self.stdout.read_line(&mut self.line)? == 0 {
            bail!("the process is gone ({})", self.child.wait()?);
        }
        serde_json::from_str(&self.line).with_context(|| format!("it said {}", self.line.trim_end()))
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Answers the process that started this one.
///
/// # Errors
/// It is gone.
pub fn answer(message: &impl Serialize) -> Result<()> {
    write_line(&mut io::stdout().lock(), message)
}

/// In one piece: a line in two writes would wake the reader twice.
fn write_line(to: &mut impl Write, message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)?;
    Ok(to.flush()?)
}

/// What the process that started this one says, until it is gone or says something that can't be understood.
pub fn questions<T: DeserializeOwned>() -> impl Iterator<Item = Result<T>> {
    io::stdin().lines().map(|line| {
        let line = line?;
        serde_json::from_str(&line).with_context(|| format!("it said {line}"))
    })
}
