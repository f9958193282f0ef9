//! Pools of blocks that peers name by number: for caches whose pieces are moved again and again.
//!
//! A document with a descriptor for each of 4,096 pieces has 200 KB of JSON, and everybody who handles it goes through
//! all of it. A pool says once where its blocks are ([`BlockCard`]); after that a [`BlockTicket`] of block numbers and
//! a key is all that travels, and nothing is registered, described or connected to for it.
//!
//! | who has the pool | the peer |
//! |---|---|
//! | [`BlockPool::card`], once, to the peer | [`Connector::remote_blocks`](crate::Connector::remote_blocks), once |
//! | [`BlockPool::offer_readable`], a ticket to the peer | [`RemoteBlocks::read`] into blocks of its own |
//! | [`BlockPool::offer_writable`], a ticket to the peer | [`RemoteBlocks::write`] from blocks of its own |
//!
//! [`BlockLease`]s are blocks in use. They come back by themselves when they are dropped, by whomever: an operation
//! whose memory can't be proven quiet keeps its lease until it is (P1), so a block is never handed out while a peer may
//! still be at it. [`SharedBlocks`] are blocks that nobody writes any more, for several readers at once. The two sides
//! may lay out their blocks differently, as long as the parts have the same sizes.
//!
//! ```
//! use connect_core::Connector;
//! use connect_core::blocks::{BlockCard, BlockLayout, BlockTicket};
//!
//! let (sender, receiver) = (Connector::local()?, Connector::local()?); // usually in two processes
//! let cache = sender.block_pool(BlockLayout::block_major(64, &[4096, 4096])?).wait()?;
//! let inbox = receiver.block_pool(BlockLayout::part_major(256, &[4096, 4096])?).wait()?;
//! let card = cache.card().wait()?.to_json(); // once, to the receiver
//! let remote = receiver.remote_blocks(BlockCard::from_json(&card)?);
//!
//! let mut blocks = cache.take(3)?;
//! blocks.part_mut(2, 1).expect("three blocks of two parts").fill(7);
//! let offer = cache.offer_readable(blocks).wait()?;
//! let ticket = offer.ticket.to_json(); // for each request, to the receiver
//!
//! let ticket = BlockTicket::from_json(&ticket)?;
//! let read = remote.read(&ticket, inbox.take(ticket.blocks().len() as u32)?).wait()?;
//! let received = read.wait_for_completion().wait()?.memory;
//! assert_eq!(received.part(2, 1), Some(&[7; 4096][..]));
//! offer.operation.wait_for_completion().wait()?;
//! assert_eq!(cache.free(), 64, "and the blocks are back");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Who can reach what
//! As with [slabs](crate::pool#who-sees-which-bytes): over `local` a ticket reaches its blocks and no others, and only
//! while it is open. Over NIXL the card reaches the whole pool for as long as the agent lives, tickets or not. Give a
//! card to peers that may see every block, and each domain of trust a pool and a connector of its own.
//!
//! # When a card is stale
//! Over NIXL the card leads to one generation of this connector's agent. When that was replaced, the next ticket is for
//! a new card, and a peer with the old one gets [`BlockError::StaleCard`] before anything is moved: ask for
//! [`BlockPool::card`] again. A restarted process has another card, too (P4).

mod card;
mod counts;
mod error;
mod layout;
mod lease;
mod pool;
mod remote;
mod runs;
#[cfg(test)]
mod tests;
mod ticket;

pub use card::{BlockCard, CardId, MAX_CARD_BYTES};
pub use counts::BlockCounts;
pub use error::BlockError;
pub use layout::{BlockLayout, BlockPart, MAX_BLOCKS, MAX_PARTS, MAX_RANGES};
pub use lease::{BlockLease, SharedBlocks};
pub(crate) use lease::{Guard, Whole};
pub use pool::{BlockOffer, BlockPool};
pub use remote::RemoteBlocks;
pub use ticket::{BlockTicket, MAX_TICKET_BYTES};
