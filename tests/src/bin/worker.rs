//! `worker`: one side of a transfer as a process, driven over JSON lines. The Rust counterpart of
//! `python/worker.py`, with the same commands and answers:
//!
//! ```text
//! {"do": "readable" | "writable", "tensors": [SPEC...]}     -> metadata, then complete
//! {"do": "read" | "write", "metadata": {...}, "tensors": [SPEC...]}           -> complete
//! ```
//!
//! and three of its own:
//!
//! ```text
//! {"do": "rss"}                        -> {"event": "rss", "bytes": now, "peak": ever}
//! {"do": "stats"}                      -> {"event": "stats", ...}
//! {"do": "load", "library": PATH}      -> {"event": "loaded"}: a second connector, with that NIXL library
//! {"do": "shutdown"}                   -> {"event": "shutdown"}: the connector is shut down
//! ```
//!
//! An error is `{"event": "error", "kind": category, "message": text, "retryable": bool}`. The process ends
//! with its standard input, with status 0 unless the connector could not be built.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use connect_core::transport::local::{DataPath, LocalConfig};
use connect_core::{Connector, DType, Descriptor, DescriptorMut, Error, RdmaMetadata, Slab, Slot};
use connect_tests::pattern;
use serde_json::{Map, Value, json};

/// One side of a transfer, driven over JSON lines.
#[derive(Debug, Parser)]
struct Args {
    /// The transport.
    #[arg(long, value_enum, default_value = "local")]
    transport: Transport,
    /// The NIXL library, or the folder it is in.
    #[arg(long)]
    library: Option<PathBuf>,
    /// The worker's id; random unless given.
    #[arg(long)]
    worker_id: Option<String>,
    /// Takes all memory from slots of this many bytes.
    #[arg(long)]
    slots: Option<usize>,
}

/// Slots of a worker that has them: more than any test has open at once.
const SLOTS: usize = 64;

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Transport {
    /// The embedded transport.
    Local,
    /// The embedded transport, with every byte over the socket.
    LocalStream,
    /// NIXL, found at run time.
    Nixl,
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(io::stderr).init();
    let args = Args::parse();
    let connector = match build(args.transport, args.library, args.worker_id) {
        Ok(connector) => connector,
        Err(error) => {
            say(&Value::Null, &failure(&error));
            return ExitCode::FAILURE;
        }
    };
    let slab = args.slots.map(|bytes| connector.slab(SLOTS, bytes).wait()).transpose();
    let slab = match slab {
        Ok(slab) => slab,
        Err(error) => {
            say(&Value::Null, &failure(&error.into()));
            return ExitCode::FAILURE;
        }
    };
    say(&Value::Null, &json!({"event": "ready", "worker_id": connector.worker_id()}));
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let (connector, slab) = (connector.clone(), slab.clone());
        thread::spawn(move || {
            let command: Value = serde_json::from_str(&line).unwrap_or_default();
            let id = command["id"].clone();
            if let Err(error) = run(&connector, slab.as_ref(), args.transport, &command) {
                say(&id, &failure(&error));
            }
        });
    }
    // Whoever gave the commands is gone. An engine whose threads still run while the process ends is at times
    // caught in the middle of something.
    match connector.shutdown(Duration::from_secs(10)).wait() {
        Ok(()) | Err(Error::ShutDown) => ExitCode::SUCCESS,
        Err(error) => {
            say(&Value::Null, &failure(&error.into()));
            ExitCode::FAILURE
        }
    }
}

#[cfg_attr(not(feature = "nixl"), expect(unused_variables, reason = "only NIXL has a library"))]
fn build(transport: Transport, library: Option<PathBuf>, worker_id: Option<String>) -> Result<Connector> {
    let mut builder = Connector::builder();
    if let Some(id) = worker_id {
        builder = builder.worker_id(id);
    }
    match transport {
        Transport::Local => Ok(builder.build()?),
        Transport::LocalStream => {
            Ok(builder.local(LocalConfig::default().data_path(DataPath::Stream)).build()?)
        }
        #[cfg(feature = "nixl")]
        Transport::Nixl => {
            let mut config = connect_core::transport::nixl::NixlConfig::default();
            if let Some(library) = library {
                config = config.library(library);
            }
            Ok(builder.nixl(config).build()?)
        }
        #[cfg(not(feature = "nixl"))]
        Transport::Nixl => bail!("this worker was built without NIXL"),
    }
}

fn run(connector: &Connector, slab: Option<&Slab>, transport: Transport, command: &Value) -> Result<()> {
    let id = &command["id"];
    match command["do"].as_str().context("a command says what to do")? {
        "readable" | "writable" | "read" | "write" => transfer(connector, slab, command),
        "rss" => {
            say(id, &json!({"event": "rss", "bytes": memory("VmRSS:")?, "peak": memory("VmHWM:")?}));
            Ok(())
        }
        "stats" => {
            say(id, &stats(connector));
            Ok(())
        }
        "load" => {
            let library = command["library"].as_str().context("`library` is a path")?;
            build(transport, Some(library.into()), None)?;
            say(id, &json!({"event": "loaded"}));
            Ok(())
        }
        "shutdown" => {
            connector.shutdown(Duration::from_secs(10)).wait()?;
            say(id, &json!({"event": "shutdown"}));
            Ok(())
        }
        other => bail!("there is no command {other:?}"),
    }
}

fn transfer(connector: &Connector, slab: Option<&Slab>, command: &Value) -> Result<()> {
    let id = &command["id"];
    let timeout = Duration::try_from_secs_f64(command["timeout"].as_f64().unwrap_or(30.0))?;
    let connector = connector.with_deadline(timeout);
    let specs = specs(command)?;
    let started = Instant::now();
    let what = command["do"].as_str().unwrap_or_default();
    let verified = match what {
        "readable" | "write" => {
            let buffers = specs.iter().map(|spec| source(slab, spec)).collect::<Result<Vec<_>>>()?;
            let report = if what == "readable" {
                let operation = connector.create_readable(buffers).wait()?;
                announce(id, command, operation.metadata())?;
                operation.wait_for_completion().wait()?
            } else {
                connector.begin_write(buffers, &metadata(command)?).wait()?.wait_for_completion().wait()?
            };
            // Sources stay with the operation, and nothing can have changed them.
            vec![report.bytes == specs.iter().map(|spec| spec.len as u64).sum::<u64>(); specs.len()]
        }
        _ => {
            let buffers = specs.iter().map(|spec| target(slab, spec)).collect::<Result<Vec<_>>>()?;
            let received = if what == "writable" {
                let operation = connector.create_writable(buffers).wait().map_err(Error::from)?;
                announce(id, command, operation.metadata())?;
                operation.wait_for_completion().wait()
            } else {
                let operation = connector.begin_read(&metadata(command)?, buffers).wait();
                operation.map_err(Error::from)?.wait_for_completion().wait()
            };
            let buffers = received.map_err(Error::from)?.memory;
            buffers.into_iter().zip(&specs).map(|(buffer, spec)| holds(buffer, spec)).collect()
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    say(id, &json!({"event": "complete", "status": "COMPLETE", "seconds": seconds, "verified": verified}));
    Ok(())
}

struct Spec {
    len: usize,
    seed: u64,
}

/// Memory with the pattern in it.
fn source(slab: Option<&Slab>, spec: &Spec) -> Result<Descriptor> {
    let bytes = pattern::bytes(spec.len, spec.seed);
    let Some(slab) = slab else { return Ok(Descriptor::new(bytes)?) };
    let mut slot = slab.take().wait()?;
    slot.write_all(&bytes)?;
    Ok(Descriptor::new(slot)?)
}

/// Memory that is going to be written.
fn target(slab: Option<&Slab>, spec: &Spec) -> Result<DescriptorMut> {
    let Some(slab) = slab else { return Ok(DescriptorMut::new(vec![0u8; spec.len])?) };
    let mut slot = slab.take().wait()?;
    slot.resize(spec.len)?;
    Ok(DescriptorMut::new(slot)?)
}

/// Whether the pattern has arrived in it.
fn holds(target: DescriptorMut, spec: &Spec) -> bool {
    let is_pattern = |bytes: &[u8]| pattern::first_difference(bytes, spec.seed).is_none();
    match target.into_memory::<Vec<u8>>() {
        Ok(bytes) => is_pattern(&bytes),
        Err(target) => target.into_memory::<Slot>().is_ok_and(|slot| is_pattern(&slot)),
    }
}

fn specs(command: &Value) -> Result<Vec<Spec>> {
    let tensors = command["tensors"].as_array().context("`tensors` is a list")?;
    let spec = |tensor: &Value| {
        let dtype = DType::from_torch_name(tensor["dtype"].as_str().unwrap_or("uint8"))?;
        let shape = tensor["shape"].as_array().context("`shape` is a list")?;
        let elements = shape.iter().map(|dim| dim.as_u64().unwrap_or_default()).product();
        let len = dtype.byte_len(elements).context("a tensor is larger than memory")?;
        Ok(Spec { len: usize::try_from(len)?, seed: tensor["seed"].as_u64().unwrap_or_default() })
    };
    tensors.iter().map(spec).collect()
}

fn metadata(command: &Value) -> Result<RdmaMetadata> {
    let metadata = RdmaMetadata::from_json(&command["metadata"].to_string());
    Ok(metadata.map_err(Error::from)?)
}

fn announce(id: &Value, command: &Value, metadata: &RdmaMetadata) -> Result<()> {
    let mut metadata = metadata.clone();
    if command["hex"] == true {
        metadata = metadata.with_hex_encoding()?;
    }
    say(id, &json!({"event": "metadata", "metadata": metadata}));
    Ok(())
}

fn stats(connector: &Connector) -> Value {
    let stats = connector.stats();
    json!({
        "event": "stats",
        "started": stats.started,
        "completed": stats.completed,
        "failed": stats.failed,
        "cancelled": stats.cancelled,
        "deadlines_missed": stats.deadlines_missed,
        "bytes_sent": stats.bytes_sent,
        "bytes_received": stats.bytes_received,
        "open": stats.open,
        "parked": stats.parked,
        "parked_bytes": stats.parked_bytes,
        "unmatched_notifications": stats.unmatched_notifications,
        "registrations": stats.registrations,
    })
}

/// A size from the kernel's account of this process, in bytes.
fn memory(field: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()).context("the kernel tells")?;
    Ok(kibibytes.parse::<u64>()? * 1024)
}

fn failure(error: &anyhow::Error) -> Value {
    match error.downcast_ref::<Error>() {
        Some(known) => json!({
            "event": "error",
            "kind": known.category().to_string(),
            "message": known.to_string(),
            "retryable": known.is_retryable(),
        }),
        None => json!({"event": "error", "kind": "usage", "message": format!("{error:#}")}),
    }
}

fn say(id: &Value, answer: &Value) {
    let mut fields = Map::from_iter([("id".to_owned(), id.clone())]);
    fields.extend(answer.as_object().cloned().unwrap_or_default());
    let mut stdout = io::stdout().lock();
    // Nobody listens any more when this fails, and the process is about to end.
    let _ = writeln!(stdout, "{}", Value::Object(fields)).and_then(|()| stdout.flush());
}
