//! Pools: memory that is registered once and used piece by piece.
//!
//! [`Connector::slab`](crate::Connector::slab) makes a [`Slab`], whose [`Slot`]s come back by themselves. A slot is
//! memory like any other, so it goes into every operation:
//!
//! | to | use |
//! |---|---|
//! | send many payloads from memory that stays registered | [`Slab::take`], fill it, [`create_readable`](crate::Connector::create_readable) or [`begin_write`](crate::Connector::begin_write) |
//! | receive payloads of any size up to a slot's | [`begin_read_into`](crate::Connector::begin_read_into) with a slot |
//! | have senders push, at the pace of the receiver | [`Slab::receive`]: the receiver hands out slots, the sender writes |
//! | let several peers read one payload | [`fan_out`](crate::Connector::fan_out) with a slot |
//!
//! # What is done once
//! The slab is registered when it is made. After that an operation over its slots registers nothing, its document's
//! blob is the same as that of the one before and is not encoded again, and a peer that has seen the blob knows it.
//! [`Stats::registrations`](crate::Stats::registrations) and
//! [`Stats::registration_hits`](crate::Stats::registration_hits) show it.
//!
//! What that saves, with what fresh buffers cost beside registration: allocating them, touching their pages for the
//! first time, giving them back. Filling a buffer, offering it, and reading it within one process, two cores, median:
//!
//! | | `local`, `Vec` | `local`, slots | NIXL, `Vec` | NIXL, slots |
//! |---|---|---|---|---|
//! | 4 KiB | 24 us | 24 us | 34 us | 30 us |
//! | 1 MiB | 110 to 590 us | 82 us | 195 us | 116 us |
//! | 8 MiB | 5.5 to 6.0 ms | 0.9 ms | 7 to 12 ms | 1.5 ms |
//!
//! # Who sees which bytes
//! Slots are not cleared: what a user leaves in one is there until somebody writes over it. Nobody sees it by
//! accident, because a slot is empty when it is taken and an operation moves its length only; growing it by
//! [`resize`](Slot::resize) or by writing to it never uncovers old bytes, and [`set_len`](Slot::set_len), which does,
//! says so. A slot that comes back with a failure has unspecified bytes, like all memory.
//!
//! Over `local` a peer reaches the bytes on offer and no others. **Over NIXL it can reach the whole slab**: NIXL hands
//! out keys for what was registered, so the blob of one slot's document is that of the slab. Peers of this library
//! ask only for what the document describes; another program with that blob can read and write every slot, until the
//! offer's agent is gone (`p8_over_nixl_a_slot_s_document_reaches_the_whole_slab` shows it). It can also say that it
//! wrote a slot and not do it, and then what the last user left counts as received. Give each domain of trust a slab,
//! and a connector, of its own.
//!
//! # When its memory ends
//! When the slab and its slots are dropped, the memory is deregistered and unmapped. Over NIXL, if any of it was on
//! offer, that waits until the agents that knew it are gone, which is hastened: a document of a slot, used again by
//! whoever kept it, must not find memory of somebody else there. Until then it counts as parked
//! ([`Stats::parked_bytes`](crate::Stats::parked_bytes)).

mod mapping;
mod shared;
mod slab;
mod slot;
#[cfg(test)]
mod tests;

#[cfg(feature = "safetensors")]
pub(crate) use mapping::Mapping;
pub use slab::Slab;
pub use slot::Slot;
