//! KV hand-offs over every transport: pulled, streamed and pushed, and every way in which they end.

use std::num::NonZero;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connect_core::DType;
use connect_core::blocks::{BlockError, BlockLease};
use connect_core::kv::{
    BlockOrder, HandOff, HandOffConfig, KvError, KvIdentity, KvLayout, KvPool, KvTicket, Outcome, PoolCard,
    PushPlan, PushTicket,
};
use connect_tests::lab::{Lab, PATIENCE};
use connect_tests::process::eventually;

connect_tests::for_each_transport!(
    a_cache_is_handed_off_between_any_two_orders_of_blocks,
    a_cache_is_streamed_by_chunks_and_by_layers,
    a_cache_is_pushed_whole_by_chunks_and_by_layers,
    an_abort_gives_both_sides_their_blocks_back_without_a_new_agent,
    p1_a_taker_that_is_gone_loses_its_lease_and_the_blocks_come_back_quiet,
    p2_an_owner_that_is_gone_ends_the_wait_of_its_taker,
    p4_a_restarted_engine_is_not_taken_for_its_predecessor,
    p5_another_model_dtype_or_layout_is_refused_by_name,
    many_hand_offs_at_once_deliver_each_its_own_blocks,
);

const LAYERS: u32 = 4;
const TOKENS: u32 = 16;
const BLOCKS: u32 = 64;
const LONG: Duration = Duration::from_secs(30);

fn layout(order: BlockOrder) -> KvLayout {
    KvLayout::new(LAYERS, BLOCKS, TOKENS, 2, 64, DType::BF16).with_order(order)
}

fn identity() -> KvIdentity {
    KvIdentity::new("llama", "blake3:1234").with("rope_theta", 10_000)
}

fn engine(lab: &Lab, order: BlockOrder, lease: Duration) -> Result<HandOff> {
    let pool = KvPool::new(&lab.connector()?, identity(), layout(order)).wait()?;
    Ok(HandOff::start(pool, HandOffConfig::default().lease(lease).deadline(PATIENCE))?)
}

/// Two engines that have met.
fn pair(lab: &Lab, orders: [BlockOrder; 2], lease: Duration) -> Result<(HandOff, HandOff)> {
    let (a, b) = (engine(lab, orders[0], lease)?, engine(lab, orders[1], lease)?);
    a.meet(&PoolCard::from_json(&b.pool().card().wait()?.to_json())?)?;
    b.meet(&PoolCard::from_json(&a.pool().card().wait()?.to_json())?)?;
    Ok((a, b))
}

const BLOCK_MAJOR: [BlockOrder; 2] = [BlockOrder::BlockMajor; 2];

fn value(seed: u8, at: usize, part: u32) -> u8 {
    seed.wrapping_mul(41).wrapping_add((at * 17) as u8).wrapping_add(part as u8 * 3).max(1)
}

fn filled(handoff: &HandOff, blocks: u32, seed: u8) -> Result<BlockLease> {
    let mut lease = handoff.pool().blocks().take(blocks)?;
    for at in 0..blocks as usize {
        for part in lease.parts() {
            lease.part_mut(at, part).context("a part")?.fill(value(seed, at, part));
        }
    }
    Ok(lease)
}

fn check(lease: &BlockLease, seed: u8) -> Result<()> {
    for at in 0..lease.blocks().len() {
        for part in lease.parts() {
            let bytes = lease.part(at, part).context("a part")?;
            ensure!(bytes.iter().all(|byte| *byte == value(seed, at, part)), "block {at}, part {part}");
        }
    }
    Ok(())
}

fn sent(ticket: &KvTicket) -> Result<KvTicket> {
    Ok(KvTicket::from_json(&ticket.to_json())?)
}

fn all_free(handoffs: [&HandOff; 2]) -> Result<()> {
    let free = || handoffs.iter().all(|handoff| handoff.pool().free() == BLOCKS);
    ensure!(eventually(PATIENCE, free), "{handoffs:?}");
    Ok(())
}

/// One that goes well.
fn serves(p: &HandOff, d: &HandOff, seed: u8) -> Result<()> {
    let offer = p.offer("r", filled(p, 7, seed)?, 100, Some(3)).wait()?;
    let fetched = d.track(sent(offer.ticket())?)?.fetch(d.pool().blocks().take(7)?).wait()?;
    check(&fetched.lease, seed)?;
    ensure!(fetched.first_token == Some(3));
    ensure!(offer.ended().wait()? == Outcome::Delivered);
    Ok(())
}

fn a_cache_is_handed_off_between_any_two_orders_of_blocks(lab: &Lab) -> Result<()> {
    for here in [BlockOrder::BlockMajor, BlockOrder::LayerMajorNhd] {
        for there in [BlockOrder::BlockMajor, BlockOrder::LayerMajorNhd] {
            let (p, d) = pair(lab, [here, there], LONG)?;
            serves(&p, &d, 1)?;
            serves(&d, &p, 2)?;
            all_free([&p, &d])?;
        }
    }
    Ok(())
}

fn a_cache_is_streamed_by_chunks_and_by_layers(lab: &Lab) -> Result<()> {
    let (p, d) = pair(lab, BLOCK_MAJOR, LONG)?;
    let streaming = p.stream("r", 8, 128).wait()?;
    let fetch = d.track(sent(streaming.ticket())?)?.fetch(d.pool().blocks().take(8)?);
    let (first, rest) = filled(&p, 8, 5)?.split_blocks(3);
    let (second, last) = rest.split_blocks(3);
    streaming.send(first, 0).wait()?;
    streaming.send(second, 3).wait()?;
    let ended = streaming.finish(last, 6, Some(11)).wait()?;
    let fetched = fetch.wait()?;
    check(&fetched.lease, 5)?;
    ensure!(fetched.first_token == Some(11) && ended.wait()? == Outcome::Delivered);
    drop(fetched);

    let streaming = p.stream("r", 8, 128).wait()?;
    let fetch = d.track(sent(streaming.ticket())?)?.fetch(d.pool().blocks().take(8)?);
    let mut rest = filled(&p, 8, 6)?;
    for layer in 1..LAYERS {
        let (ready, later) = rest.split_parts(2 * layer);
        streaming.send(ready, 0).wait()?;
        rest = later;
    }
    let ended = streaming.finish(rest, 0, None).wait()?;
    let fetched = fetch.wait()?;
    check(&fetched.lease, 6)?;
    ensure!(fetched.reports.len() == LAYERS as usize && ended.wait()? == Outcome::Delivered);
    drop(fetched);
    all_free([&p, &d])
}

fn a_cache_is_pushed_whole_by_chunks_and_by_layers(lab: &Lab) -> Result<()> {
    let (p, d) = pair(lab, BLOCK_MAJOR, LONG)?;
    let (three, one) = (NonZero::new(3).context("3")?, NonZero::new(1).context("1")?);
    for (plan, seed) in [PushPlan::Whole, PushPlan::Chunks(three), PushPlan::Layers(one)].into_iter().zip(1..)
    {
        let expected = d.expect(&p.engine(), "r", d.pool().blocks().take(8)?, plan).wait()?;
        let ticket = PushTicket::from_json(&expected.ticket().to_json())?;
        let source = filled(&p, 8, seed)?.into_shared();
        for index in 0..ticket.pushes() {
            let blocks = match plan {
                PushPlan::Chunks(_) => {
                    source.select_blocks(3 * index..8.min(3 * index + 3)).context("blocks")?
                }
                _ => source.clone(),
            };
            p.push(&ticket, index, blocks).wait()?;
        }
        let fetched = expected.fetched().wait()?;
        check(&fetched.lease, seed)?;
        drop((fetched, source));
        all_free([&p, &d])?;
    }
    Ok(())
}

/// Both sides say when they are done, so nothing has to be taken away from anybody.
fn an_abort_gives_both_sides_their_blocks_back_without_a_new_agent(lab: &Lab) -> Result<()> {
    let (p, d) = pair(lab, BLOCK_MAJOR, LONG)?;
    let card = p.pool().blocks().card().wait()?.id();
    let other = d.pool().blocks().card().wait()?.id();
    serves(&p, &d, 1)?;
    for _ in 0..3 {
        let offer = p.offer("r", filled(&p, 7, 2)?, 100, None).wait()?;
        d.track(sent(offer.ticket())?)?.abort().wait()?;
        ensure!(offer.ended().wait()? == Outcome::Aborted);

        let expected = d.expect(&p.engine(), "r", d.pool().blocks().take(7)?, PushPlan::Whole).wait()?;
        let ticket = expected.ticket().clone();
        expected.abort().wait()?;
        let late = p.push(&ticket, 0, filled(&p, 7, 3)?).wait();
        ensure!(matches!(late, Err(KvError::Aborted { .. })), "{late:?}");
        all_free([&p, &d])?;
    }
    serves(&p, &d, 4)?;
    ensure!(p.pool().blocks().card().wait()?.id() == card && d.pool().blocks().card().wait()?.id() == other);
    Ok(())
}

fn p1_a_taker_that_is_gone_loses_its_lease_and_the_blocks_come_back_quiet(lab: &Lab) -> Result<()> {
    let lease = Duration::from_secs(1);
    let (p, d) = pair(lab, BLOCK_MAJOR, lease)?;
    let (ticket, ended) = p.offer("r", filled(&p, 7, 1)?, 100, None).wait()?.into_parts();
    let tracked = d.track(sent(&ticket)?)?;
    // It is there for three leases, and then not any more: no heartbeat, no abort.
    thread::sleep(3 * lease);
    ensure!(p.stats().leases == 1 && p.pool().free() == BLOCKS - 7);
    std::mem::forget(tracked);
    drop(d);
    ensure!(ended.wait()? == Outcome::Expired);
    ensure!(eventually(PATIENCE, || p.pool().free() == BLOCKS), "{p:?}");
    Ok(())
}

fn p2_an_owner_that_is_gone_ends_the_wait_of_its_taker(lab: &Lab) -> Result<()> {
    let lease = Duration::from_millis(400);
    let (p, d) = pair(lab, BLOCK_MAJOR, lease)?;
    let streaming = p.stream("r", 7, 100).wait()?;
    let fetch = d.track(sent(streaming.ticket())?)?.fetch(d.pool().blocks().take(7)?);
    std::mem::forget(streaming.withdraw());
    let failed = fetch.wait().expect_err("it was taken back");
    ensure!(matches!(failed.error, KvError::LeaseExpired { .. }), "{failed}");
    drop(failed);

    let streaming = p.stream("r", 7, 100).wait()?;
    let fetch = d.track(sent(streaming.ticket())?)?.fetch(d.pool().blocks().take(7)?);
    drop((p, streaming));
    let began = Instant::now();
    let failed = fetch.wait().expect_err("its owner is gone");
    ensure!(matches!(failed.error, KvError::LeaseExpired { .. }), "{failed}");
    ensure!(began.elapsed() < PATIENCE && failed.error.is_retryable());
    drop(failed);
    ensure!(eventually(PATIENCE, || d.pool().free() == BLOCKS), "{d:?}");
    Ok(())
}

fn p4_a_restarted_engine_is_not_taken_for_its_predecessor(lab: &Lab) -> Result<()> {
    let (p, d) = pair(lab, BLOCK_MAJOR, LONG)?;
    serves(&p, &d, 1)?;
    drop(p);
    let p = engine(lab, BlockOrder::BlockMajor, LONG)?;
    p.meet(&d.pool().card().wait()?)?;
    let offer = p.offer("r", filled(&p, 7, 2)?, 100, None).wait()?;
    let unknown = d.track(sent(offer.ticket())?).map(drop);
    ensure!(matches!(unknown, Err(KvError::UnknownEngine { .. })), "{unknown:?}");
    d.meet(&p.pool().card().wait()?)?;
    d.track(sent(offer.ticket())?)?.abort().wait()?;
    all_free([&p, &d])?;
    serves(&p, &d, 3)?;

    // A card of an agent that was replaced is stale, and says so.
    if lab.is_nixl() {
        drop(p.pool().blocks().offer_readable(filled(&p, 1, 1)?).wait()?);
        all_free([&p, &d])?;
        let again = p.offer("r", filled(&p, 7, 2)?, 100, None).wait()?;
        let stale = d.track(sent(again.ticket())?).expect_err("stale");
        ensure!(matches!(stale, KvError::Blocks(BlockError::StaleCard { .. })), "{stale}");
        ensure!(stale.is_retryable());
        d.meet(&p.pool().card().wait()?)?;
        serves(&p, &d, 4)?;
    }
    Ok(())
}

fn p5_another_model_dtype_or_layout_is_refused_by_name(lab: &Lab) -> Result<()> {
    let p = engine(lab, BlockOrder::BlockMajor, LONG)?;
    let card = p.pool().card().wait()?;
    let hnd = layout(BlockOrder::LayerMajorHnd);
    let other = KvIdentity::new("llama", "blake3:9999").with("rope_theta", 10_000);
    let float = KvLayout::new(LAYERS, BLOCKS, TOKENS, 2, 64, DType::F32);
    for (identity, layout, field) in [
        (identity(), hnd, "within_block"),
        (other, layout(BlockOrder::BlockMajor), "weights"),
        (identity(), float, "dtype"),
    ] {
        let pool = KvPool::new(&lab.connector()?, identity, layout).wait()?;
        let refused = HandOff::start(pool, HandOffConfig::default())?.meet(&card);
        ensure!(
            matches!(&refused, Err(KvError::Incompatible { field: named, .. }) if named == field),
            "{refused:?}"
        );
    }
    Ok(())
}

fn many_hand_offs_at_once_deliver_each_its_own_blocks(lab: &Lab) -> Result<()> {
    let (p, d) = pair(lab, BLOCK_MAJOR, LONG)?;
    let work = |worker: u8| -> Result<()> {
        for round in 0..12u8 {
            let seed = worker * 16 + round;
            let offer = p.offer("r", filled(&p, 3, seed)?, 40, Some(u32::from(seed))).wait()?;
            let fetched = d.track(sent(offer.ticket())?)?.fetch(d.pool().blocks().take(3)?).wait()?;
            check(&fetched.lease, seed)?;
            ensure!(
                fetched.first_token == Some(u32::from(seed)) && offer.ended().wait()? == Outcome::Delivered
            );
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..8).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no panic"))
    })?;
    ensure!(p.stats().delivered == 96 && d.stats().fetched == 96, "{:?}", p.stats());
    all_free([&p, &d])
}
