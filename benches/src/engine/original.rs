//! The Python original as both sides: two workers of `tests/python/worker.py`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Active, Offers};
use crate::clock;
use crate::lines::Lines;
use crate::{Load, Pieces, Samples};

/// `never-asked-for`, as the worker takes it.
const NEVER_ASKED_FOR: &str = "bmV2ZXItYXNrZWQtZm9y";

/// Seconds after which a worker gives an operation up: longer than a round.
const PATIENCE: u32 = 300;

/// Both workers.
pub(super) struct Original {
    reader: Lines,
    owner: Lines,
    load: Load,
    documents: Vec<Value>,
    /// What is held open so that its regions are registered.
    held: Option<Value>,
}

impl Original {
    pub(super) fn start() -> Result<Self> {
        // Both at once: importing torch takes seconds.
        let (mut reader, mut owner) = (worker()?, worker()?);
        expect(&mut reader, "ready")?;
        expect(&mut owner, "ready")?;
        Ok(Self { reader, owner, load: Load::PAGE, documents: Vec::new(), held: None })
    }

    /// Sends the owner what it never asked for. It never forgets any of that, so a pair is good for one such load.
    fn annoy(&mut self, count: usize) -> Result<()> {
        self.offer()?;
        let metadata = self.documents.first().context("an offer")?;
        self.reader
            .send(&json!({"do": "notify", "metadata": metadata, "body": NEVER_ASKED_FOR, "count": count}))?;
        expect(&mut self.reader, "notified")?;
        self.burst(&mut Samples::default())?;
        self.learned().map(drop)
    }
}

impl Active for Original {
    fn prepare(&mut self, load: &Load) -> Result<()> {
        self.load = *load;
        if load.strangers > 0 {
            self.annoy(load.strangers)?;
        }
        if load.regions > 0 {
            let tensors = tensors(PAGE, load.regions);
            self.owner.send(&json!({"do": "readable", "tensors": tensors, "timeout": PATIENCE}))?;
            self.held = Some(expect(&mut self.owner, "metadata")?["metadata"].take());
        }
        Ok(())
    }

    fn offer(&mut self) -> Result<Offers> {
        let tensors = tensors(self.load.size, self.load.descriptors);
        let started = Instant::now();
        for _ in 0..self.load.in_flight {
            self.owner.send(&json!({"do": "readable", "tensors": tensors, "timeout": PATIENCE}))?;
        }
        self.documents.clear();
        for _ in 0..self.load.in_flight {
            self.documents.push(expect(&mut self.owner, "metadata")?["metadata"].take());
        }
        let took = started.elapsed();
        Ok(Offers { documents: self.documents.iter().map(Value::to_string).collect(), took })
    }

    fn burst(&mut self, reads: &mut Samples) -> Result<()> {
        let tensors = tensors(self.load.size, self.load.descriptors);
        for metadata in &self.documents {
            self.reader.send(&json!({"do": "read", "metadata": metadata, "tensors": tensors}))?;
        }
        for _ in &self.documents {
            let answer = complete(&mut self.reader)?;
            // What the worker itself measured: from `begin_read` to completion.
            let seconds = answer["seconds"].as_f64().context("an answer without seconds")?;
            reads.push(Duration::from_secs_f64(seconds));
        }
        Ok(())
    }

    fn learned(&mut self) -> Result<Option<Duration>> {
        for _ in &self.documents {
            complete(&mut self.owner)?;
        }
        Ok(Some(clock::now()?))
    }

    fn targets(&mut self) -> &mut [Pieces] {
        &mut []
    }

    fn release(&mut self) -> Result<()> {
        if let Some(metadata) = self.held.take() {
            let tensors = tensors(PAGE, self.load.regions);
            self.reader.send(&json!({"do": "read", "metadata": metadata, "tensors": tensors}))?;
            complete(&mut self.reader)?;
            complete(&mut self.owner)?;
        }
        Ok(())
    }

    fn passive(&self) -> Option<u32> {
        Some(self.owner.pid())
    }

    fn active(&self) -> u32 {
        self.reader.pid()
    }
}

/// The size of what is only there to be in the way.
const PAGE: usize = 4096;

/// Starts a worker, with the interpreter that `cargo xtask setup` installed or `CONNECT_PYTHON` names.
fn worker() -> Result<Lines> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python =
        env::var_os("CONNECT_PYTHON").map_or_else(|| root.join(".connect/venv/bin/python"), PathBuf::from);
    let mut command = Command::new(&python);
    command.arg(root.join("tests/python/worker.py")).stderr(Stdio::null());
    Lines::start(&mut command)
        .with_context(|| format!("{} does not start; run `cargo xtask setup`", python.display()))
}

/// The worker's next answer, which has to be this one.
fn expect(worker: &mut Lines, event: &str) -> Result<Value> {
    let answer: Value = worker.receive()?;
    if answer["event"] != event {
        bail!("the Python process answered {answer} and not {event}");
    }
    Ok(answer)
}

fn complete(worker: &mut Lines) -> Result<Value> {
    let answer = expect(worker, "complete")?;
    let is_right = answer["verified"].as_array().is_some_and(|all| all.iter().all(|one| *one == true));
    ensure!(is_right, "the Python process has wrong bytes");
    Ok(answer)
}

fn tensors(size: usize, count: usize) -> Value {
    (0..count).map(|_| json!({"dtype": "uint8", "shape": [size], "seed": 0})).collect()
}
