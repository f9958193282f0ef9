//! What goes wrong on purpose, and what must come of it: a typed error for the client, and every block back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::fleet::Process;
use super::{Answer, Fleet, Options, Request, baseline, requests};
use crate::engine::Setup;
use crate::wire::{Drill, Mode};

/// How a client is told that a cache is gone: by the owner, by the transport, or, over NIXL, by a card that went with
/// the agent that was replaced to take the blocks back.
pub(super) const EXPIRED: [&str; 3] = ["lease_expired", "transfer", "blocks"];

/// A lease short enough to wait for.
const LEASE_MS: u64 = 1500;

/// Runs all of them, one after the other.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let setup = Setup { lease_ms: LEASE_MS, ..options.setup.clone() };
    let options = Options { setup, ..options.clone() };
    given_up_expired_and_slow(&options).await?;
    prompts_of_all_lengths(&options).await?;
    a_full_pool(&options).await?;
    decode_dies(&options).await?;
    prefill_dies(&options).await?;
    prefill_is_stopped(&options).await?;
    mismatches(&options).await?;
    recompute(&options).await?;
    Ok(())
}

fn passed(what: &str) {
    println!("drill      {what}");
}

/// One request that must give what one process gives.
async fn is_right(fleet: &Fleet, options: &Options, request: &Request) -> Result<()> {
    let expected = baseline(options, std::slice::from_ref(request))?.swap_remove(0);
    let answer = fleet.client().complete(&request.prompt, options.max_tokens, request.mode, None).await?;
    let done = answer.map_err(|failure| anyhow::anyhow!("{:?}: {failure:?}", request.mode))?;
    ensure!(done.tokens == expected.tokens, "{:?}: other tokens", request.mode);
    Ok(())
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

async fn given_up_expired_and_slow(options: &Options) -> Result<()> {
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
    passed("requests given up, and leases that expire: typed errors, blocks back, the next request is right");
    Ok(())
}

async fn prompts_of_all_lengths(options: &Options) -> Result<()> {
    let fleet = Fleet::start(&options.setup, "fail").await?;
    let all = one(&Options { prompt_len: 300, ..options.clone() }).prompt;
    for mode in Mode::ALL {
        for len in [1, 3, 15, 16, 17, 64, 65, 128] {
            let prompt = all[..len].to_vec();
            is_right(&fleet, options, &Request { prompt, mode, drill: None }).await?;
        }
    }
    fleet.all_free().await?;
    passed("prompts shorter than a block, of whole blocks and of one token more, in every way");
    Ok(())
}

/// Pools that hold two requests at a time: the others wait, and are right.
async fn a_full_pool(options: &Options) -> Result<()> {
    let small = Options {
        setup: Setup { blocks: 34, ..options.setup.clone() },
        requests: 12,
        concurrency: 6,
        disturbed: 30,
        ..options.clone()
    };
    let fleet = Fleet::start(&small.setup, "fail").await?;
    let requests: Vec<Request> = requests(&small)
        .into_iter()
        .map(|request| Request { drill: request.drill.map(|_| Drill::Slow), ..request })
        .map(|request| match request.mode {
            // Prefill refuses what its own pool has no room for; only decode waits.
            Mode::Push => request,
            _ => Request { mode: Mode::Push, ..request },
        })
        .collect();
    let expected = baseline(&small, &requests)?;
    let answers = super::send(&fleet, &Options { concurrency: 2, ..small }, &requests).await?;
    for (answer, expected) in answers.into_iter().zip(expected) {
        let done = answer.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        ensure!(done.tokens == expected.tokens, "other tokens");
    }
    fleet.all_free().await?;
    passed("a pool that is full, with slow consumers: requests wait and are right");
    Ok(())
}

/// Decode dies with a ticket in its hands; prefill gets its blocks back after the lease, and serves another decode.
async fn decode_dies(options: &Options) -> Result<()> {
    for mode in [Mode::Pull, Mode::Chunked] {
        let mut fleet = Fleet::start(&options.setup, "fail").await?;
        let request = one(options);
        let answer = fleet.client().complete(&request.prompt, 8, mode, Some(Drill::DieQueued)).await?;
        ensure!(kind(&answer) == "decode", "{answer:?}");
        // A process takes a moment to die.
        let until = Instant::now() + Duration::from_secs(20);
        while !fleet.decode.has_ended()? {
            ensure!(Instant::now() < until, "decode is to be gone");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        fleet.all_free().await?;
        let statuses = fleet.statuses().await?;
        ensure!(statuses.len() == 1 && statuses[0].expired == 1, "{statuses:?}");
        ensure!(!fleet.prefill.has_ended()?, "prefill goes on");
    }
    passed("decode killed with a ticket: prefill's lease ends, its blocks come back, it goes on");
    Ok(())
}

/// Prefill dies while decode waits for it.
async fn prefill_dies(options: &Options) -> Result<()> {
    for mode in Mode::ALL {
        let mut fleet = Fleet::start(&options.setup, "fail").await?;
        let request = one(options);
        is_right(&fleet, options, &Request { mode, ..request.clone() }).await?;
        let answer = fleet.client().complete(&request.prompt, 8, mode, Some(Drill::DiePrefill)).await?;
        ensure!(kind(&answer) == "prefill", "{answer:?}");
        fleet.all_free().await.with_context(|| format!("{mode:?}"))?;
        ensure!(!fleet.decode.has_ended()?, "decode goes on");
        // And without the process that computes prompts every request fails by name, and none hangs.
        let again = fleet.client().complete(&request.prompt, 8, mode, None).await?;
        ensure!(kind(&again) == "prefill", "{again:?}");
    }
    passed("prefill killed in the middle: decode's client is told, its blocks come back, it goes on");
    Ok(())
}

/// Prefill is stopped for longer than its lease while decode has its ticket, and goes on then.
async fn prefill_is_stopped(options: &Options) -> Result<()> {
    let fleet = Fleet::start(&options.setup, "fail").await?;
    let request = one(options);
    is_right(&fleet, options, &request).await?;
    fleet.prefill.signal(Signal::SIGSTOP)?;
    let client = fleet.client();
    let prompt = request.prompt.clone();
    let waiting = tokio::spawn(async move { client.complete(&prompt, 8, Mode::Pull, None).await });
    tokio::time::sleep(Duration::from_millis(2 * LEASE_MS)).await;
    fleet.prefill.signal(Signal::SIGCONT)?;
    // It was asked before it was stopped, or after: either way the answer is right, or an error.
    let answer = waiting.await??;
    ensure!(answer.is_ok() || !kind(&answer).is_empty());
    fleet.all_free().await?;
    is_right(&fleet, options, &request).await?;
    fleet.all_free().await?;
    passed("prefill stopped for two leases: nothing hangs, blocks back, the next request is right");
    Ok(())
}

/// Other weights, and other blocks: refused by name, before an address is used.
async fn mismatches(options: &Options) -> Result<()> {
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
    passed("other weights and other blocks: refused, and the field is named");
    Ok(())
}

/// With that policy a request survives the loss of prefill.
async fn recompute(options: &Options) -> Result<()> {
    let mut fleet = Fleet::start(&options.setup, "recompute").await?;
    let request = one(options);
    let expected = baseline(options, std::slice::from_ref(&request))?.swap_remove(0);
    let kill: &mut Process = &mut fleet.prefill;
    kill.kill();
    let answer = fleet.client().complete(&request.prompt, options.max_tokens, request.mode, None).await?;
    let done = answer.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    ensure!(done.recomputed && done.tokens == expected.tokens, "{done:?}");
    passed("prefill gone, policy recompute: decode runs the prompt itself, with the same tokens");
    Ok(())
}
