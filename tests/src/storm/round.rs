//! [`play`]: one round, from a fresh victim to its end.

use std::os::unix::process::ExitStatusExt as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connect_core::{
    Connector, Error, ErrorCategory, Failed, RdmaMetadata, ReadableOperation, Received, Report,
    WritableOperation,
};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use super::plan::{Deed, End, Moment, Op, Plan};
use super::prey::Prey;
use super::survivor::Survivor;
use super::tally::Verdict;
use super::trigger::Point;
use super::yard::{Plot, Yard};

/// How late an outcome may be after its deadline: the 200 ms that a cancelled operation waits for its memory,
/// and what the scheduler of a crowded machine adds.
const LATE: Duration = Duration::from_millis(700);

/// What the survivor's active side has in hand before it begins.
enum Ready {
    /// A document, if the victim lived long enough to give one.
    Active(Option<RdmaMetadata>),
    Readable(Result<ReadableOperation, Error>),
    Writable(Result<WritableOperation<Plot>, Failed<Plot>>),
}

/// How an operation of the survivor ended.
struct Ended {
    outcome: Outcome,
    began: Instant,
    at: Instant,
}

struct Outcome {
    /// Wrong bytes are told as an error.
    verdict: Result<Verdict, String>,
    message: String,
    parked: bool,
}

/// Plays a round.
///
/// # Errors
/// A promise is broken, or the machine does not let it be played.
pub fn play(survivor: &Survivor, plan: &Plan) -> Result<()> {
    let mut prey = Prey::spawn(survivor.way, &arguments(plan))?;
    prey.ready()?;
    if plan.warm {
        for deed in Deed::ALL {
            let greeted = survivor.healthy_transfer(&mut prey, deed, 5000, plan.number % 251);
            greeted.with_context(|| format!("a healthy {} before the storm", deed.name()))?;
        }
    }
    let yard = Yard::new(plan.keeps);
    prey.arm();
    let mut ids: Vec<Option<u64>> =
        plan.ops.iter().map(|op| op.deed.is_ours().then(|| prey.begin(op, None))).collect();
    let prepared: Vec<(Ready, Instant)> =
        plan.ops.iter().zip(&ids).map(|(op, id)| prepare(survivor, &mut prey, op, *id, &yard)).collect();
    if matches!(plan.moment, Moment::BeforeUse) {
        prey.signal(first_signal(plan.end));
        prey.falls_within(Duration::from_secs(5)).context("a signal has no effect")?;
    }
    let (ended, struck) = thread::scope(|scope| {
        let mut running = Vec::new();
        for ((op, (ready, created)), id) in plan.ops.iter().zip(prepared).zip(&mut ids) {
            match &ready {
                Ready::Readable(Ok(operation)) => *id = begin(&mut prey, op, operation.metadata()),
                Ready::Writable(Ok(operation)) => *id = begin(&mut prey, op, operation.metadata()),
                _ => {}
            }
            let (connector, yard) = (survivor.connector.with_deadline(op.deadline), &yard);
            running.push(scope.spawn(move || perform(&connector, op, ready, created, yard)));
        }
        let struck = strike(&mut prey, plan, || running.iter().all(|thread| thread.is_finished()));
        let ended = running.into_iter().map(|thread| thread.join().expect("it does not panic"));
        (ended.collect::<Vec<Option<Ended>>>(), struck)
    });
    let struck = struck?;
    let over = if struck.continued.is_some() { recovered(survivor, prey, plan, &ids) } else { killed(prey) };
    survivor.tally().struck(plan.end, struck.missed);
    for (op, ended) in plan.ops.iter().zip(ended) {
        if let Some(ended) = ended {
            judge(survivor, op, &ended, &struck)?;
        }
    }
    over?;
    survivor.bury(plan.number, yard)
}

fn arguments(plan: &Plan) -> Vec<String> {
    let mut arguments = Vec::new();
    if let Moment::At(point, nth) = plan.moment {
        let point = clap::ValueEnum::to_possible_value(&point);
        let point = point.map(|value| value.get_name().to_owned()).unwrap_or_default();
        let fate = if plan.end == End::Kill { "kill" } else { "stop" };
        arguments.extend(["--point", &point, "--nth", &nth.to_string(), "--fate", fate].map(String::from));
    }
    if let Some(name) = &plan.name {
        arguments.extend(["--worker-id".to_owned(), name.clone()]);
    }
    arguments
}

fn first_signal(end: End) -> Signal {
    if end == End::Kill { Signal::SIGKILL } else { Signal::SIGSTOP }
}

fn prepare(survivor: &Survivor, prey: &mut Prey, op: &Op, id: Option<u64>, yard: &Yard) -> (Ready, Instant) {
    let connector = survivor.connector.with_deadline(op.deadline);
    match op.deed {
        Deed::WeRead | Deed::WeWrite => {
            let document = id.and_then(|id| prey.metadata(id));
            let document = document.and_then(|json| RdmaMetadata::from_json(&json.to_string()).ok());
            (Ready::Active(document), Instant::now())
        }
        Deed::TheyRead => {
            let memory = yard.source(&op.lengths, op.seed);
            let created = Instant::now();
            (Ready::Readable(connector.create_readable(memory).wait()), created)
        }
        Deed::TheyWrite => {
            let memory = yard.target(&op.lengths);
            let created = Instant::now();
            (Ready::Writable(connector.create_writable(memory).wait()), created)
        }
    }
}

fn begin(prey: &mut Prey, op: &Op, metadata: &RdmaMetadata) -> Option<u64> {
    let metadata = serde_json::to_value(metadata).ok()?;
    Some(prey.begin(op, Some(&metadata)))
}

/// The survivor's part of an operation; `None` if there was nothing to begin with.
fn perform(connector: &Connector, op: &Op, ready: Ready, created: Instant, yard: &Yard) -> Option<Ended> {
    // What takes time by itself, like making memory and checking it, is not counted.
    let (began, at, outcome) = match ready {
        Ready::Active(None) => return None,
        Ready::Active(Some(metadata)) if op.deed == Deed::WeRead => {
            let memory = yard.target(&op.lengths);
            let began = Instant::now();
            let operation = connector.begin_read(&metadata, memory).wait();
            let ended = operation.and_then(|operation| match gives_up(op) {
                true => operation.cancel().wait(),
                false => operation.wait_for_completion().wait(),
            });
            (began, Instant::now(), received(op, ended))
        }
        Ready::Active(Some(metadata)) => {
            let memory = yard.source(&op.lengths, op.seed);
            let began = Instant::now();
            let operation = connector.begin_write(memory, &metadata).wait();
            let ended = operation.and_then(|operation| match gives_up(op) {
                true => operation.cancel().wait(),
                false => operation.wait_for_completion().wait(),
            });
            (began, Instant::now(), sent(ended))
        }
        Ready::Readable(operation) => {
            let ended = operation.and_then(|operation| match gives_up(op) {
                true => operation.cancel().wait(),
                false => operation.wait_for_completion().wait(),
            });
            (created, Instant::now(), sent(ended))
        }
        Ready::Writable(operation) => {
            let ended = operation.and_then(|operation| match gives_up(op) {
                true => operation.cancel().wait(),
                false => operation.wait_for_completion().wait(),
            });
            (created, Instant::now(), received(op, ended))
        }
    };
    Some(Ended { outcome, began, at })
}

/// Waits until the survivor gives up, if it does.
fn gives_up(op: &Op) -> bool {
    op.cancel.map(thread::sleep).is_some()
}

fn received(op: &Op, ended: Result<Received<Plot>, Failed<Plot>>) -> Outcome {
    let outcome = |verdict, message, parked| Outcome { verdict, message, parked };
    match ended {
        Ok(received) => match received.memory.first_difference(op.seed) {
            None => outcome(Ok(Verdict::Completed), String::new(), false),
            Some(at) => outcome(Err(format!("complete, but wrong at {at:?}")), String::new(), false),
        },
        Err(failed) => {
            let (error, parked) = (&failed.error, failed.memory.is_parked());
            outcome(Ok(Verdict::Failed(error.category())), error.to_string(), parked)
        }
    }
}

/// Whether the memory of a source is parked is not told.
fn sent(ended: Result<Report, Error>) -> Outcome {
    let (verdict, message) = match ended {
        Ok(_) => (Verdict::Completed, String::new()),
        Err(error) => (Verdict::Failed(error.category()), error.to_string()),
    };
    Outcome { verdict: Ok(verdict), message, parked: false }
}

/// What was done to the victim.
struct Struck {
    /// When it first stopped or ended.
    at: Instant,
    /// When it was continued.
    continued: Option<Instant>,
    /// When it was killed.
    killed: Option<Instant>,
    /// Its moment did not come before all operations were over.
    missed: bool,
}

/// Ends the victim as planned. `over` says that all operations have ended.
fn strike(prey: &mut Prey, plan: &Plan, over: impl Fn() -> bool) -> Result<Struck> {
    let mut missed = false;
    match plan.moment {
        Moment::BeforeUse => {}
        Moment::After(time) => {
            thread::sleep(time);
            prey.signal(first_signal(plan.end));
        }
        Moment::InShutdown(time) => {
            prey.shut_down();
            thread::sleep(time);
            prey.signal(first_signal(plan.end));
        }
        Moment::At(point, nth) => {
            if matches!(point, Point::Closing | Point::Closed) {
                // Which comes once; `nth` says when.
                thread::sleep(Duration::from_millis(nth));
                prey.shut_down();
            }
            while prey.fallen().is_none() && !missed {
                missed = over() && prey.falls_within(Duration::from_millis(20)).is_none();
                thread::sleep(Duration::from_micros(200));
            }
            if missed {
                prey.signal(first_signal(plan.end));
            }
        }
    }
    let (at, status) = prey.falls_within(Duration::from_secs(5)).context("a signal has no effect")?;
    match status {
        WaitStatus::Stopped(..) | WaitStatus::Signaled(_, Signal::SIGKILL, _) | WaitStatus::Exited(_, 0) => {}
        other => anyhow::bail!("the victim crashed: {other:?}"),
    }
    let continued = match plan.end {
        End::Kill => None,
        End::StopKill(hold) => {
            thread::sleep(hold);
            None
        }
        End::StopContinue(hold) => {
            thread::sleep(hold);
            let continued = Instant::now();
            prey.go_on();
            Some(continued)
        }
    };
    let killed = match plan.end {
        End::Kill => Some(at),
        End::StopKill(_) => Some(Instant::now()),
        End::StopContinue(_) => None,
    };
    if killed.is_some() {
        prey.signal(Signal::SIGKILL);
    }
    Ok(Struck { at, continued, killed, missed })
}

/// A victim that was continued finds out by itself what has become of its operations, and ends well.
fn recovered(survivor: &Survivor, mut prey: Prey, plan: &Plan, ids: &[Option<u64>]) -> Result<()> {
    for (op, id) in plan.ops.iter().zip(ids) {
        let Some(id) = id else { continue };
        let outcome = prey.outcome(*id, op.their_deadline + Duration::from_secs(5));
        let outcome = outcome.with_context(|| format!("after it was continued: {op:?}"))?;
        let wrong = &outcome["wrong"];
        ensure!(
            wrong.is_null(),
            "the victim was told {} is complete, but {wrong} is wrong",
            op.deed.command()
        );
        let end = outcome["error"].as_str().unwrap_or("completed").to_owned();
        ensure!(end != "usage", "the victim says {outcome}");
        *survivor.tally().theirs.entry(end).or_default() += 1;
    }
    let closed = prey.end()?;
    survivor.tally().not_closed += u64::from(!closed);
    // Over NIXL a transfer with an agent that is gone may never end, and the memory stays parked with it.
    ensure!(closed || survivor.way.is_nixl(), "a victim's connector does not close");
    Ok(())
}

fn killed(prey: Prey) -> Result<()> {
    let status = prey.kill().context("a process that was killed has a status")?;
    // In its shutdown it may have been faster.
    ensure!(status.signal() == Some(9) || status.success(), "the victim crashed: {status}");
    Ok(())
}

/// Whether an operation of the survivor ended as it must.
fn judge(survivor: &Survivor, op: &Op, ended: &Ended, struck: &Struck) -> Result<()> {
    let Outcome { verdict, message, parked } = &ended.outcome;
    let verdict = verdict.as_ref().map_err(|wrong| anyhow::anyhow!("{}: {wrong}; {op:?}", op.deed.name()))?;
    let mut tally = survivor.tally();
    tally.ended(verdict);
    tally.parked += u64::from(*parked);
    let late = ended.at.saturating_duration_since(ended.began + op.deadline);
    tally.latest = tally.latest.max(late);
    ensure!(late <= LATE, "{} ended {late:?} after its deadline: {message}; {op:?}", op.deed.name());
    let Verdict::Failed(category) = verdict else { return Ok(()) };
    match category {
        ErrorCategory::Cancelled if op.cancel.is_some() => return Ok(()),
        ErrorCategory::Peer | ErrorCategory::Transport | ErrorCategory::Deadline => {}
        other => anyhow::bail!("{} failed with {other}: {message}; {op:?}", op.deed.name()),
    }
    let is_too_late = struck.continued.is_some_and(|continued| ended.at >= continued);
    if ended.at < struck.at || is_too_late || op.cancel.is_some() {
        return Ok(());
    }
    let killed = struck.killed.filter(|killed| *killed <= ended.at);
    let after = ended.at - killed.unwrap_or(struck.at).max(ended.began);
    let death = if killed.is_some() { "killed" } else { "stopped" };
    tally.noticed(op.deed, death, *category, after);
    // A socket tells of a dead peer at once.
    let is_slow = *category == ErrorCategory::Deadline && after > Duration::from_millis(250);
    ensure!(
        !(is_slow && killed.is_some() && op.deed.is_ours() && !survivor.way.is_nixl()),
        "{} did not learn in {after:?} that its peer was killed: {message}; {op:?}",
        op.deed.name()
    );
    Ok(())
}
