//! `server`: serves a checkpoint file, driven over JSON lines like `worker`:
//!
//! ```text
//! {"do": "manifest"}                   -> {"event": "manifest", "manifest": ...}, with digests
//! {"do": "offer", "names": [...]}      -> {"event": "offer", "envelope": ...}, then complete
//! {"do": "cut", "path": ...}           -> cuts the file, and reads it within this process
//! ```

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use connect_core::checkpoint::{Checkpoint, Served};
use connect_core::{Connector, Error};
use connect_tests::lab::{Lab, Transport};
use serde_json::{Value, json};

/// Serves a checkpoint.
#[derive(Debug, Parser)]
struct Args {
    /// `local`, `local-stream` or `nixl`.
    #[arg(long)]
    transport: String,
    /// Reads the file into memory first.
    #[arg(long)]
    copy: bool,
    /// The checkpoint.
    path: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let transport = match args.transport.as_str() {
        "local" => Transport::Local,
        "local-stream" => Transport::LocalStream,
        #[cfg(feature = "nixl")]
        "nixl" => Transport::Nixl,
        other => bail!("this server was built without {other}"),
    };
    let connector = Lab::new(transport, "").connector()?;
    let checkpoint =
        if args.copy { Checkpoint::open_a_copy(&args.path)? } else { Checkpoint::open(&args.path)? };
    let served = checkpoint.serve(&connector).wait()?;
    say(&Value::Null, json!({"event": "ready"}));
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let served = served.clone();
        thread::spawn(move || {
            let command: Value = serde_json::from_str(&line).unwrap_or_default();
            let id = command["id"].clone();
            if let Err(error) = run(&served, &id, &command) {
                say(&id, json!({"event": "error", "message": format!("{error:#}")}));
            }
        });
    }
    drop(served);
    match connector.shutdown(Duration::from_secs(10)).wait() {
        Ok(()) | Err(Error::ShutDown) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn run(served: &Served, id: &Value, command: &Value) -> Result<()> {
    match command["do"].as_str().context("a command says what to do")? {
        "manifest" => {
            let manifest = served.checkpoint().manifest_with_digests()?;
            say(id, json!({"event": "manifest", "manifest": manifest.to_json()}));
        }
        "offer" => {
            let names: Vec<String> = serde_json::from_value(command["names"].clone())?;
            let offer = served.offer(&names).wait()?;
            say(id, json!({"event": "offer", "envelope": offer.envelope().to_json()}));
            offer.wait_for_completion().wait()?;
            say(id, json!({"event": "complete"}));
        }
        "cut" => {
            let path = command["path"].as_str().context("a path")?;
            let last = served.checkpoint().tensors().last().context("a tensor")?;
            let offer = served.offer([&last.name]).wait()?;
            File::options().write(true).open(path)?.set_len(4096)?;
            let target = vec![0u8; last.byte_len as usize];
            let read = Connector::local()?.begin_read(offer.metadata(), target).wait()?;
            read.wait_for_completion().wait()?;
            say(id, json!({"event": "complete"}));
        }
        other => bail!("there is no command {other}"),
    }
    Ok(())
}

fn say(id: &Value, mut answer: Value) {
    answer["id"] = id.clone();
    let mut stdout = io::stdout().lock();
    // Whoever listened may be gone.
    let _ = writeln!(stdout, "{answer}").and_then(|()| stdout.flush());
}
