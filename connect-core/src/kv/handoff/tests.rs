//! Hand-offs over `local`, within one process; between processes, and over NIXL, in `tests/tests/kv.rs`.

mod machines;

use std::num::NonZero;
use std::thread;

use super::*;
use crate::blocks::{BlockError, BlockLease};
use crate::kv::{KvIdentity, KvLayout};
use crate::transport::fault::{Call, Hold, Plan};
use crate::{Connector, DType};

const LAYERS: u32 = 2;
const BLOCKS: u32 = 32;

fn engine(lease: Duration) -> HandOff {
    engine_over(&Connector::local().unwrap(), lease, Duration::from_secs(10))
}

fn engine_over(connector: &Connector, lease: Duration, deadline: Duration) -> HandOff {
    let layout = KvLayout::new(LAYERS, BLOCKS, 4, 2, 8, DType::F32);
    let pool = KvPool::new(connector, KvIdentity::new("m", "w"), layout).wait().unwrap();
    HandOff::start(pool, HandOffConfig::default().lease(lease).deadline(deadline)).unwrap()
}

fn meet(a: &HandOff, b: &HandOff) {
    a.meet(&b.pool().card().wait().unwrap()).unwrap();
    b.meet(&a.pool().card().wait().unwrap()).unwrap();
}

fn pair(lease: Duration) -> (HandOff, HandOff) {
    let pair = (engine(lease), engine(lease));
    meet(&pair.0, &pair.1);
    pair
}

const LONG: Duration = Duration::from_secs(30);

/// Each part of each block has a value of its own.
fn filled(handoff: &HandOff, blocks: u32) -> BlockLease {
    let mut lease = handoff.pool().blocks().take(blocks).unwrap();
    for at in 0..blocks as usize {
        for part in lease.parts() {
            lease.part_mut(at, part).unwrap().fill((at * 7) as u8 + part as u8 + 1);
        }
    }
    lease
}

fn check(lease: &BlockLease, from: usize) {
    for at in 0..lease.blocks().len() {
        for part in lease.parts() {
            let value = ((at + from) * 7) as u8 + part as u8 + 1;
            assert!(
                lease.part(at, part).unwrap().iter().all(|byte| *byte == value),
                "block {at} part {part}"
            );
        }
    }
}

fn sent(ticket: &KvTicket) -> KvTicket {
    KvTicket::from_json(&ticket.to_json()).unwrap()
}

fn until(mut is_so: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if is_so() {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("it does not come to be");
}

fn all_free(handoffs: [&HandOff; 2]) {
    until(|| handoffs.iter().all(|handoff| handoff.pool().free() == BLOCKS));
}

#[test]
fn what_is_fetched_may_be_used_once_the_owner_said_so_and_everything_comes_back() {
    let (p, d) = pair(LONG);
    let offer = p.offer("r", filled(&p, 5), 18, Some(42)).wait().unwrap();
    assert_eq!(
        (offer.ticket().tokens(), offer.ticket().blocks(), offer.ticket().first_token()),
        (18, 5, Some(42))
    );
    let tracked = d.track(sent(offer.ticket())).unwrap();
    let fetched = tracked.fetch(d.pool().blocks().take(5).unwrap()).wait().unwrap();
    check(&fetched.lease, 0);
    assert_eq!((fetched.first_token, fetched.reports.len()), (Some(42), 1));
    assert_eq!(offer.ended().wait().unwrap(), Outcome::Delivered);
    drop(fetched);
    all_free([&p, &d]);
    assert_eq!((p.stats().delivered, d.stats().fetched, p.stats().leases), (1, 1, 0));
    until(|| p.stats().bytes_given == d.stats().bytes_taken);
}

#[test]
fn a_warm_prefix_is_left_out() {
    let (p, d) = pair(LONG);
    let offer = p.offer("r", filled(&p, 5), 18, None).wait().unwrap();
    let tracked = d.track(sent(offer.ticket())).unwrap();
    let fetched = tracked.fetch_after(d.pool().blocks().take(2).unwrap(), 3).wait().unwrap();
    check(&fetched.lease, 3);
    assert_eq!(offer.ended().wait().unwrap(), Outcome::Delivered);
}

/// While blocks may still be read, the owner must not hear that they are left alone: neither when the read failed, nor
/// when all of the hand-off is overdue.
#[test]
fn p1_an_owner_hears_that_a_fetch_was_given_up_only_when_nothing_reads_its_blocks_any_more() {
    let hour = Duration::from_secs(3600);
    let lost = TransportError::PeerLost("as planned".to_owned());
    let failing = Plan::new().stall(1, Hold::Times(2)).fail(Call::Poll, 3, lost).busy(1, Hold::For(hour));
    for (plan, fails) in [(failing, true), (Plan::new().stall(1, Hold::For(hour)), false)] {
        let (transport, control) = plan.over_local();
        let faulty = Connector::builder().transport(transport).build().unwrap();
        let limit = Duration::from_millis(if fails { 10_000 } else { 300 });
        let (p, d) = (engine(LONG), engine_over(&faulty, LONG, limit));
        meet(&p, &d);
        let offer = p.offer("r", filled(&p, 3), 12, None).wait().unwrap();
        let tracked = d.track(sent(offer.ticket())).unwrap();
        let fetching = tracked.fetch(d.pool().blocks().take(3).unwrap());
        let check = |failed: &KvFailed, fits: bool| assert!(fits, "{failed}");
        let fetching = if fails {
            let failed = fetching.wait().unwrap_err();
            check(&failed, matches!(failed.error, KvError::Transfer(_)));
            assert!(failed.lease.is_none(), "its blocks are quarantined");
            None
        } else {
            Some(fetching)
        };
        // Long enough for the deadline to pass, and for an owner to hear of it.
        thread::sleep(Duration::from_millis(700));
        assert_eq!((p.stats().aborted, d.pool().free()), (0, BLOCKS - 3));
        control.heal();
        if let Some(failed) = fetching.map(|fetching| fetching.wait().unwrap_err()) {
            check(&failed, matches!(failed.error, KvError::DeadlineExceeded { .. }));
        }
        let outcome = offer.ended().wait().unwrap();
        // The transport may have told the owner of the failure first, when it was quiet.
        assert!(outcome == Outcome::Aborted || (fails && outcome == Outcome::Failed), "{outcome:?}");
        all_free([&p, &d]);
    }
}

#[test]
fn a_stream_that_is_dropped_before_its_end_is_taken_back() {
    let (p, d) = pair(LONG);
    let streaming = p.stream("r", 5, 18).wait().unwrap();
    let tracked = d.track(sent(streaming.ticket())).unwrap();
    let fetching = tracked.fetch(d.pool().blocks().take(5).unwrap());
    streaming.send(filled(&p, 2), 0).wait().unwrap();
    drop(streaming);
    let failed = fetching.wait().unwrap_err();
    // By the owner's word, or by the transport if it was about to read.
    assert!(matches!(failed.error, KvError::LeaseExpired { .. } | KvError::Transfer(_)), "{failed}");
    drop(failed);
    all_free([&p, &d]);
    assert_eq!((p.stats().withdrawn, p.stats().leases), (1, 0));
}

#[test]
fn several_takers_get_the_same_blocks() {
    let (p, d) = pair(LONG);
    let offers = p.fan_out("r", filled(&p, 3), 12, None, 3).wait().unwrap();
    let tickets: Vec<KvTicket> = offers.iter().map(|offer| sent(offer.ticket())).collect();
    for ticket in tickets {
        let fetched = d.track(ticket).unwrap().fetch(d.pool().blocks().take(3).unwrap()).wait().unwrap();
        check(&fetched.lease, 0);
    }
    assert!(offers.into_iter().all(|offer| offer.ended().wait().unwrap() == Outcome::Delivered));
    all_free([&p, &d]);
}

#[test]
fn an_owner_gives_blocks_up_when_nobody_comes_and_says_late_to_who_comes_then() {
    let (p, d) = pair(Duration::from_millis(60));
    let offer = p.offer("r", filled(&p, 5), 18, Some(1)).wait().unwrap();
    let (ticket, ended) = offer.into_parts();
    assert_eq!(ended.wait().unwrap(), Outcome::Expired);
    until(|| p.pool().free() == BLOCKS);
    let failed =
        d.track(sent(&ticket)).unwrap().fetch(d.pool().blocks().take(5).unwrap()).wait().unwrap_err();
    // Over local the offer is gone with its lease; where a transport still serves it, the owner says late.
    assert!(matches!(failed.error, KvError::Transfer(_) | KvError::LeaseExpired { .. }), "{failed}");
    assert!(failed.error.is_retryable() && failed.lease.is_some());
    drop(failed);
    all_free([&p, &d]);
}

#[test]
fn heartbeats_hold_a_lease_for_as_long_as_somebody_is_at_it() {
    let (p, d) = pair(Duration::from_secs(1));
    let offer = p.offer("r", filled(&p, 5), 18, None).wait().unwrap();
    let tracked = d.track(sent(offer.ticket())).unwrap();
    // Queued for several leases.
    thread::sleep(Duration::from_millis(2500));
    let fetched = tracked.fetch(d.pool().blocks().take(5).unwrap()).wait().unwrap();
    check(&fetched.lease, 0);
    assert_eq!(offer.ended().wait().unwrap(), Outcome::Delivered);
}

#[test]
fn a_hand_off_given_up_ends_at_once_and_both_sides_have_their_blocks_again() {
    let (p, d) = pair(LONG);
    let offer = p.offer("r", filled(&p, 5), 18, None).wait().unwrap();
    let tracked = d.track(sent(offer.ticket())).unwrap();
    tracked.abort().wait().unwrap();
    assert_eq!(offer.ended().wait().unwrap(), Outcome::Aborted);
    all_free([&p, &d]);

    // By dropping it, in the middle of whatever it does.
    for micros in [0, 50, 300, 2000] {
        let offer = p.offer("r", filled(&p, 5), 18, None).wait().unwrap();
        let fetch = d.track(sent(offer.ticket())).unwrap().fetch(d.pool().blocks().take(5).unwrap());
        thread::sleep(Duration::from_micros(micros));
        drop(fetch);
        let outcome = offer.ended().wait().unwrap();
        assert!(matches!(outcome, Outcome::Aborted | Outcome::Failed | Outcome::Delivered), "{outcome:?}");
        all_free([&p, &d]);
    }
}

#[test]
fn an_owner_takes_a_request_back_and_its_taker_hears_of_it() {
    let (p, d) = pair(LONG);
    let streaming = p.stream("r", 5, 18).wait().unwrap();
    let fetch = d.track(sent(streaming.ticket())).unwrap().fetch(d.pool().blocks().take(5).unwrap());
    assert_eq!(streaming.withdraw().wait().unwrap(), Outcome::Withdrawn);
    let failed = fetch.wait().unwrap_err();
    assert!(matches!(failed.error, KvError::LeaseExpired { .. }), "{failed}");
    assert!(failed.lease.is_some());
    drop(failed);
    all_free([&p, &d]);
}

#[test]
fn blocks_are_handed_off_while_they_are_computed_by_chunks_and_by_layers() {
    let (p, d) = pair(LONG);
    // Chunk by chunk: the ticket goes first.
    let streaming = p.stream("r", 6, 24).wait().unwrap();
    let fetch = d.track(sent(streaming.ticket())).unwrap().fetch(d.pool().blocks().take(6).unwrap());
    let (first, rest) = filled(&p, 6).split_blocks(2);
    let (second, third) = rest.split_blocks(2);
    streaming.send(first, 0).wait().unwrap();
    thread::sleep(Duration::from_millis(10));
    streaming.send(second, 2).wait().unwrap();
    let ended = streaming.finish(third, 4, Some(9)).wait().unwrap();
    let fetched = fetch.wait().unwrap();
    check(&fetched.lease, 0);
    assert_eq!((fetched.first_token, fetched.reports.len()), (Some(9), 3));
    assert_eq!(ended.wait().unwrap(), Outcome::Delivered);
    drop(fetched);
    all_free([&p, &d]);

    // Layer by layer.
    let streaming = p.stream("r", 6, 24).wait().unwrap();
    let fetch = d.track(sent(streaming.ticket())).unwrap().fetch(d.pool().blocks().take(6).unwrap());
    let (first, second) = filled(&p, 6).split_parts(2);
    streaming.send(first, 0).wait().unwrap();
    let ended = streaming.finish(second, 0, None).wait().unwrap();
    check(&fetch.wait().unwrap().lease, 0);
    assert_eq!(ended.wait().unwrap(), Outcome::Delivered);
    all_free([&p, &d]);

    // Chunks that overlap, and a last one that leaves some out.
    for (at, last) in [(0, 0), (4, 4)] {
        let streaming = p.stream("r", 6, 24).wait().unwrap();
        let fetch = d.track(sent(streaming.ticket())).unwrap().fetch(d.pool().blocks().take(6).unwrap());
        let (first, second) = filled(&p, 4).split_blocks(2);
        streaming.send(first, at).wait().unwrap();
        let ended = streaming.finish(second, last, None).wait().unwrap();
        let failed = fetch.wait().unwrap_err();
        assert!(matches!(failed.error, KvError::Malformed(_)), "{failed}");
        assert!(matches!(ended.wait().unwrap(), Outcome::Aborted | Outcome::Failed));
        drop(failed);
        all_free([&p, &d]);
    }
}

#[test]
fn blocks_are_pushed_in_every_plan() {
    let (p, d) = pair(LONG);
    let two = NonZero::new(2).unwrap();
    let one = NonZero::new(1).unwrap();
    for plan in [PushPlan::Whole, PushPlan::Chunks(two), PushPlan::Layers(one)] {
        let lease = d.pool().blocks().take(5).unwrap();
        let expected = d.expect(&p.engine(), "r", lease, plan).wait().unwrap();
        let ticket = PushTicket::from_json(&expected.ticket().to_json()).unwrap();
        let source = filled(&p, 5).into_shared();
        for index in 0..ticket.pushes() {
            let blocks = match plan {
                PushPlan::Chunks(_) => source.select_blocks(2 * index..5.min(2 * index + 2)).unwrap(),
                _ => source.clone(),
            };
            p.push(&ticket, index, blocks).wait().unwrap();
        }
        let fetched = expected.fetched().wait().unwrap();
        check(&fetched.lease, 0);
        drop((fetched, source));
        all_free([&p, &d]);
    }
}

#[test]
fn an_abort_of_pushed_blocks_is_answered_and_no_push_begins_after_it() {
    let (p, d) = pair(LONG);
    let two = NonZero::new(2).unwrap();
    let lease = d.pool().blocks().take(4).unwrap();
    let expected = d.expect(&p.engine(), "r", lease, PushPlan::Chunks(two)).wait().unwrap();
    let ticket = expected.ticket().clone();
    let source = filled(&p, 4).into_shared();
    p.push(&ticket, 0, source.select_blocks(0..2).unwrap()).wait().unwrap();
    expected.abort().wait().unwrap();
    until(|| d.pool().free() == BLOCKS);
    let refused = p.push(&ticket, 1, source.select_blocks(2..4).unwrap()).wait().unwrap_err();
    assert!(matches!(refused, KvError::Aborted { .. }), "{refused}");
    assert!(matches!(p.push(&ticket, 7, source).wait(), Err(KvError::Malformed(_))));
    all_free([&p, &d]);
}

#[test]
fn strangers_and_wrong_sizes_are_refused_by_name() {
    let (p, d) = pair(LONG);
    let stranger = engine(LONG);
    let offer = p.offer("r", filled(&p, 2), 8, None).wait().unwrap();
    assert!(matches!(stranger.track(sent(offer.ticket())), Err(KvError::UnknownEngine { .. })));
    let lease = stranger.pool().blocks().take(1).unwrap();
    let failed = stranger.expect(&p.engine(), "r", lease, PushPlan::Whole).wait().unwrap_err();
    assert!(matches!(failed.error, KvError::UnknownEngine { .. }) && failed.lease.is_some());
    let short =
        d.track(sent(offer.ticket())).unwrap().fetch(d.pool().blocks().take(1).unwrap()).wait().unwrap_err();
    assert!(matches!(short.error, KvError::Blocks(BlockError::Count { local: 1, remote: 2 })), "{short}");
    assert_eq!(offer.ended().wait().unwrap(), Outcome::Aborted);
    // Somebody who was met one way only: the owner does not answer to it.
    stranger.meet(&p.pool().card().wait().unwrap()).unwrap();
    drop(short);
    all_free([&p, &d]);
}

#[test]
fn an_owner_that_ends_fails_its_takers_and_no_wait_hangs() {
    let (p, d) = pair(Duration::from_millis(200));
    let streaming = p.stream("r", 5, 18).wait().unwrap();
    let ticket = sent(streaming.ticket());
    let fetch = d.track(ticket).unwrap().fetch(d.pool().blocks().take(5).unwrap());
    drop((p, streaming));
    let failed = fetch.wait().unwrap_err();
    assert!(matches!(failed.error, KvError::LeaseExpired { .. }), "{failed}");
    until(|| d.pool().free() == BLOCKS || failed.lease.is_some());
}

#[test]
fn p5_damaged_tickets_are_refused() {
    let (p, d) = pair(LONG);
    let offer = p.offer("r", filled(&p, 2), 8, None).wait().unwrap();
    let json = offer.ticket().to_json();
    for (from, to) in [
        ("\"lease_ms\":30000", "\"lease_ms\":0"),
        ("\"lease_ms\":30000", "\"lease_ms\":18446744073709551615"),
        ("\"blocks\":[0,1]", "\"blocks\":[]"),
        ("\"chunks\":[", "\"chunks\":[7,"),
        ("\"tokens\":8", "\"tokens\":-8"),
    ] {
        assert!(json.contains(from), "{from} in {json}");
        assert!(matches!(KvTicket::from_json(&json.replace(from, to)), Err(KvError::Malformed(_))), "{to}");
    }
    let long = json.replace("\"request\":\"r\"", &format!("\"request\":\"{}\"", "r".repeat(300)));
    assert!(KvTicket::from_json(&long).is_err());
    assert!(!format!("{:?}", offer.ticket()).contains("key"));
    // A ticket for other blocks than are on offer.
    let forged = KvTicket::from_json(&json.replace("\"blocks\":[0,1]", "\"blocks\":[4,5]")).unwrap();
    let failed = d.track(forged).unwrap().fetch(d.pool().blocks().take(2).unwrap()).wait().unwrap_err();
    assert!(matches!(failed.error, KvError::Transfer(_)), "{failed}");
}
