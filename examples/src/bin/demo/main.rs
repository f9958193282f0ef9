//! `demo`: a checkpoint moves from one process to another, tensor by tensor, and every byte is checked.
//!
//! The first process serves a safetensors checkpoint from disk, without loading it. The second reads
//! it into new Candle tensors (with `--python`: a Python worker that uses `dynamo.nixl_connect`, into torch
//! tensors) and compares them with the file. This program starts both, carries their metadata, and reports.

mod checkpoint;
mod lines;
mod receiver;
mod report;
mod sender;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use connect_examples::TransportChoice;
use indicatif::{ProgressBar, ProgressStyle};

use lines::{Event, Worker};
use report::Report;

/// Moves a safetensors checkpoint from one process to another and checks every byte.
#[derive(Debug, Parser)]
struct Args {
    /// The checkpoint; unless given, a seeded one is made on first use.
    #[arg(long)]
    file: Option<PathBuf>,
    /// The size of the seeded checkpoint, in MB.
    #[arg(long, default_value_t = 256)]
    size_mb: u64,
    /// Over NIXL instead of the embedded transport.
    #[arg(long)]
    nixl: bool,
    /// The receiver is a Python worker that uses the original, dynamo.nixl_connect; implies --nixl.
    #[arg(long)]
    python: bool,
    /// Set by this program for the processes that it starts.
    #[arg(long, value_enum, hide = true)]
    role: Option<Role>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    Sender,
    Receiver,
}

impl Args {
    fn transport(&self) -> TransportChoice {
        if self.nixl || self.python { TransportChoice::Nixl } else { TransportChoice::Local }
    }
}

fn main() -> Result<()> {
    connect_examples::engine_logs_to_stderr();
    connect_examples::log_to_stderr();
    let args = Args::parse();
    match (args.role, &args.file) {
        (None, _) => coordinate(&args),
        (Some(Role::Sender), Some(file)) => sender::run(file, args.transport()),
        (Some(Role::Receiver), Some(file)) => receiver::run(file, args.transport()),
        (Some(_), None) => anyhow::bail!("a process of the demo needs --file"),
    }
}

/// Starts both processes, carries the offers from one to the other, and shows how it went.
fn coordinate(args: &Args) -> Result<()> {
    let file = match &args.file {
        Some(file) => file.clone(),
        None => checkpoint::seeded(args.size_mb)?,
    };
    let file = fs::canonicalize(&file).with_context(|| format!("opening {}", file.display()))?;
    let mut sender = Worker::start("sender", role(args, Role::Sender, &file)?)?;
    let mut receiver = if args.python {
        Worker::start("Python receiver", python(&file))?
    } else {
        Worker::start("receiver", role(args, Role::Receiver, &file)?)?
    };
    let Event::Loaded { tensors, bytes, offers } = sender.next()? else {
        anyhow::bail!("the sender did not say what it loaded");
    };
    receiver.expect_ready()?;

    let bar = ProgressBar::new(bytes).with_style(
        ProgressStyle::with_template("{msg} [{bar:40}] {bytes}/{total_bytes} {binary_bytes_per_sec}")?
            .progress_chars("=> "),
    );
    bar.set_message("Receiving and checking");
    let mut report = Report::new(tensors, bytes);
    for _ in 0..offers {
        let Event::Offer { envelope } = sender.next()? else {
            anyhow::bail!("the sender did not make its next offer");
        };
        receiver.tell(&Event::Offer { envelope })?;
        let Event::Received { bytes, descriptors, seconds, connect_seconds } = receiver.next()? else {
            anyhow::bail!("the receiver did not say what it received");
        };
        report.add(bytes, descriptors, seconds, connect_seconds);
        bar.inc(bytes);
    }
    bar.finish_and_clear();
    sender.close();
    receiver.close();
    for (worker, resident) in [(&mut sender, &mut report.sender_mb), (&mut receiver, &mut report.receiver_mb)]
    {
        let Event::Finished { resident_mb } = worker.next()? else {
            anyhow::bail!("{} did not finish", worker.name());
        };
        *resident = resident_mb;
        worker.wait()?;
    }
    ensure!(report.moved() == bytes, "{} of {bytes} bytes arrived", report.moved());
    println!("{}", report.table(args.transport(), args.python));
    println!("All {tensors} tensors arrived, and every byte equals the file's.");
    Ok(())
}

/// This program again, as one of the two.
fn role(args: &Args, role: Role, file: &std::path::Path) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("--role").arg(if role == Role::Sender { "sender" } else { "receiver" });
    command.arg("--file").arg(file);
    if args.transport() == TransportChoice::Nixl {
        command.arg("--nixl");
    }
    Ok(command)
}

/// The Python worker, with the interpreter that `cargo xtask setup` installed or `CONNECT_PYTHON` names.
fn python(file: &std::path::Path) -> Command {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let python = env::var_os("CONNECT_PYTHON")
        .map_or_else(|| package.join("../.connect/venv/bin/python"), PathBuf::from);
    let mut command = Command::new(python);
    command.arg(package.join("python/receive.py")).arg(file);
    command
}
