//! What goes wrong on purpose, and what must come of it: a typed error for the client, and every block back.

mod steps;

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::ValueEnum;

use super::{Answer, Fleet, Options, Request, baseline, requests};
use crate::drill::Drill;
use crate::engine::Setup;
use crate::wire::{Done, Mode};

/// What a drill has shown.
type Outcome = Result<&'static str>;

/// How a client is told that a cache is gone: by the owner, by the transport, or, over NIXL, by a card that went with
/// the agent that was replaced to take the blocks back.
pub(super) const EXPIRED: [&str; 3] = ["lease_expired", "transfer", "blocks"];

/// A lease short enough to wait for.
const LEASE_MS: u64 = 1500;

/// One of the drills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Name {
    /// Requests that are given up, and leases that expire
    GivenUp,
    /// Prompts shorter than a block, of whole blocks, and of one token more
    Lengths,
    /// Decode has some of the blocks already
    WarmPrefix,
    /// Pools with room for two requests, and slow consumers
    FullPool,
    /// Either side is killed at each step of a request
    Kills,
    /// Either side is stopped for two leases at each step of a request
    Stops,
    /// Either side is replaced by a new process at the same address
    Restarts,
    /// Other weights, and other blocks
    Mismatches,
    /// Prefill is gone, and decode computes the prompt itself
    Recompute,
}

/// Runs those that were asked for, or all of them, one after the other.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let setup = Setup { lease_ms: LEASE_MS, ..options.setup.clone() };
    let drills = if options.drill.is_empty() { Name::value_variants() } else { &options.drill };
    let options = &Options { setup, ..options.clone() };
    for name in drills {
        let began = Instant::now();
        let what = match name {
            Name::GivenUp => given_up_expired_and_slow(options).await?,
            Name::Lengths => prompts_of_all_lengths(options).await?,
            Name::WarmPrefix => a_warm_prefix(options).await?,
            Name::FullPool => full_pools(options).await?,
            Name::Kills => steps::kills(options).await?,
            Name::Stops => steps::stops(options).await?,
            Name::Restarts => restarts(options).await?,
            Name::Mismatches => mismatches(options).await?,
            Name::Recompute => recompute(options).await?,
        };
        println!("drill      {what} ({:.1} s)", began.elapsed().as_secs_f64());
    }
    Ok(())
}

/// One request that must give what one process gives.
async fn is_right(fleet: &Fleet, options: &Options, request: &Request) -> Result<Done> {
    let expected = baseline(options, std::slice::from_ref(request))?.swap_remove(0);
    gives(fleet, options, request, &expected).await
}

/// The same for who knows what that is.
async fn gives(fleet: &Fleet, options: &Options, request: &Request, expected: &Done) -> Result<Done> {
    let Request { prompt, mode, drill } = request;
    let answer = fleet.client().complete(prompt, options.max_tokens, *mode, *drill).await?;
    let done = answer.map_err(|failure| anyhow::anyhow!("{mode:?}: {failure:?}"))?;
    ensure!(done.tokens == expected.tokens, "{mode:?}: other tokens");
    Ok(done)
}

fn kind(answer: &Answer) -> &str {
    match answer {
        Ok(_) => "",
        Err(failure) => &failure.kind,
    }
}

fn one(options: &Options) -> Request {
    requests(options).swap_remove(0)
}

async fn given_up_expired_and_slow(options: &Options) -> Outcome {
    let fleet = Fleet::start(&options.setup, "fail").await?;
    let request = one(options);
    for mode in [Mode::Pull, Mode::Chunked, Mode::Layerwise] {
        for (drill, kinds) in [(Drill::Abort, &["aborted"][..]), (Drill::Expire, &EXPIRED[..])] {
            let answer = fleet.client().complete(&request.prompt, 8, mode, Some(drill)).await?;
            ensure!(kinds.contains(&kind(&answer)), "{mode:?} with {drill:?}: {answer:?}");
            fleet.all_free().await?;
        }
    }
    for mode in Mode::ALL {
        is_right(&fleet, options, &Request { mode, ..request.clone() }).await?;
    }
    fleet.all_free().await?;
    Ok("requests given up, and leases that expire: typed errors, blocks back, the next request is right")
}

async fn prompts_of_all_lengths(options: &Options) -> Outcome {
    let fleet = Fleet::start(&options.setup, "fail").await?;
    let all = one(&Options { prompt_len: 300, ..options.clone() }).prompt;
    for mode in Mode::ALL {
        for len in [1, 3, 15, 16, 17, 64, 65, 128] {
            let prompt = all[..len].to_vec();
            is_right(&fleet, options, &Request { prompt, mode, drill: None }).await?;
        }
    }
    fleet.all_free().await?;
    Ok("prompts shorter than a block, of whole blocks and of one token more, in every way")
}

/// Decode has the first half of the blocks, and fetches the others.
async fn a_warm_prefix(options: &Options) -> Outcome {
    let fleet = Fleet::start(&options.setup, "fail").await?;
    for mode in [Mode::Pull, Mode::Chunked, Mode::Layerwise] {
        let request = Request { mode, drill: Some(Drill::Warm), ..one(options) };
        let done = is_right(&fleet, options, &request).await?;
        let blocks = request.prompt.len().div_ceil(options.setup.block_tokens as usize);
        let fetched =
            (blocks - blocks / 2) as u64 * options.setup.layout(&options.setup.config()?).bytes_per_block();
        ensure!(done.bytes == fetched, "{mode:?}: {} bytes moved for {fetched} of new blocks", done.bytes);
    }
    fleet.all_free().await?;
    Ok("a warm prefix: only the other blocks move, and the tokens are right")
}

/// Pools that hold two requests at a time, and six requests at once: who finds no room waits, and is right.
async fn full_pools(options: &Options) -> Outcome {
    let small = Options {
        setup: Setup { blocks: 34, lease_ms: 10_000, ..options.setup.clone() },
        requests: 24,
        concurrency: 6,
        disturbed: 30,
        ..options.clone()
    };
    let fleet = Fleet::start(&small.setup, "fail").await?;
    let slow = |request: Request| Request { drill: request.drill.map(|_| Drill::Slow), ..request };
    let requests: Vec<Request> = requests(&small).into_iter().map(slow).collect();
    let expected = baseline(&small, &requests)?;
    let answers = super::send(&fleet, &small, &requests).await?;
    for ((answer, expected), request) in answers.into_iter().zip(expected).zip(requests) {
        let done = answer.map_err(|failure| anyhow::anyhow!("{:?}: {failure:?}", request.mode))?;
        ensure!(done.tokens == expected.tokens, "{:?}: other tokens", request.mode);
    }
    fleet.all_free().await?;
    Ok("full pools on both sides, with slow consumers: requests wait and are right, in every way")
}

/// Each side in turn is a new process at the address of the old one: a ticket of an engine that was never met is
/// refused, cards are exchanged, and the request is right.
async fn restarts(options: &Options) -> Outcome {
    let mut fleet = Fleet::start(&options.setup, "fail").await?;
    for mode in Mode::ALL {
        let request = Request { mode, ..one(options) };
        is_right(&fleet, options, &request).await?;
        fleet.prefill = fleet.prefill.restarted()?;
        is_right(&fleet, options, &request).await?;
        fleet.decode = fleet.decode.restarted()?;
        is_right(&fleet, options, &request).await?;
        fleet.all_free().await?;
    }
    Ok(
        "either side replaced by a new process at its address: cards are exchanged again, and requests are right",
    )
}

/// Other weights, and other blocks: refused by name, before an address is used.
async fn mismatches(options: &Options) -> Outcome {
    // Of one shape, whatever model the rest of the run is about.
    let seeded = |seed| Setup { seed: Some(seed), model: None, ..options.setup.clone() };
    let setups = [(seeded(2), "weights"), (Setup { block_tokens: 32, ..seeded(1) }, "block_tokens")];
    for (other, field) in setups {
        let fleet = Fleet::with(&seeded(1), &other, "fail").await?;
        let answer = fleet.client().complete(&one(options).prompt, 8, Mode::Pull, None).await?;
        let message = answer.err().map(|failure| failure.message).unwrap_or_default();
        ensure!(message.contains(field), "{field}: {message:?}");
        fleet.all_free().await?;
    }
    Ok("other weights and other blocks: refused, and the field is named")
}

/// With that policy a request survives the loss of prefill.
async fn recompute(options: &Options) -> Outcome {
    let mut fleet = Fleet::start(&options.setup, "recompute").await?;
    let request = one(options);
    let expected = baseline(options, std::slice::from_ref(&request))?.swap_remove(0);
    fleet.prefill.kill();
    let answer = fleet.client().complete(&request.prompt, options.max_tokens, request.mode, None).await?;
    let done = answer.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    ensure!(done.recomputed && done.tokens == expected.tokens, "{done:?}");
    Ok("prefill gone, policy recompute: decode runs the prompt itself, with the same tokens")
}
