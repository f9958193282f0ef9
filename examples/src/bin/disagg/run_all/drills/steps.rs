//! Either side is killed or stopped at each step of a request, in every way that a cache can travel.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tokio::task::JoinSet;

use super::{EXPIRED, LEASE_MS, Outcome, gives, kind, one};
use crate::drill::{Drill, Step};
use crate::engine::Setup;
use crate::run_all::{Answer, Fleet, Options, Request, baseline, eventually};
use crate::wire::{Done, Mode};

/// What may come of a request.
#[derive(Debug, Clone, Copy)]
struct Allowed {
    /// The right tokens.
    right: bool,
    /// Else an error of one of these kinds.
    kinds: &'static [&'static str],
}

const RIGHT: Allowed = Allowed { right: true, kinds: &[] };
const LOST: Allowed = Allowed { right: false, kinds: &EXPIRED };
const EITHER: Allowed = Allowed { right: true, kinds: &EXPIRED };
const NO_PREFILL: Allowed = Allowed { right: false, kinds: &["prefill"] };
const NO_DECODE: Allowed = Allowed { right: false, kinds: &["decode"] };

/// The steps that a request goes through: what is pushed has no ticket that decode could wait with.
fn steps(mode: Mode) -> impl Iterator<Item = Step> {
    let is_pulled = |step: &Step| matches!(step, Step::DecodeQueued | Step::DecodeTracked);
    Step::ALL.into_iter().filter(move |step| mode != Mode::Push || !is_pulled(step))
}

/// What the client may see when a process is killed there.
fn killed(mode: Mode, step: Step) -> Allowed {
    match (step, mode) {
        (Step::PrefillAsked, _) => NO_PREFILL,
        (Step::PrefillComputed | Step::PrefillOffered, Mode::Pull | Mode::Push) => NO_PREFILL,
        // All of it was pushed before.
        (Step::PrefillAnswered, Mode::Push) => RIGHT,
        (Step::PrefillComputed | Step::PrefillAnswered, _) => LOST,
        // Decode may have been faster.
        (Step::PrefillOffered, _) => EITHER,
        _ => NO_DECODE,
    }
}

/// What the client may see when a process is stopped there for two leases.
fn stopped(mode: Mode, step: Step) -> Allowed {
    match (step, mode) {
        // Nothing was on offer that could expire, or all had arrived.
        (Step::PrefillAsked | Step::DecodeFetched | Step::DecodeDecoding, _) => RIGHT,
        (_, Mode::Push) => RIGHT,
        (Step::PrefillComputed, Mode::Pull) => RIGHT,
        // By decode's own clock: whatever it has read may be another request's by now.
        (Step::PrefillComputed | Step::PrefillAnswered, _) => LOST,
        // By prefill's clock.
        (Step::DecodeQueued | Step::DecodeTracked, _) => LOST,
        // Depends on who is faster.
        (Step::PrefillOffered | Step::DecodeAsked | Step::DecodeFetching, _) => EITHER,
    }
}

fn judge(answer: &Answer, expected: &Done, allowed: Allowed) -> Result<()> {
    match answer {
        Ok(done) => ensure!(allowed.right && done.tokens == expected.tokens, "{done:?} is not {allowed:?}"),
        Err(failure) => ensure!(allowed.kinds.contains(&kind(answer)), "{failure:?} is not {allowed:?}"),
    }
    Ok(())
}

/// One fleet for each way, side by side.
async fn in_every_way<F>(options: &Options, drill: impl Fn(Mode, Options) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut fleets = JoinSet::new();
    for mode in options.modes() {
        fleets.spawn(drill(mode, options.clone()));
    }
    while let Some(done) = fleets.join_next().await {
        done??;
    }
    Ok(())
}

pub(super) async fn kills(options: &Options) -> Outcome {
    in_every_way(options, |mode, options| async move {
        let mut fleet = Fleet::start(&options.setup, "fail").await?;
        let request = Request { mode, ..one(&options) };
        let expected = baseline(&options, std::slice::from_ref(&request))?.swap_remove(0);
        for step in steps(mode) {
            let one = killed_at(&mut fleet, &options, &request, &expected, step).await;
            one.with_context(|| format!("{mode:?}, killed at {step:?}"))?;
        }
        Ok(())
    })
    .await?;
    Ok("either side killed at each step, in every way: typed errors, blocks back, its successor is right")
}

async fn killed_at(
    fleet: &mut Fleet,
    options: &Options,
    request: &Request,
    expected: &Done,
    step: Step,
) -> Result<()> {
    gives(fleet, options, request, expected).await?;
    let drill = Some(Drill::Kill(step));
    let answer = fleet.client().complete(&request.prompt, options.max_tokens, request.mode, drill).await?;
    judge(&answer, expected, killed(request.mode, step))?;
    let (died, lives) = match step.is_prefill() {
        true => (&mut fleet.prefill, &mut fleet.decode),
        false => (&mut fleet.decode, &mut fleet.prefill),
    };
    ensure!(died.ends_within(Duration::from_secs(20)).await?, "it was not killed");
    ensure!(!lives.has_ended()?, "the other side died with it");
    // What the survivor has: all of its blocks, and nothing open.
    fleet.all_free().await?;
    let died = if step.is_prefill() { &mut fleet.prefill } else { &mut fleet.decode };
    *died = died.restarted()?;
    gives(fleet, options, request, expected).await?;
    fleet.all_free().await
}

pub(super) async fn stops(options: &Options) -> Outcome {
    // What a step takes is two leases.
    let setup = Setup { lease_ms: LEASE_MS / 2, ..options.setup.clone() };
    in_every_way(&Options { setup, ..options.clone() }, |mode, options| async move {
        let fleet = Fleet::start(&options.setup, "fail").await?;
        let request = Request { mode, ..one(&options) };
        let expected = baseline(&options, std::slice::from_ref(&request))?.swap_remove(0);
        for step in steps(mode) {
            let one = stopped_at(&fleet, &options, &request, &expected, step).await;
            one.with_context(|| format!("{mode:?}, stopped at {step:?}"))?;
        }
        Ok(())
    })
    .await?;
    Ok("either side stopped for two leases at each step, in every way: right or a typed error, blocks back")
}

async fn stopped_at(
    fleet: &Fleet,
    options: &Options,
    request: &Request,
    expected: &Done,
    step: Step,
) -> Result<()> {
    let (client, ask, max_tokens) = (fleet.client(), request.clone(), options.max_tokens);
    let drill = Some(Drill::Stop(step));
    let answering =
        tokio::spawn(async move { client.complete(&ask.prompt, max_tokens, ask.mode, drill).await });
    let process = if step.is_prefill() { &fleet.prefill } else { &fleet.decode };
    eventually("it stops", || async { process.is_stopped() }).await?;
    tokio::time::sleep(Duration::from_millis(2 * options.setup.lease_ms)).await;
    process.signal(Signal::SIGCONT)?;
    let allowed = stopped(request.mode, step);
    // Over NIXL the agent goes with a lease that ends: decode finds the card stale, exchanges cards and asks again.
    let right = allowed.right || options.setup.transport == "nixl";
    judge(&answering.await??, expected, Allowed { right, ..allowed })?;
    fleet.all_free().await?;
    gives(fleet, options, request, expected).await?;
    fleet.all_free().await
}
