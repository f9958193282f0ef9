//! A prompt is computed in one process and continued in another: KV caches handed off between a prefill and a decode
//! process, behind a router that speaks OpenAI's completions, and every token compared with what one process makes.
//!
//! `cargo xtask demo` runs it.

mod decode;
mod engine;
mod http;
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

use engine::Setup;
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
    Prefill(Setup),
    /// Takes caches, and makes tokens
    Decode {
        #[command(flatten)]
        setup: Setup,
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
    },
    /// One process for everything: completes each line of standard input
    Oneshot(Setup),
    /// Trains the small model on this repository's own text; `cargo xtask train-fixture` runs it
    Train(train::Options),
}

fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
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
            Role::Prefill(setup) => prefill::run(&setup).await,
            Role::Decode { setup, on_failure } => decode::run(&setup, on_failure).await,
            Role::Router { prefill, decode, mode, model } => router::run(prefill, decode, mode, model).await,
            Role::Oneshot(_) | Role::Train(_) => unreachable!("these need no runtime"),
        }
    })
}
