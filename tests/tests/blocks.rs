//! Pools of blocks over every transport: by number in both directions, at their ends, and after an agent was replaced.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use connect_core::blocks::{BlockCard, BlockError, BlockLayout, BlockLease, BlockPool, BlockTicket};
use connect_core::{Connector, Error};
use connect_tests::lab::{Lab, PATIENCE};
use connect_tests::process::eventually;

connect_tests::for_each_transport!(
    blocks_move_by_number_in_both_directions_and_between_layouts,
    in_the_steady_state_nothing_is_registered_described_or_connected_to,
    a_card_ends_with_its_agent_and_the_next_ticket_says_so,
    p1_blocks_given_up_in_flight_come_back_when_nobody_touches_them,
    memory_of_the_caller_s_own_stays_registered,
);

/// Keys and values of three layers, of different sizes.
const PARTS: [u64; 6] = [4096, 4096, 512, 512, 64, 64];

fn pool(connector: &Connector, layout: BlockLayout) -> Result<BlockPool> {
    Ok(connector.block_pool(layout).wait()?)
}

fn value(block: u32, part: u32) -> u8 {
    (block * 31 + part * 7 + 1) as u8
}

/// A lease of these blocks, each part with a value of its own.
fn filled(pool: &BlockPool, blocks: &[u32]) -> Result<BlockLease> {
    let mut lease = pool.take_these(blocks)?;
    for (at, block) in blocks.iter().enumerate() {
        for part in lease.parts() {
            lease.part_mut(at, part).context("a part")?.fill(value(*block, part));
        }
    }
    Ok(lease)
}

fn check(lease: &BlockLease, blocks: &[u32]) -> Result<()> {
    ensure!(lease.blocks().len() == blocks.len());
    for (at, block) in blocks.iter().enumerate() {
        for part in lease.parts() {
            let bytes = lease.part(at, part).context("a part")?;
            ensure!(bytes.iter().all(|byte| *byte == value(*block, part)), "part {part} of block {block}");
        }
    }
    Ok(())
}

/// As it arrives over a side channel.
fn sent(ticket: &BlockTicket) -> Result<BlockTicket> {
    Ok(BlockTicket::from_json(&ticket.to_json())?)
}

fn card(pool: &BlockPool) -> Result<BlockCard> {
    Ok(BlockCard::from_json(&pool.card().wait()?.to_json())?)
}

fn blocks_move_by_number_in_both_directions_and_between_layouts(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let layouts = || [BlockLayout::block_major(16, &PARTS), BlockLayout::part_major(16, &PARTS)];
    // All of them until the end: over NIXL a pool that goes takes its agent with it, and with that the others' cards.
    let pools = |connector: &Connector| -> Result<Vec<BlockPool>> {
        layouts().into_iter().map(|layout| pool(connector, layout?)).collect()
    };
    let (heres, theres) = (pools(&a)?, pools(&b)?);
    for here in &heres {
        let remote = b.remote_blocks(card(here)?);
        for there in &theres {
            let numbers = [3, 4, 5, 15, 0, 9];
            let offer = here.offer_readable(filled(here, &numbers)?).wait()?;
            let read = remote.read(&sent(&offer.ticket)?, there.take(6)?).wait()?;
            let received = read.wait_for_completion().wait()?.memory;
            check(&received, &numbers)?;
            let report = offer.operation.wait_for_completion().wait()?;
            ensure!(report.bytes == 6 * PARTS.iter().sum::<u64>());

            // Layers 1 and 2 come back first, and layer 0 last.
            let (first, rest) = here.take(6)?.split_parts(2);
            let source = received.into_shared();
            for target in [rest, first] {
                let source = source.select_parts(target.parts()).context("parts")?;
                let offer = here.offer_writable(target).wait()?;
                remote.write(source, &sent(&offer.ticket)?).wait()?.wait_for_completion().wait()?;
                check(&offer.operation.wait_for_completion().wait()?.memory, &numbers)?;
            }
            drop(source);
            ensure!(here.free() == 16 && there.free() == 16, "{here:?} {there:?}");
        }
    }
    Ok(())
}

fn in_the_steady_state_nothing_is_registered_described_or_connected_to(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let layout = BlockLayout::part_major(64, &PARTS)?;
    let (here, there) = (pool(&a, layout.clone())?, pool(&b, layout)?);
    let remote = b.remote_blocks(card(&here)?);
    let before = (a.stats().registrations, b.stats().registrations);
    for round in 0..20 {
        let numbers: Vec<u32> = (0..32).map(|at| (at * 2 + round) % 64).collect();
        let offer = here.offer_readable(filled(&here, &numbers)?).wait()?;
        ensure!(offer.ticket.card() == remote.card().id(), "the card stays the same");
        ensure!(offer.ticket.to_json().len() < 400, "{}", offer.ticket.to_json());
        let read = remote.read(&sent(&offer.ticket)?, there.take(32)?).wait()?;
        check(&read.wait_for_completion().wait()?.memory, &numbers)?;
        offer.operation.wait_for_completion().wait()?;
    }
    let after = (a.stats().registrations, b.stats().registrations);
    ensure!(before == after, "{before:?} {after:?}");
    if lab.is_nixl() {
        ensure!(after == (1, 1), "{after:?}");
    }
    Ok(())
}

fn a_card_ends_with_its_agent_and_the_next_ticket_says_so(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let layout = BlockLayout::block_major(4, &PARTS)?;
    let (here, there) = (pool(&a, layout.clone())?, pool(&b, layout)?);
    let mut remote = b.remote_blocks(card(&here)?);
    // An offer that ends without its notification takes its agent with it.
    let dropped = here.offer_readable(filled(&here, &[0])?).wait()?;
    let old = dropped.ticket.clone();
    drop(dropped);
    ensure!(eventually(PATIENCE, || here.free() == 4), "the block comes back");
    ensure!(eventually(PATIENCE, || a.stats().parked == 0));

    let offer = here.offer_readable(filled(&here, &[1, 2])?).wait()?;
    if lab.is_nixl() {
        let failed = remote.read(&offer.ticket, there.take(2)?).wait().expect_err("the card is stale");
        ensure!(matches!(failed.error, Error::Blocks(BlockError::StaleCard { .. })), "{}", failed.error);
        ensure!(failed.error.is_retryable() && failed.memory.returned().is_some());
        remote = b.remote_blocks(card(&here)?);
    }
    let read = remote.read(&sent(&offer.ticket)?, there.take(2)?).wait()?;
    check(&read.wait_for_completion().wait()?.memory, &[1, 2])?;
    offer.operation.wait_for_completion().wait()?;

    // The ticket that was withdrawn is worth nothing, with whichever card.
    let late = remote.read(&old, there.take(1)?).wait().map_err(|failed| failed.error);
    let late = late.and_then(|read| read.wait_for_completion().wait().map_err(|failed| failed.error));
    ensure!(late.is_err());
    Ok(())
}

fn p1_blocks_given_up_in_flight_come_back_when_nobody_touches_them(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let layout = BlockLayout::block_major(64, &[1 << 20])?;
    let (here, there) = (pool(&a, layout.clone())?, pool(&b, layout)?);
    let remote = b.remote_blocks(card(&here)?);
    for micros in [0, 200, 1000, 3000, 8000] {
        let offer = here.offer_readable(here.take(64)?).wait()?;
        let current = b.remote_blocks(card(&here)?);
        let known = [&remote, &current].into_iter().find(|known| known.card().id() == offer.ticket.card());
        let Some(remote) = known else {
            // The agent was replaced between the offer and the card.
            drop(offer);
            ensure!(eventually(PATIENCE, || here.free() == 64), "{here:?}");
            continue;
        };
        let read = remote.read(&offer.ticket, there.take(64)?).wait()?;
        thread::sleep(Duration::from_micros(micros));
        drop(read);
        drop(offer);
        ensure!(eventually(PATIENCE, || there.free() == 64), "{there:?}");
        // Whoever takes them next has them alone.
        let mut lease = there.take(64)?;
        let touched = |lease: &BlockLease| {
            (0..64)
                .position(|at| lease.part(at, 0).is_none_or(|bytes| bytes.iter().any(|byte| *byte != 0xFD)))
        };
        for at in 0..64 {
            lease.part_mut(at, 0).context("a part")?.fill(0xFD);
        }
        thread::sleep(Duration::from_millis(20));
        ensure!(touched(&lease).is_none(), "block {:?} was written after it came back", touched(&lease));
        ensure!(eventually(PATIENCE, || here.free() == 64), "{here:?}");
    }
    Ok(())
}

fn memory_of_the_caller_s_own_stays_registered(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let memory = std::sync::Arc::new((0..100_000).map(|at| (at % 251) as u8).collect::<Vec<u8>>());
    let weak = std::sync::Arc::downgrade(&memory);
    let registered = a.registered(memory).wait()?;
    let before = a.stats().registrations;
    let mut blobs = Vec::new();
    for _ in 0..10 {
        let offer = a.create_readable(registered.clone()).wait()?;
        blobs.push(offer.metadata().nixl_metadata().to_owned());
        let read = b.begin_read(offer.metadata(), vec![0u8; 100_000]).wait()?;
        ensure!(read.wait_for_completion().wait()?.memory == **registered);
        offer.wait_for_completion().wait()?;
    }
    blobs.dedup();
    ensure!(blobs.len() == 1 && a.stats().registrations == before, "{:?}", a.stats());
    ensure!(weak.upgrade().is_some());
    drop(registered);
    // Over NIXL that is when the agents that told of it are gone.
    ensure!(eventually(PATIENCE, || weak.upgrade().is_none()), "{:?}", a.stats());
    Ok(())
}
