//! The victim's process: it does as it is told over JSON lines, as `worker` does, until it ends.
//!
//! ```text
//! {"id": n, "do": "readable" | "writable", "lengths": [...], "seed": s, "deadline": ms}  -> metadata, then done
//! {"id": n, "do": "read" | "write", "metadata": {...}, and the same}                     -> done
//! {"do": "arm"}                                                        from here on the trigger counts
//! ```
//!
//! An operation ends with `{"id": n, "done": true, "wrong": null or where}` or
//! `{"id": n, "error": category, "message": text}`. The end of standard input shuts the connector down.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use connect_core::{Connector, Error, RdmaMetadata};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::Way;
use super::trigger::{Fate, Point, Trigger};
use super::yard::Yard;

/// What a victim is started with.
#[derive(Debug, Clone, clap::Args)]
pub struct Doom {
    /// The transport.
    #[arg(long, value_enum)]
    pub transport: Way,
    /// Where it ends, if by its own hand.
    #[arg(long, value_enum)]
    pub point: Option<Point>,
    /// The how manieth time it gets there.
    #[arg(long, default_value_t = 1)]
    pub nth: u64,
    /// What happens there.
    #[arg(long, value_enum, default_value = "kill")]
    pub fate: Fate,
    /// The worker's id; random unless given.
    #[arg(long)]
    pub worker_id: Option<String>,
}

/// The exit status of a victim whose connector would not close, because a transfer would not end.
pub const NOT_CLOSED: u8 = 7;

/// How long a connector may take to close. Nothing it waits for takes longer than a slice of a copy.
const CLOSES: Duration = Duration::from_secs(4);

/// Runs until standard input ends.
///
/// # Errors
/// The connector can't be built.
pub fn run(doom: &Doom) -> Result<ExitCode> {
    // Or it would stay for ever, should it be stopped when the survivor is ended.
    set_pdeathsig(Signal::SIGKILL)?;
    let trigger = doom.point.map(|point| Trigger::new(point, doom.nth, doom.fate));
    let mut factory = doom.transport.factory()?;
    if let Some(trigger) = &trigger {
        factory = trigger.wrap(factory);
    }
    let mut builder = Connector::builder().transport(factory);
    if let Some(id) = &doom.worker_id {
        builder = builder.worker_id(id);
    }
    let connector = builder.build()?;
    say(&json!({"ready": true}));
    let mut threads = Vec::new();
    for line in io::stdin().lock().lines().map_while(io::Result::ok) {
        let command: Value = serde_json::from_str(&line)?;
        if command["do"] == "arm" {
            trigger.iter().for_each(Trigger::arm);
            continue;
        }
        let connector = connector.clone();
        threads.push(thread::spawn(move || {
            let ended = perform(&connector, &command);
            let mut answer = ended.unwrap_or_else(|error| failure(&error));
            answer["id"] = command["id"].clone();
            say(&answer);
        }));
    }
    let closed = connector.shutdown(CLOSES).wait();
    drop(connector);
    for thread in threads {
        thread.join().ok().context("a thread panicked")?;
    }
    match closed {
        Err(Error::DeadlineExceeded { .. }) => Ok(ExitCode::from(NOT_CLOSED)),
        closed => Ok(closed.map(|()| ExitCode::SUCCESS)?),
    }
}

fn perform(connector: &Connector, command: &Value) -> Result<Value> {
    let deadline = Duration::from_millis(command["deadline"].as_u64().context("`deadline` is a number")?);
    let connector = connector.with_deadline(deadline);
    let lengths = command["lengths"].as_array().context("`lengths` is a list")?;
    let lengths: Vec<usize> = lengths.iter().map(|len| len.as_u64().unwrap_or(0) as usize).collect();
    let seed = command["seed"].as_u64().context("`seed` is a number")?;
    let metadata = || -> Result<RdmaMetadata> {
        let metadata = RdmaMetadata::from_json(&command["metadata"].to_string());
        Ok(metadata.map_err(Error::from)?)
    };
    let yard = Yard::new(false);
    let received = match command["do"].as_str().unwrap_or_default() {
        "readable" => {
            let operation = connector.create_readable(yard.source(&lengths, seed)).wait()?;
            say(&json!({"id": command["id"], "metadata": operation.metadata()}));
            operation.wait_for_completion().wait()?;
            None
        }
        "write" => {
            let operation = connector.begin_write(yard.source(&lengths, seed), &metadata()?).wait()?;
            operation.wait_for_completion().wait()?;
            None
        }
        "writable" => {
            let operation = connector.create_writable(yard.target(&lengths)).wait().map_err(Error::from)?;
            say(&json!({"id": command["id"], "metadata": operation.metadata()}));
            Some(operation.wait_for_completion().wait().map_err(Error::from)?.memory)
        }
        "read" => {
            let operation = connector.begin_read(&metadata()?, yard.target(&lengths)).wait();
            Some(operation.map_err(Error::from)?.wait_for_completion().wait().map_err(Error::from)?.memory)
        }
        other => bail!("there is no command {other:?}"),
    };
    let wrong = received.and_then(|memory| memory.first_difference(seed));
    Ok(json!({"done": true, "wrong": wrong}))
}

fn failure(error: &anyhow::Error) -> Value {
    let category = error.downcast_ref::<Error>().map(|error| error.category().to_string());
    json!({"error": category.unwrap_or_else(|| "usage".to_owned()), "message": format!("{error:#}")})
}

fn say(answer: &Value) {
    let mut stdout = io::stdout().lock();
    // Nobody listens any more when this fails, and the process is about to end.
    let _ = writeln!(stdout, "{answer}").and_then(|()| stdout.flush());
}
