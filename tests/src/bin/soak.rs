//! `soak`: millions of operations with peers that come and go, and what they cost at the beginning and at the end.
//!
//! ```text
//! soak --transport local --operations 2000000
//! ```
//! One connector, the *keeper*, lives for the whole run. It exchanges batches of operations with a few peer
//! processes, all four kinds at once, small ones, most of them over a pool of buffers and one in sixteen over
//! fresh memory of an odd length. Each peer process drops its connector after some batches and builds a new one,
//! which to the keeper is a peer that has gone and another that comes. Every byte is checked.
//!
//! A hundred times it samples memory, files and threads of all processes and the time per operation, and compares
//! the medians of the first and the last quarter. It ends with status 1 where one has grown beyond its bound.

use std::io::{self, BufRead, BufReader, Lines, Write};
use std::os::unix::process::CommandExt as _;
use std::process::{self, Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use connect_core::{Connector, Error, RdmaMetadata};
use connect_tests::pattern;
use connect_tests::process::{memory, open_files, threads};
use connect_tests::storm::Way;
use serde_json::{Value, json};

/// Performs millions of operations, and compares the last with the first.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    soak: Soak,
}

#[derive(Debug, clap::Args)]
struct Soak {
    /// The transport.
    #[arg(long, value_enum, default_value = "local")]
    transport: Way,
    /// Operations of the keeper.
    #[arg(long, default_value_t = 2_000_000)]
    operations: u64,
    /// Peer processes.
    #[arg(long, default_value_t = 2)]
    peers: usize,
    /// Operations after which a peer process builds a new connector; by default 256 over local, where that costs
    /// a millisecond, and 4096 over NIXL, where it costs 60.
    #[arg(long)]
    renew: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The other side, started by the soak itself.
    Peer {
        /// The transport.
        #[arg(long, value_enum)]
        transport: Way,
    },
}

/// Operations of each of the four kinds in a batch.
const EACH: usize = 8;
/// All operations of a batch.
const BATCH: u64 = 4 * EACH as u64;
/// Bytes of a buffer of the pool.
const BYTES: usize = 4096;
/// Buffers of the pool.
const POOL: usize = 32;
/// One operation in so many goes over fresh memory.
const FRESH: u64 = 16;
/// Samples taken.
const SAMPLES: usize = 100;

/// What may be added to resident memory between the quarters: the allocator's habits. A leak of ten bytes per
/// operation is twice as much.
const MORE_MEMORY: u64 = 8 << 20;
/// And how much longer an operation may take, because of whatever else the machine does.
const MORE_TIME: f64 = 1.5;

fn main() -> Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(io::stderr).init();
    let args = Args::parse();
    if let Some(Role::Peer { transport }) = args.role {
        return peer(transport).map(|()| ExitCode::SUCCESS);
    }
    let environment = args.soak.transport.environment();
    if environment.iter().any(|(name, _)| std::env::var_os(name).is_none()) {
        let mut again = Command::new(std::env::current_exe()?);
        again.args(std::env::args_os().skip(1)).envs(environment);
        return Err(again.exec().into());
    }
    soak(&args.soak)
}

/// A connector and the memory it uses.
struct Side {
    connector: Connector,
    sources: Vec<Arc<Vec<u8>>>,
    targets: Vec<Vec<u8>>,
    count: u64,
}

/// The offers of a side in a batch.
struct Offers {
    readable: Vec<connect_core::ReadableOperation>,
    writable: Vec<connect_core::WritableOperation<Vec<u8>>>,
}

impl Side {
    fn new(way: Way) -> Result<Self> {
        let sources = (0..POOL as u64).map(|seed| Arc::new(pattern::bytes(BYTES, seed))).collect();
        let targets = (0..POOL).map(|_| vec![0; BYTES]).collect();
        Ok(Self { connector: connector(way)?, sources, targets, count: 0 })
    }

    /// The length of the next memory to be offered.
    fn length(&mut self) -> usize {
        self.count += 1;
        if self.count.is_multiple_of(FRESH) { 1 + (self.count as usize * 7919) % (2 * BYTES) } else { BYTES }
    }

    fn source(&self, slot: usize, length: usize) -> Arc<Vec<u8>> {
        if length == BYTES {
            Arc::clone(&self.sources[slot])
        } else {
            Arc::new(pattern::bytes(length, slot as u64))
        }
    }

    fn target(&mut self, length: usize) -> Vec<u8> {
        let pooled = if length == BYTES { self.targets.pop() } else { None };
        pooled.unwrap_or_else(|| vec![0; length])
    }

    fn offer(&mut self) -> Result<(Offers, Vec<Value>)> {
        let mut offers = Offers { readable: Vec::new(), writable: Vec::new() };
        let mut metadata = Vec::new();
        for slot in 0..EACH {
            let length = self.length();
            let operation = self.connector.create_readable(self.source(slot, length)).wait()?;
            metadata.push(serde_json::to_value(operation.metadata())?);
            offers.readable.push(operation);
        }
        for _ in 0..EACH {
            let length = self.length();
            let target = self.target(length);
            let operation = self.connector.create_writable(target).wait().map_err(Error::from)?;
            metadata.push(serde_json::to_value(operation.metadata())?);
            offers.writable.push(operation);
        }
        Ok((offers, metadata))
    }

    /// Takes what the other side offers.
    fn take(&mut self, offered: &Value) -> Result<()> {
        let offered = offered.as_array().context("offers are a list")?;
        ensure!(offered.len() == 2 * EACH, "{} offers", offered.len());
        let documents = offered.iter().map(|json| RdmaMetadata::from_json(&json.to_string()));
        let documents = documents.collect::<Result<Vec<_>, _>>()?;
        let mut reads = Vec::new();
        for document in &documents[..EACH] {
            let target = self.target(document.total_bytes() as usize);
            reads.push(self.connector.begin_read(document, target).wait().map_err(Error::from)?);
        }
        let mut writes = Vec::new();
        for (slot, document) in documents[EACH..].iter().enumerate() {
            let source = self.source(slot, document.total_bytes() as usize);
            writes.push(self.connector.begin_write(source, document).wait()?);
        }
        for (slot, read) in reads.into_iter().enumerate() {
            let received = read.wait_for_completion().wait().map_err(Error::from)?;
            self.check(received.memory, slot)?;
        }
        for write in writes {
            write.wait_for_completion().wait()?;
        }
        Ok(())
    }

    fn finish(&mut self, offers: Offers) -> Result<()> {
        for operation in offers.readable {
            operation.wait_for_completion().wait()?;
        }
        for (slot, operation) in offers.writable.into_iter().enumerate() {
            let received = operation.wait_for_completion().wait().map_err(Error::from)?;
            self.check(received.memory, slot)?;
        }
        Ok(())
    }

    fn check(&mut self, mut memory: Vec<u8>, slot: usize) -> Result<()> {
        let wrong = pattern::first_difference(&memory, slot as u64);
        ensure!(wrong.is_none(), "byte {wrong:?} of {} is wrong", memory.len());
        if memory.len() == BYTES && self.targets.len() < POOL {
            memory.fill(0);
            self.targets.push(memory);
        }
        Ok(())
    }
}

fn connector(way: Way) -> Result<Connector> {
    Ok(Connector::builder().default_deadline(Duration::from_secs(60)).transport(way.factory()?).build()?)
}

/// A peer process: `{"offers": [...], "renew": bool}` is answered with its own offers, and then `{"done": true}`.
fn peer(way: Way) -> Result<()> {
    let mut side = Side::new(way)?;
    let mut stdout = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let command: Value = serde_json::from_str(&line?)?;
        if command["renew"] == true {
            side.connector.shutdown(Duration::from_secs(10)).wait()?;
            side.connector = connector(way)?;
        }
        let (offers, metadata) = side.offer()?;
        writeln!(stdout, "{}", json!({"offers": metadata}))?;
        stdout.flush()?;
        side.take(&command["offers"])?;
        side.finish(offers)?;
        writeln!(stdout, "{}", json!({"done": true}))?;
        stdout.flush()?;
    }
    Ok(())
}

/// The keeper's hold on a peer process.
struct Peer {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    fn spawn(way: Way) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["peer", "--transport", &way.to_string()]).envs(way.environment());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("stdin is piped")?;
        let lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        Ok(Self { child, stdin, lines })
    }

    fn say(&mut self, line: &Value) -> Result<()> {
        writeln!(self.stdin, "{line}")?;
        Ok(self.stdin.flush()?)
    }

    fn next(&mut self) -> Result<Value> {
        let line = self.lines.next().context("a peer process ended")??;
        Ok(serde_json::from_str(&line)?)
    }

    fn end(mut self) -> Result<()> {
        drop(self.stdin);
        let status = self.child.wait()?;
        ensure!(status.success(), "a peer process ended with {status}");
        Ok(())
    }
}

/// One sample: of the keeper, and the most of any peer.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    keeper: Resources,
    peers: Resources,
    /// Time per operation.
    cost: Duration,
}

#[derive(Debug, Clone, Copy, Default)]
struct Resources {
    bytes: u64,
    files: u64,
    threads: u64,
}

impl Resources {
    fn of(pid: u32) -> Result<Self> {
        let bytes = memory(pid, "VmRSS")?;
        Ok(Self { bytes, files: open_files(pid)? as u64, threads: threads(pid)? as u64 })
    }
}

fn soak(args: &Soak) -> Result<ExitCode> {
    let way = args.transport;
    let renew = args.renew.unwrap_or(if way.is_nixl() { 4096 } else { 256 }).max(BATCH);
    let lanes = args.peers.max(1) as u64;
    let mut peers = (0..lanes).map(|_| Peer::spawn(way)).collect::<Result<Vec<_>>>()?;
    let keeper = connector(way)?;
    let slice = (args.operations / SAMPLES as u64 / lanes).max(BATCH);
    println!(
        "soak over {way}: {} operations, {lanes} peer processes, a new peer every {renew}",
        args.operations
    );
    let started = Instant::now();
    // Each lane has buffers of its own, and all share the keeper.
    let mut sides = Vec::new();
    for _ in 0..lanes {
        let mut side = Side::new(way)?;
        side.connector = keeper.clone();
        sides.push(side);
    }
    let mut lives = vec![0u64; lanes as usize];
    let (mut samples, mut done, mut came) = (Vec::new(), 0, lanes);
    while samples.len() < SAMPLES {
        let begun = Instant::now();
        let results = thread::scope(|scope| {
            let lanes = peers.iter_mut().zip(&mut sides).zip(&mut lives);
            let running: Vec<_> = lanes
                .map(|((peer, side), life)| scope.spawn(move || lane(peer, side, life, slice, renew)))
                .collect();
            running
                .into_iter()
                .map(|lane| lane.join().expect("it does not panic"))
                .collect::<Result<Vec<_>>>()
        })?;
        let performed: u64 = results.iter().map(|(performed, _)| performed).sum();
        came += results.iter().map(|(_, came)| came).sum::<u64>();
        done += performed;
        let cost = begun.elapsed() / u32::try_from(performed).unwrap_or(u32::MAX);
        let mut sample = Sample { keeper: Resources::of(process::id())?, cost, ..Sample::default() };
        for peer in &peers {
            let resources = Resources::of(peer.child.id())?;
            let most = &mut sample.peers;
            most.bytes = most.bytes.max(resources.bytes);
            most.files = most.files.max(resources.files);
            most.threads = most.threads.max(resources.threads);
        }
        samples.push(sample);
        if samples.len() % (SAMPLES / 10) == 0 {
            let [keeper, others] = [sample.keeper, sample.peers].map(|of| of.bytes >> 10);
            println!("  {done:>9} operations, {came:>5} peers, {cost:>9.1?} each, {keeper} and {others} KiB");
        }
    }
    for peer in peers {
        peer.end()?;
    }
    let stats = keeper.stats();
    println!("  {:.1} s, {came} peers; {stats:?}", started.elapsed().as_secs_f64());
    ensure!(stats.failed == 0 && stats.open == 0 && stats.parked == 0, "not all went well: {stats:?}");
    Ok(compare(&samples))
}

/// One share of a sample: operations performed, and peers that came.
fn lane(peer: &mut Peer, side: &mut Side, life: &mut u64, slice: u64, renew: u64) -> Result<(u64, u64)> {
    let (mut performed, mut came) = (0, 0);
    while performed < slice {
        let is_new = *life >= renew;
        if is_new {
            *life = 0;
            came += 1;
        }
        let (offers, metadata) = side.offer()?;
        peer.say(&json!({"offers": metadata, "renew": is_new}))?;
        let theirs = peer.next()?;
        side.take(&theirs["offers"])?;
        side.finish(offers)?;
        let done = peer.next()?;
        if done["done"] != true {
            bail!("a peer says {done}");
        }
        performed += BATCH;
        *life += BATCH;
    }
    Ok((performed, came))
}

/// Prints the medians of the first and the last quarter, and says whether one has grown too much.
fn compare(samples: &[Sample]) -> ExitCode {
    let quarter = samples.len() / 4;
    let medians = |of: &dyn Fn(&Sample) -> f64| {
        let median = |samples: &[Sample]| {
            let mut values: Vec<f64> = samples.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        (median(&samples[..quarter]), median(&samples[samples.len() - quarter..]))
    };
    let memory = |first: f64| first + MORE_MEMORY as f64;
    let same = |first: f64| first;
    let longer = |first: f64| first * MORE_TIME;
    type Row<'a> = (&'a str, &'a str, f64, &'a dyn Fn(&Sample) -> f64, &'a dyn Fn(f64) -> f64);
    let rows: [Row<'_>; 7] = [
        ("keeper: resident", "MiB", f64::from(1 << 20), &|sample| sample.keeper.bytes as f64, &memory),
        ("keeper: files", "", 1.0, &|sample| sample.keeper.files as f64, &same),
        ("keeper: threads", "", 1.0, &|sample| sample.keeper.threads as f64, &same),
        ("peers: resident", "MiB", f64::from(1 << 20), &|sample| sample.peers.bytes as f64, &memory),
        ("peers: files", "", 1.0, &|sample| sample.peers.files as f64, &same),
        ("peers: threads", "", 1.0, &|sample| sample.peers.threads as f64, &same),
        ("time per operation", "us", 1e-6, &|sample| sample.cost.as_secs_f64(), &longer),
    ];
    println!("  {:<20} {:>14} {:>14} {:>14}", "medians", "first quarter", "last quarter", "allowed");
    let mut is_well = true;
    for (name, unit, scale, of, bound) in rows {
        let (first, last) = medians(of);
        let allowed = bound(first);
        let verdict = if last <= allowed { "" } else { "GREW" };
        is_well &= last <= allowed;
        let [first, last, allowed] = [first, last, allowed].map(|value| value / scale);
        println!(
            "  {name:<20} {first:>10.2} {unit:<3} {last:>10.2} {unit:<3} {allowed:>10.2} {unit:<3} {verdict}"
        );
    }
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
