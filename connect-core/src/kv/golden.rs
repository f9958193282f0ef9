//! The documents of blocks and hand-offs in `golden/` are written and read byte for byte, and `docs/wire.md` shows them.

use uuid::Uuid;

use super::handoff::golden_ticket;
use super::{KvIdentity, KvLayout, KvTicket, PoolCard};
use crate::blocks::{BlockCard, BlockTicket};
use crate::{DType, Device, Region};

const BLOCK_CARD: &str = include_str!("../../golden/block_card.json");
const BLOCK_TICKET: &str = include_str!("../../golden/block_ticket.json");
const POOL_CARD: &str = include_str!("../../golden/pool_card.json");
const KV_TICKET: &str = include_str!("../../golden/kv_ticket.json");
const DOCS: &str = include_str!("../../../docs/wire.md");

const KEY: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";
const ENGINE: &str = "7c9e6679-7425-40de-944b-e07fc1f90ae7";

fn layout() -> KvLayout {
    KvLayout::new(1, 4, 16, 2, 8, DType::BF16)
}

fn card() -> BlockCard {
    let layout = layout().block_layout().unwrap();
    let range = Region::new(Device::CPU, 65_536, layout.range_bytes()[0]).unwrap();
    BlockCard::for_tests(layout, vec![range], "b64:eJxLTE/NKwEABgUCEA==".to_owned())
}

fn ticket() -> BlockTicket {
    BlockTicket::for_tests(card().id(), vec![2, 3], 0..2, KEY.to_owned())
}

#[test]
fn the_block_card_and_its_ticket() {
    assert_eq!(card().to_json(), BLOCK_CARD);
    assert_eq!(BlockCard::from_json(BLOCK_CARD).unwrap(), card());
    assert_eq!(ticket().to_json(), BLOCK_TICKET);
    assert_eq!(BlockTicket::from_json(BLOCK_TICKET).unwrap(), ticket());
}

#[test]
fn the_pool_card_and_the_ticket_of_a_hand_off() {
    let identity = KvIdentity::new("llama", "blake3:00").with("rope_theta", 10_000);
    let pool = PoolCard::new(ENGINE.to_owned(), &identity, &layout(), &card());
    assert_eq!(pool.to_json(), POOL_CARD);
    assert_eq!(PoolCard::from_json(POOL_CARD).unwrap(), pool);
    assert_eq!(pool.check(&identity, &layout()).unwrap(), card());
    let ticket = golden_ticket(Uuid::from_u128(1), ENGINE, card().id(), ticket());
    assert_eq!(ticket.to_json(), KV_TICKET);
    assert_eq!(KvTicket::from_json(KV_TICKET).unwrap(), ticket);
}

#[test]
fn docs_wire_md_shows_them() {
    for (name, document) in [
        ("block_card.json", BLOCK_CARD),
        ("block_ticket.json", BLOCK_TICKET),
        ("pool_card.json", POOL_CARD),
        ("kv_ticket.json", KV_TICKET),
    ] {
        assert!(DOCS.contains(name) && DOCS.contains(document.trim_end()), "{name}");
    }
}
