//! A prompt is computed in one process and continued in another: KV caches handed off between a prefill and a decode
//! process, behind a router that speaks OpenAI's completions, and every token compared with what one process makes.
//!
//! `cargo xtask demo` runs it.

mod decode;
mod drill;
mod engine;
mod http;
mod metrics;
mod model;
mod offers;
mod oneshot;
mod prefill;
mod router;
mod run_all;
mod train;
mod wire;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use engine::{Serve, Setup};
use wire::Mode;

#[derive(Parser)]
#[command(about = "KV caches from a prefill process to a decode process, checked token by token")]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Starts all processes, sends requests, checks and reports
    RunAll(run_all::Options),
    /// Runs prompts, and hands their caches off
    Prefill(Serve),
    /// Takes caches, and makes tokens
    Decode {
        #[command(flatten)]
        serve: Serve,
        /// What to do when a cache can't be had
        #[arg(long, default_value = "fail")]
        on_failure: decode::Policy,
    },
    /// Serves /v1/completions, /metrics, /health and a page, and spreads requests over engines
    Router {
        /// Where a prefill process listens; several take turns
        #[arg(long, required = true)]
        prefill: Vec<String>,
        /// Where a decode process listens; several take turns
        #[arg(long, required = true)]
        decode: Vec<String>,
        /// For requests that do not say
        #[arg(long, default_value = "pull")]
        mode: Mode,
        /// The folder of their model: its tokenizer.json says what tokens stand for
        #[arg(long)]
        model: Option<PathBuf>,
        /// Where to listen on this host; 0 for a port that the system chooses
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// One process for everything: completes each line of standard input
    Oneshot(Setup),
    /// Trains the small model on this repository's own text; `cargo xtask train-fixture` runs it
    Train(train::Options),
}

fn main() -> Result<()> {
    connect_examples::log_to_stderr();
    let role = Arguments::parse().role;
    match &role {
        Role::Oneshot(setup) => return oneshot::run(setup),
        Role::Train(options) => return train::run(options),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match role {
            Role::RunAll(options) => run_all::run(&options).await,
            Role::Prefill(serve) => prefill::run(&serve).await,
            Role::Decode { serve, on_failure } => decode::run(&serve, on_failure).await,
            Role::Router { prefill, decode, mode, model, port } => {
                router::run(prefill, decode, mode, model, port).await
            }
            Role::Oneshot(_) | Role::Train(_) => unreachable!("these need no runtime"),
        }
    })
}
