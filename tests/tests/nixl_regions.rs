//! Memory that overlaps what was on offer before: allocators hand out the same addresses again, in other
//! lengths, and NIXL keeps all that it was ever told of a peer's memory.
#![cfg(feature = "nixl")]

use std::ops::Range;

use anyhow::{Context, Result};
use connect_core::transport::nixl::NixlConfig;
use connect_core::{Connector, Descriptor};
use connect_tests::{pattern, require};

/// Two peers, memory that one of them offers in parts, and what is in it.
type Peers = (Connector, Connector, Descriptor, Vec<u8>);

/// `None` where there is no NIXL.
fn peers() -> Result<Option<Peers>> {
    if !require::nixl() {
        return Ok(None);
    }
    let build = || Connector::builder().nixl(NixlConfig::default()).build();
    let content = pattern::bytes(LEN, 1);
    Ok(Some((build()?, build()?, Descriptor::new(content.clone())?, content)))
}

/// More than one slice of a transfer.
const LEN: usize = 20_000_003;

/// Offers the parts one after another, and has each read before the next is offered.
fn in_turn(parts: &[Range<usize>]) -> Result<()> {
    let Some((a, b, memory, content)) = peers()? else { return Ok(()) };
    for part in parts {
        let offer = a.create_readable(memory.slice(part.start as u64..part.end as u64)?).wait()?;
        let operation = b.begin_read(offer.metadata(), vec![0u8; part.len()]).wait()?;
        let received = operation.wait_for_completion().wait().with_context(|| format!("{part:?}"))?;
        assert!(received.memory == content[part.clone()], "wrong bytes for {part:?}");
        offer.wait_for_completion().wait()?;
    }
    Ok(())
}

/// NIXL looks for the last region that begins at or before what is asked for: the small one, which does not
/// reach to the second slice.
#[test]
fn a_large_region_around_an_earlier_small_one_is_read() -> Result<()> {
    in_turn(&[1_000_000..1_100_000, 0..LEN])
}

#[test]
fn regions_that_overlap_earlier_ones_in_every_way_are_read() -> Result<()> {
    in_turn(&[
        5000..6000,
        5000..9000,
        4000..5500,
        5500..5600,
        5000..6000,
        0..20_000,
        0..100,
        0..LEN,
        LEN - 1..LEN,
        100..LEN,
    ])
}

#[test]
fn overlapping_regions_are_read_at_once() -> Result<()> {
    let Some((a, b, memory, content)) = peers()? else { return Ok(()) };
    for round in 0..5 {
        let parts = [0..LEN, 1_000_000..1_100_000, 500_000..18_000_000, 17_000_000..LEN, 1..LEN - round];
        let offer =
            |part: &Range<usize>| a.create_readable(memory.slice(part.start as u64..part.end as u64)?).wait();
        let offers = parts.iter().map(offer).collect::<Result<Vec<_>, _>>()?;
        let begun: Vec<_> = offers
            .iter()
            .map(|offer| {
                let len = offer.metadata().total_bytes() as usize;
                b.begin_read(offer.metadata(), vec![0u8; len])
            })
            .collect();
        for (operation, part) in begun.into_iter().zip(parts) {
            let received = operation.wait()?.wait_for_completion().wait();
            let received = received.with_context(|| format!("{part:?} in round {round}"))?;
            assert!(received.memory == content[part.clone()], "wrong bytes for {part:?}");
        }
        for offer in offers {
            offer.wait_for_completion().wait()?;
        }
    }
    Ok(())
}

/// The same on this side: registrations of operations that are under way at once.
#[test]
fn overlapping_regions_are_written_from_at_once() -> Result<()> {
    let Some((a, b, memory, content)) = peers()? else { return Ok(()) };
    let parts = [1_000_000..1_100_000, 0..LEN, 500_000..18_000_000, 1..LEN];
    // Registered, and waiting: what is offered hides parts of what is written.
    let offered = b.create_readable(memory.slice(2_000_000..2_100_000)?).wait()?;
    let offers = parts.iter().map(|part| a.create_writable(vec![0u8; part.len()]).wait());
    let offers = offers.collect::<Result<Vec<_>, _>>()?;
    let begun = offers.iter().zip(&parts).map(|(offer, part)| {
        let source = memory.slice(part.start as u64..part.end as u64)?;
        Ok(b.begin_write(source, offer.metadata()))
    });
    for operation in begun.collect::<Result<Vec<_>>>()? {
        operation.wait()?.wait_for_completion().wait()?;
    }
    for (offer, part) in offers.into_iter().zip(parts) {
        let received = offer.wait_for_completion().wait()?;
        assert!(received.memory == content[part.clone()], "wrong bytes for {part:?}");
    }
    drop(offered);
    Ok(())
}
