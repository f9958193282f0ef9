//! Pools over `local`, within one process; between processes, and over NIXL, in `tests/tests/blocks.rs`.

use std::sync::Arc;

use super::*;
use crate::{Connector, Device, Error, MetadataError, Region};

fn pair() -> (Connector, Connector) {
    (Connector::local().unwrap(), Connector::local().unwrap())
}

fn pool(connector: &Connector, layout: BlockLayout) -> BlockPool {
    connector.block_pool(layout).wait().unwrap()
}

fn by_block(blocks: u32) -> BlockLayout {
    BlockLayout::block_major(blocks, &[64, 32]).unwrap()
}

/// Each part of each block differs from all others.
fn fill(lease: &mut BlockLease) {
    for at in 0..lease.blocks().len() {
        for part in lease.parts() {
            let value = (lease.blocks()[at] * 7 + part * 3 + 1) as u8;
            lease.part_mut(at, part).unwrap().fill(value);
        }
    }
}

/// What `lease` has is what [`fill`] put into `blocks`.
fn check(lease: &BlockLease, blocks: &[u32]) {
    assert_eq!(lease.blocks().len(), blocks.len());
    for (at, block) in blocks.iter().enumerate() {
        for part in lease.parts() {
            let value = (block * 7 + part * 3 + 1) as u8;
            assert!(
                lease.part(at, part).unwrap().iter().all(|byte| *byte == value),
                "block {block} part {part}"
            );
        }
    }
}

#[test]
fn blocks_travel_by_number_in_both_directions_and_between_layouts() {
    let (a, b) = pair();
    let (here, there) = (pool(&a, by_block(8)), pool(&b, BlockLayout::part_major(6, &[64, 32]).unwrap()));
    let (card, other) = (here.card().wait().unwrap(), there.card().wait().unwrap());
    let remote = b.remote_blocks(BlockCard::from_json(&card.to_json()).unwrap());
    assert!(remote.connect().wait().unwrap().starts_with(a.worker_id()));

    let mut blocks = here.take_these(&[6, 1, 2]).unwrap();
    fill(&mut blocks);
    let offer = here.offer_readable(blocks).wait().unwrap();
    let ticket = BlockTicket::from_json(&offer.ticket.to_json()).unwrap();
    assert_eq!((ticket.blocks(), ticket.parts(), ticket.card()), (&[6, 1, 2][..], 0..2, card.id()));
    let lease = there.take_these(&[5, 0, 3]).unwrap();
    let lease = remote.read(&ticket, lease).wait().unwrap().wait_for_completion().wait().unwrap().memory;
    check(&lease, &[6, 1, 2]);
    offer.operation.wait_for_completion().wait().unwrap();
    assert_eq!((here.free(), there.free()), (8, 3));

    // And pushed back, into other blocks.
    let offer = here.offer_writable(here.take_these(&[0, 4, 7]).unwrap()).wait().unwrap();
    let back = a.remote_blocks(other);
    assert!(matches!(
        back.write(here.take(3).unwrap(), &offer.ticket).wait().unwrap_err(),
        Error::Blocks(BlockError::StaleCard { .. })
    ));
    remote.write(lease, &offer.ticket).wait().unwrap().wait_for_completion().wait().unwrap();
    let received = offer.operation.wait_for_completion().wait().unwrap().memory;
    check(&received, &[6, 1, 2]);
    drop(received);
    assert_eq!((here.free(), there.free()), (8, 6), "all are back");
}

#[test]
fn parts_and_prefixes_travel_apart_from_the_rest() {
    let (a, b) = pair();
    let (here, there) = (pool(&a, by_block(8)), pool(&b, by_block(8)));
    let remote = b.remote_blocks(here.card().wait().unwrap());
    let mut blocks = here.take(4).unwrap();
    fill(&mut blocks);
    let numbers = blocks.blocks().to_vec();
    let shared = blocks.into_shared();

    // Part 1 first, then part 0; each for itself.
    let (first, second) = there.take(4).unwrap().split_parts(1);
    for lease in [second, first] {
        let offer = here.offer_readable(shared.select_parts(lease.parts()).unwrap()).wait().unwrap();
        let read = remote.read(&offer.ticket, lease).wait().unwrap();
        check(&read.wait_for_completion().wait().unwrap().memory, &numbers);
        offer.operation.wait_for_completion().wait().unwrap();
    }
    assert_eq!(there.free(), 8, "a block is back when all its pieces are");

    // Who has the first two blocks reads the rest of the offer, which completes by that.
    let offer = here.offer_readable(shared.clone()).wait().unwrap();
    let rest = offer.ticket.select_blocks(2..4).unwrap();
    let lease =
        remote.read(&rest, there.take(2).unwrap()).wait().unwrap().wait_for_completion().wait().unwrap();
    check(&lease.memory, &numbers[2..]);
    offer.operation.wait_for_completion().wait().unwrap();
    assert_eq!(here.free(), 4, "the caller's share is not dropped");
    drop(shared);
    assert_eq!(here.free(), 8);
    assert_eq!(offer.ticket.select_blocks(4..4), None);
    assert_eq!(offer.ticket.select_blocks(3..5), None);
}

#[test]
fn what_does_not_fit_is_refused_by_name_and_the_lease_comes_back() {
    let (a, b) = pair();
    let here = pool(&a, by_block(4));
    let there = pool(&b, BlockLayout::block_major(4, &[64, 16, 8]).unwrap());
    let remote = b.remote_blocks(here.card().wait().unwrap());
    let offer = here.offer_readable(here.take(2).unwrap()).wait().unwrap();
    let refused = |ticket: &BlockTicket, lease: BlockLease| {
        let failed = remote.read(ticket, lease).wait().unwrap_err();
        assert!(failed.memory.returned().is_some());
        match failed.error {
            Error::Blocks(error) => error,
            other => panic!("{other}"),
        }
    };
    let (parts, _) = there.take(2).unwrap().split_parts(2);
    assert_eq!(refused(&offer.ticket, parts), BlockError::PartSize { part: 1, local: 16, remote: 32 });
    assert_eq!(
        refused(&offer.ticket, there.take(2).unwrap()),
        BlockError::Parts { ticket: 0..2, lease: 0..3, card: 2 }
    );
    let (parts, _) = there.take(3).unwrap().split_parts(2);
    assert_eq!(refused(&offer.ticket, parts), BlockError::Count { local: 3, remote: 2 });
    let forged = offer.ticket.to_json().replace("\"blocks\":[0,1]", "\"blocks\":[0,4]");
    let (parts, _) = there.take(2).unwrap().split_parts(2);
    let forged = BlockTicket::from_json(&forged).unwrap();
    assert_eq!(refused(&forged, parts), BlockError::UnknownBlock { block: 4, blocks: 4 });
    // A block that is on the card and not on offer: the peer itself says no (P8).
    let other = pool(&b, by_block(4));
    let forged = offer.ticket.to_json().replace("\"blocks\":[0,1]", "\"blocks\":[0,3]");
    let forged = BlockTicket::from_json(&forged).unwrap();
    let read = remote.read(&forged, other.take(2).unwrap()).wait().unwrap();
    let error = read.wait_for_completion().wait().unwrap_err().error;
    assert!(error.to_string().contains("not on offer"), "{error}");
    assert_eq!((there.free(), other.free()), (4, 4));
    // Answered when the memory is quiet; a drop alone gives the blocks back a little later.
    offer.operation.cancel().wait().unwrap_err();

    assert_eq!(here.take(5).unwrap_err(), BlockError::Exhausted { wanted: 5, free: 4 });
    let _held = here.take_these(&[2]).unwrap();
    assert_eq!(here.take_these(&[0, 2]).unwrap_err(), BlockError::Taken { block: 2 });
    assert_eq!(here.free(), 3);
    let foreign = pool(&a, by_block(4)).take(1).unwrap();
    assert!(matches!(here.offer_readable(foreign).wait(), Err(Error::Blocks(BlockError::Layout(_)))));
}

#[test]
fn an_offer_given_up_gives_its_blocks_back_and_its_ticket_is_worth_nothing() {
    let (a, b) = pair();
    let (here, there) = (pool(&a, by_block(4)), pool(&b, by_block(4)));
    let remote = b.remote_blocks(here.card().wait().unwrap());
    let offer = here.offer_writable(here.take(2).unwrap()).wait().unwrap();
    let ticket = offer.ticket.clone();
    offer.operation.cancel().wait().unwrap_err();
    let write = remote.write(there.take(2).unwrap(), &ticket).wait().unwrap();
    write.wait_for_completion().wait().unwrap_err();
    assert_eq!((here.free(), there.free()), (4, 4));
}

#[test]
fn memory_that_exists_becomes_a_pool_and_is_kept_until_the_last_lease_is_gone() {
    let (a, b) = pair();
    let mut memory = vec![0u8; 4 * 96];
    let range = Region::new(Device::CPU, memory.as_mut_ptr() as u64, memory.len() as u64).unwrap();
    let owner: Arc<Vec<u8>> = Arc::new(memory);
    let weak = Arc::downgrade(&owner);
    // SAFETY: the buffer is the owner's alone, which nobody reads otherwise.
    let here = unsafe { a.block_pool_over(by_block(4), vec![range], Vec::new(), owner) }.wait().unwrap();
    let remote = b.remote_blocks(here.card().wait().unwrap());
    let mut lease = here.take(1).unwrap();
    fill(&mut lease);
    drop(here.clone());
    let offer = here.offer_readable(lease).wait().unwrap();
    drop(here);
    assert!(weak.upgrade().is_some());
    let inbox = pool(&b, by_block(1));
    let read = remote.read(&offer.ticket, inbox.take(1).unwrap()).wait().unwrap();
    check(&read.wait_for_completion().wait().unwrap().memory, &[0]);
    offer.operation.wait_for_completion().wait().unwrap();
    a.shutdown(std::time::Duration::from_secs(5)).wait().unwrap();
    assert!(weak.upgrade().is_none());

    let short = Region::new(Device::CPU, 4096, 10).unwrap();
    // SAFETY: it is refused before anybody looks at it.
    let refused = unsafe { b.block_pool_over(by_block(4), vec![short], Vec::new(), Arc::new(())) }.wait();
    assert!(matches!(refused, Err(Error::Blocks(BlockError::Layout(_)))));
}

#[test]
fn a_lease_in_an_offer_comes_back_only_when_nobody_is_at_it() {
    let (a, _) = pair();
    let here = pool(&a, by_block(4));
    let (first, rest) = here.take(3).unwrap().split_blocks(1);
    assert_eq!((first.blocks(), rest.blocks()), (&[0][..], &[1, 2][..]));
    let offer = here.offer_readable(first).wait().unwrap();
    drop(rest);
    assert_eq!(here.free(), 1, "the offer has one of the three, which go back together");
    offer.operation.cancel().wait().unwrap_err();
    assert_eq!(here.free(), 4);
}

#[test]
fn p5_damaged_cards_and_tickets_are_refused_by_field() {
    let (a, _) = pair();
    let here = pool(&a, by_block(4));
    let card = here.card().wait().unwrap();
    let json = card.to_json();
    assert_eq!(BlockCard::from_json(&json).unwrap(), card);
    assert_eq!(BlockCard::from_json(&json).unwrap().id(), card.id());
    let damaged = |from: &str, to: &str| {
        assert!(json.contains(from), "{from} in {json}");
        BlockCard::from_json(&json.replace(from, to)).unwrap_err()
    };
    assert_eq!(damaged("\"version\":1", "\"version\":2"), MetadataError::Version { found: 2, supported: 1 });
    assert!(damaged("\"blocks\":4", "\"blocks\":5").to_string().contains("reaches past its range"));
    assert!(damaged("\"blocks\":4", "\"blocks\":0").to_string().contains("0 blocks"));
    assert!(damaged("\"offset\":64", "\"offset\":63").to_string().contains("overlap"));
    assert!(damaged("\"stride\":96", "\"stride\":18446744073709551615").to_string().contains("parts"));
    assert!(damaged("\"blocks\":4", "\"blocks\":4,\"more\":1").to_string().contains("more"));
    let pieces: String =
        (0..=MAX_PARTS).map(|_| "{\"range\":0,\"offset\":0,\"stride\":1,\"size\":1},").collect();
    let many = json.replace("\"parts\":[", &format!("\"parts\":[{pieces}"));
    assert!(BlockCard::from_json(&many).unwrap_err().to_string().contains("more than the limit of 4096"));
    assert!(!format!("{card:?}").contains("nixl_metadata"));

    let offer = here.offer_readable(here.take(2).unwrap()).wait().unwrap();
    let json = offer.ticket.to_json();
    assert_eq!(BlockTicket::from_json(&json).unwrap(), offer.ticket);
    let damaged = |from: &str, to: &str| {
        assert!(json.contains(from), "{from} in {json}");
        BlockTicket::from_json(&json.replace(from, to)).unwrap_err().to_string()
    };
    assert!(damaged("\"blocks\":[0,1]", "\"blocks\":[]").contains("blocks: there are none"));
    assert!(damaged("\"blocks\":[0,1]", "\"blocks\":[0,-1]").contains("blocks[1]"));
    assert!(damaged("\"parts\":[0,2]", "\"parts\":[2,2]").contains("parts"));
    assert!(damaged("\"operation_kind\":1", "\"operation_kind\":3").contains("operation_kind"));
    assert!(damaged(&card.id().to_string(), "00").contains("card"));
    let key = offer.operation.metadata().notification_key();
    assert!(damaged(key, "").contains("notification key"));
    assert!(!format!("{:?}", offer.ticket).contains(key));
}
