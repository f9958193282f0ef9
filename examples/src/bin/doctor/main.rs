//! `doctor`: what this machine has of what connect can use, what that means, and how to get the rest.
//!
//! ```text
//! cargo run -p connect-examples --features nixl --bin doctor            # for people
//! cargo run -p connect-examples --features nixl --bin doctor -- --json  # for machines
//! ```
//! It ends with status 0 when the embedded transport works, whatever else is missing, and 1 when it does not.

mod attach;
mod finding;
mod hardware;
mod limits;
mod nixl;
mod python;
mod transfer;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use finding::{Finding, Status};

/// Says what this machine has of what connect can use.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// One JSON document instead of a table.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    helper: Option<Helper>,
}

/// What the program starts itself as, to have a second process.
#[derive(Debug, Subcommand)]
enum Helper {
    /// Tries to read the memory of the process that started this one.
    #[command(hide = true)]
    ReadParent {
        /// Where it keeps the bytes.
        addr: u64,
    },
    /// Reads what the metadata on standard input offers.
    #[command(hide = true)]
    Receive,
}

fn main() -> Result<ExitCode> {
    connect_examples::engine_logs_to_stderr();
    let args = Args::parse();
    match args.helper {
        Some(Helper::ReadParent { addr }) => return Ok(attach::read_parent(addr)),
        Some(Helper::Receive) => return transfer::receive().map(|()| ExitCode::SUCCESS),
        None => {}
    }
    let examinations: [fn() -> Vec<Finding>; 6] = [
        hardware::examine,
        limits::examine,
        attach::examine,
        nixl::examine,
        python::examine,
        // Last, because it is what the exit status says.
        transfer::examine,
    ];
    let mut findings = Vec::new();
    for examine in examinations {
        let found = examine();
        if !args.json {
            finding::print(&found);
        }
        findings.extend(found);
    }
    let works = findings.iter().all(|finding| finding.status != Status::Failed);
    if args.json {
        println!("{:#}", serde_json::json!({"works": works, "findings": findings}));
    } else if works {
        println!(
            "\nThe embedded transport works here. What is missing above limits only what its line says."
        );
    } else {
        println!("\nThe embedded transport does NOT work here; the line marked `failed` says why.");
    }
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
