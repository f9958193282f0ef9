//! `peer`: a netcat for tensors. One side of a transfer as a process that speaks JSON lines.
//!
//! ```text
//! peer readable --size 1048576 | tee /tmp/offer    # prints metadata, waits until somebody has read it
//! peer read < /tmp/offer                           # reads it, checks every byte
//! ```
//!
//! Standard input and output carry JSON lines and nothing else; logs go to standard error.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use connect_core::{Connector, Descriptor, DescriptorMut, Error, RdmaMetadata};
use connect_examples::TransportChoice;
use serde_json::{Value, json};

/// A netcat for tensors: offers memory, or reads or writes what another peer offers.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// What to do.
    #[arg(value_enum)]
    role: Role,
    /// Bytes in each buffer. `read` and `write` take the lengths from the metadata unless this is given.
    #[arg(long)]
    size: Option<usize>,
    /// Buffers in each operation.
    #[arg(long)]
    descriptors: Option<usize>,
    /// Byte i of a round's concatenated buffers is `(31 * i + SEED) mod 251`.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Operations, one after another. `read` and `write` also end with their input.
    #[arg(long)]
    rounds: Option<u64>,
    /// The transport.
    #[arg(long, value_enum, default_value = "local")]
    transport: TransportChoice,
    /// How long one operation may take, in seconds.
    #[arg(long, default_value_t = 30.0)]
    timeout: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    /// Offer buffers to be read.
    Readable,
    /// Offer buffers to be written.
    Writable,
    /// Read what the metadata on standard input offers.
    Read,
    /// Write to what the metadata on standard input offers.
    Write,
}

/// Why the program ends with status 1: the `kind` and `message` of its last line.
struct Failure {
    kind: String,
    message: String,
}

impl Failure {
    fn new(kind: &str, message: impl ToString) -> Self {
        Self { kind: kind.to_owned(), message: message.to_string() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(&error.category().to_string(), error)
    }
}

fn main() -> ExitCode {
    connect_examples::engine_logs_to_stderr();
    connect_examples::log_to_stderr();
    let result = match Args::try_parse() {
        Ok(args) => run(&args),
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => Err(Failure::new("usage", error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { kind, message }) => {
            let _ = print(&json!({"event": "error", "kind": kind, "message": message}));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    let timeout = Duration::try_from_secs_f64(args.timeout).map_err(|e| Failure::new("usage", e))?;
    let connector = connect_examples::connector(args.transport, timeout)?;
    match args.role {
        Role::Readable | Role::Writable => {
            for _ in 0..args.rounds.unwrap_or(1) {
                offer(args, &connector)?;
            }
        }
        Role::Read | Role::Write => {
            let rounds = args.rounds.unwrap_or(u64::MAX);
            let mut lines = io::stdin().lock().lines();
            for _ in 0..rounds {
                let Some(line) = lines.next() else { break };
                act(args, &connector, &line.map_err(|e| Failure::new("local", e))?)?;
            }
        }
    }
    connector.shutdown(Duration::from_secs(5)).wait()?;
    Ok(())
}

/// One round of `readable` or `writable`.
fn offer(args: &Args, connector: &Connector) -> Result<(), Failure> {
    let size = args.size.ok_or_else(|| Failure::new("usage", "--size is needed to offer memory"))?;
    let sizes = vec![size; args.descriptors.unwrap_or(1)];
    if args.role == Role::Readable {
        let operation = connector.create_readable(sources(&sizes, args.seed)?).wait()?;
        announce(operation.metadata())?;
        let started = Instant::now();
        let report = operation.wait_for_completion().wait()?;
        complete(report.bytes, started.elapsed(), None)
    } else {
        let operation = connector.create_writable(targets(&sizes)?).wait().map_err(Error::from)?;
        announce(operation.metadata())?;
        let started = Instant::now();
        let received = operation.wait_for_completion().wait().map_err(Error::from)?;
        let elapsed = started.elapsed();
        complete(received.report.bytes, elapsed, Some(follows_pattern(received.memory, args.seed)))
    }
}

/// One round of `read` or `write`.
fn act(args: &Args, connector: &Connector, line: &str) -> Result<(), Failure> {
    let metadata = parse(line)?;
    let offered = metadata.regions();
    let count = args.descriptors.unwrap_or(offered.len());
    let sizes: Vec<usize> = match args.size {
        Some(size) => vec![size; count],
        None => offered.iter().take(count).map(|region| region.len() as usize).collect(),
    };
    let started;
    if args.role == Role::Read {
        let targets = targets(&sizes)?;
        started = Instant::now();
        let operation = connector.begin_read(&metadata, targets).wait().map_err(Error::from)?;
        let received = operation.wait_for_completion().wait().map_err(Error::from)?;
        let elapsed = started.elapsed();
        complete(received.report.bytes, elapsed, Some(follows_pattern(received.memory, args.seed)))
    } else {
        let sources = sources(&sizes, args.seed)?;
        started = Instant::now();
        let operation = connector.begin_write(sources, &metadata).wait()?;
        let report = operation.wait_for_completion().wait()?;
        complete(report.bytes, started.elapsed(), None)
    }
}

/// A line is a metadata document, or the line that `peer readable` and `peer writable` print around one.
fn parse(line: &str) -> Result<RdmaMetadata, Failure> {
    let document = match serde_json::from_str::<Value>(line) {
        Ok(Value::Object(mut event)) if event.contains_key("event") => {
            event.remove("metadata").map_or_else(|| line.to_owned(), |metadata| metadata.to_string())
        }
        _ => line.to_owned(),
    };
    RdmaMetadata::from_json(&document).map_err(|error| Error::from(error).into())
}

fn pattern(index: u64, seed: u64) -> u8 {
    ((31 * (index % 251) + seed % 251) % 251) as u8
}

fn sources(sizes: &[usize], seed: u64) -> Result<Vec<Descriptor>, Failure> {
    let mut index = 0;
    let buffers = sizes.iter().map(|size| {
        let buffer: Vec<u8> = (index..index + *size as u64).map(|i| pattern(i, seed)).collect();
        index += *size as u64;
        Descriptor::new(buffer)
    });
    buffers.collect::<Result<_, _>>().map_err(|error| Error::from(error).into())
}

fn targets(sizes: &[usize]) -> Result<Vec<DescriptorMut>, Failure> {
    let buffers = sizes.iter().map(|size| DescriptorMut::new(vec![0u8; *size]));
    buffers.collect::<Result<_, _>>().map_err(|error| Error::from(error).into())
}

fn follows_pattern(targets: Vec<DescriptorMut>, seed: u64) -> bool {
    let mut index = 0;
    targets.into_iter().all(|target| {
        let Ok(buffer) = target.into_memory::<Vec<u8>>() else { return false };
        let matches = buffer.iter().zip(index..).all(|(byte, i)| *byte == pattern(i, seed));
        index += buffer.len() as u64;
        matches
    })
}

fn announce(metadata: &RdmaMetadata) -> Result<(), Failure> {
    print(&json!({"event": "metadata", "metadata": metadata}))
}

fn complete(bytes: u64, elapsed: Duration, verified: Option<bool>) -> Result<(), Failure> {
    let seconds = elapsed.as_secs_f64();
    let mut line = json!({"event": "complete", "bytes": bytes, "seconds": seconds});
    if let Some(verified) = verified {
        line["verified"] = verified.into();
    }
    print(&line)?;
    match verified {
        Some(false) => Err(Failure::new("corrupt", "the bytes that arrived do not follow the pattern")),
        _ => Ok(()),
    }
}

fn print(line: &Value) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).map_err(|e| Failure::new("local", e))
}
