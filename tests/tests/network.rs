//! Two hosts and a bad network: NIXL over TCP between namespaces whose cable is slow, drops packets, is cut for a
//! while, and is cut for good. Skipped without root or iproute2, unless `CONNECT_REQUIRE_NETWORK` is set.
#![cfg(feature = "nixl")]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use connect_tests::child::Worker;
use connect_tests::hosts::{Host, Hosts};
use connect_tests::process::eventually;
use connect_tests::require;
use serde_json::{Value, json};

const WORKER: &str = env!("CARGO_BIN_EXE_worker");

/// What a deadline may be late by on a crowded machine; it is 200 ms by design.
const LATE: Duration = Duration::from_secs(1);

/// Two hosts, one test at a time; `None` where they can't be had.
fn hosts() -> Option<(Hosts, MutexGuard<'static, ()>)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !require::nixl() {
        return None;
    }
    Some((Hosts::connect()?, alone))
}

/// The four ways in which two workers can do it: who offers what, and what the other does with it.
const WAYS: [(bool, &str, &str); 4] = [
    (true, "readable", "read"),
    (true, "writable", "write"),
    (false, "readable", "read"),
    (false, "writable", "write"),
];

/// Transfers in all four ways, every byte checked.
fn transfers(a: &mut Worker, b: &mut Worker, length: usize) -> Result<()> {
    for (a_offers, offer, act) in WAYS {
        let (passive, active) = if a_offers { (&mut *a, &mut *b) } else { (&mut *b, &mut *a) };
        let (offered, metadata) = passive.offer(offer, &[length], 7)?;
        let acted = active.begin(act, &metadata, &[length], 7)?;
        active.completed(acted)?;
        passive.completed(offered)?;
    }
    Ok(())
}

/// A write of `length` bytes from `active` to `passive`, both with this deadline: their commands' ids.
fn write(passive: &mut Worker, active: &mut Worker, length: usize, seconds: f64) -> Result<(u64, u64)> {
    let tensors = json!([{"dtype": "uint8", "shape": [length], "seed": 9}]);
    let offered = passive.send(json!({"do": "writable", "timeout": seconds, "tensors": tensors}))?;
    let metadata = passive.expect(offered, "metadata")?["metadata"].clone();
    let command = json!({"do": "write", "timeout": seconds, "metadata": metadata, "tensors": tensors});
    Ok((offered, active.send(command)?))
}

fn parked(worker: &mut Worker) -> Result<u64> {
    let stats = worker.ask(json!({"do": "stats"}), "stats")?;
    Ok(stats["parked_bytes"].as_u64().unwrap_or(u64::MAX))
}

fn ends_in(answer: &Value, kinds: &[&str]) -> Result<()> {
    let kind = answer["kind"].as_str().unwrap_or("complete");
    ensure!(kinds.contains(&kind), "{answer}");
    Ok(())
}

#[test]
fn transfers_between_two_hosts() -> Result<()> {
    let Some((hosts, _alone)) = hosts() else { return Ok(()) };
    let (mut a, mut b) = (hosts.worker(Host::A, WORKER)?, hosts.worker(Host::B, WORKER)?);
    transfers(&mut a, &mut b, 8 << 20)
}

#[test]
fn a_network_that_delays_and_loses_packets_loses_no_byte() -> Result<()> {
    let Some((hosts, _alone)) = hosts() else { return Ok(()) };
    let (mut a, mut b) = (hosts.worker(Host::A, WORKER)?, hosts.worker(Host::B, WORKER)?);
    let how = hosts.worsen()?;
    for length in [1000, 300_000, 4 << 20] {
        transfers(&mut a, &mut b, length)?;
    }
    let dropped = hosts.dropped(Host::A)? + hosts.dropped(Host::B)?;
    eprintln!("{how}: {dropped} packets dropped");
    ensure!(dropped > 0, "{how}: no packet was lost, so nothing was shown");
    Ok(())
}

#[test]
fn a_cable_that_is_cut_for_two_seconds_delays_and_no_more() -> Result<()> {
    let Some((hosts, _alone)) = hosts() else { return Ok(()) };
    let (mut a, mut b) = (hosts.worker(Host::A, WORKER)?, hosts.worker(Host::B, WORKER)?);
    transfers(&mut a, &mut b, 1000)?;
    // 32 MiB take about a second.
    hosts.throttle(300)?;
    let began = Instant::now();
    let (offered, acted) = write(&mut a, &mut b, 32 << 20, 60.0)?;
    thread::sleep(Duration::from_millis(400));
    hosts.cut()?;
    thread::sleep(Duration::from_secs(2));
    hosts.heal()?;
    b.completed(acted)?;
    a.completed(offered)?;
    eprintln!("complete after {:?}", began.elapsed());
    ensure!(began.elapsed() > Duration::from_secs(2), "the cut came too late");
    transfers(&mut a, &mut b, 100_000)
}

#[test]
fn p2_a_cable_that_is_cut_for_good_ends_both_sides_by_their_deadlines() -> Result<()> {
    let Some((hosts, _alone)) = hosts() else { return Ok(()) };
    let (mut a, mut b) = (hosts.worker(Host::A, WORKER)?, hosts.worker(Host::B, WORKER)?);
    transfers(&mut a, &mut b, 1000)?;
    hosts.throttle(300)?;
    let (offered, acted) = write(&mut a, &mut b, 64 << 20, 3.0)?;
    // And in the other direction: the near side is active.
    let (offered_back, acted_back) = write(&mut b, &mut a, 64 << 20, 3.0)?;
    let began = Instant::now();
    thread::sleep(Duration::from_millis(400));
    hosts.cut()?;
    for (of_a, id) in [(true, offered), (false, acted), (false, offered_back), (true, acted_back)] {
        let worker = if of_a { &mut a } else { &mut b };
        ends_in(&worker.answer(id)?, &["peer", "deadline"])?;
        let after = began.elapsed();
        eprintln!("an end after {after:?}");
        ensure!(after < Duration::from_secs(3) + LATE, "{after:?}");
    }
    // New operations end in time too. Some can't even be offered: UCX makes no agent on a cable that is cut.
    let began = Instant::now();
    let tensors = json!([{"dtype": "uint8", "shape": [1000]}]);
    let offered = b.send(json!({"do": "writable", "timeout": 2.0, "tensors": tensors}))?;
    let mut answer = b.answer(offered)?;
    if answer["event"] == "metadata" {
        answer = b.answer(offered)?;
    }
    ends_in(&answer, &["peer", "deadline", "transport", "local"])?;
    ensure!(began.elapsed() < Duration::from_secs(2) + LATE, "{:?}", began.elapsed());

    // The far host is replaced. What was parked comes back, and the next peer is served.
    eprintln!("parked while the cable is cut: {} bytes", parked(&mut a)?);
    b.kill();
    hosts.heal()?;
    let mut left = 0;
    let back = eventually(Duration::from_secs(40), || {
        left = parked(&mut a).unwrap_or(u64::MAX);
        left == 0
    });
    ensure!(back, "{left} bytes stay parked");
    let mut b = hosts.worker(Host::B, WORKER)?;
    transfers(&mut a, &mut b, 100_000)
}
