//! KV caches between model processes: a prefill process computes one, a decode process goes on from it.
//!
//! | | |
//! |---|---|
//! | [`KvLayout`] | the shape of a pool, and what a token takes |
//! | [`KvIdentity`], [`PoolCard`] | what two pools must agree on, compared by name before an address is looked at |
//! | [`KvPool`] | blocks, registered once; [`BlockLease`](crate::blocks::BlockLease)s go back by themselves, also from a transfer that can't be proven quiet |
//! | [`TransferSummary`], [`SpeedMeter`] | what transfers were like: times, failures, and two speeds that are not the same. Metrics, by the feature `metrics`, are in `kv::metrics` |
//! | [`HandOff`] | tickets, leases, heartbeats, and an answer of the owner's before anything that was read is used |
//!
//! # A hand-off
//! ```text
//! owner (prefill)                              taker (decode)
//!   offer(blocks) ── KvTicket, over HTTP ──▶   track(ticket)
//!        ◀────────────── beats ───────────────   from now on, queued or not
//!        ─────────────── alive ──────────────▶
//!        ◀══════ reads the blocks ════════════   fetch(lease)
//!        ◀─────────────── done ───────────────   have you held them until now?
//!   Delivered ─────────── ok ────────────────▶   the blocks may be used
//!             ─────────── late ──────────────▶   they may not: LeaseExpired
//! ```
//! Beats, questions and answers are messages between the two connectors, over the same transport as the blocks. An owner
//! frees blocks when their taker is done, gave up, or was silent for a lease; a taker uses them only after the owner
//! said OK, and gives up by its own clock when it has not heard of the owner for a lease. So neither trusts the other's
//! clock, and a process that was stopped for a minute can't decode from blocks that became another request's.
//!
//! Blocks can be handed off while they are computed, chunk by chunk or layer by layer ([`HandOff::stream`]), and pushed
//! by who has them into blocks that the taker hands out ([`HandOff::expect`]): over TCP that is faster
//! ([`Connector::faster_kind`](crate::Connector::faster_kind)).
//!
//! ```
//! use std::time::Duration;
//! use connect_core::kv::{HandOff, HandOffConfig, KvIdentity, KvLayout, KvPool, KvTicket, PoolCard};
//! use connect_core::{Connector, DType};
//!
//! // Usually in two processes.
//! let pool = || -> Result<KvPool, Box<dyn std::error::Error>> {
//!     let layout = KvLayout::new(2, 64, 16, 2, 32, DType::F32);
//!     Ok(KvPool::new(&Connector::local()?, KvIdentity::new("llama", "blake3:..."), layout).wait()?)
//! };
//! let prefill = HandOff::start(pool()?, HandOffConfig::default())?;
//! let decode = HandOff::start(pool()?, HandOffConfig::default())?;
//!
//! // Once, both ways, over any channel.
//! prefill.meet(&PoolCard::from_json(&decode.pool().card().wait()?.to_json())?)?;
//! decode.meet(&PoolCard::from_json(&prefill.pool().card().wait()?.to_json())?)?;
//!
//! // Prefill: 40 tokens.
//! let mut blocks = prefill.pool().allocate(40)?;
//! blocks.part_mut(2, 3).expect("the third block has keys and values of two layers").fill(7);
//! let offer = prefill.offer("request 1", blocks, 40, Some(17)).wait()?;
//! let ticket = offer.ticket().to_json();
//!
//! // Decode.
//! let tracked = decode.track(KvTicket::from_json(&ticket)?)?;
//! let lease = decode.pool().allocate(40)?;
//! let fetched = tracked.fetch(lease).wait()?;
//! assert_eq!((fetched.lease.part(2, 3).unwrap()[0], fetched.first_token), (7, Some(17)));
//!
//! offer.ended().wait()?;
//! assert_eq!(prefill.pool().free(), 64);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod card;
mod error;
#[cfg(test)]
mod golden;
mod handoff;
mod layout;
mod observe;
mod pool;
mod promise;
pub mod reshard;

pub use card::{KvIdentity, PROTOCOL, PoolCard};
pub use error::KvError;
pub use handoff::{
    Ended, Expected, Fetched, HandOff, HandOffConfig, HandOffStats, KvFailed, KvTicket, Offer, Outcome,
    PushPlan, PushTicket, Streaming, Tracked,
};
pub use layout::{BlockOrder, KvLayout};
#[cfg(feature = "metrics")]
pub use observe::metrics;
pub use observe::{SpeedMeter, Speeds, TransferSummary};
pub use pool::KvPool;
