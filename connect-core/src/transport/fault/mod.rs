//! Faults on purpose, for tests: [`Plan`] wraps any transport and lets it fail, stall, block, stay busy, mix up
//! its notifications, or lose its peers.
//!
//! A service that moves tensors should be tested with peers that die and transports that stall; this makes them
//! do so on demand. A plan is scripted call by call, or made [from a seed](Plan::random); [`Control`] steers a
//! connector that is up.
//!
//! ```
//! use std::time::Duration;
//! use connect_core::transport::fault::{Call, Hold, Plan};
//! use connect_core::transport::TransportError;
//! use connect_core::{Connector, Error};
//!
//! // The first transfer loses its peer at the third look, and its memory stays busy for 20 ms.
//! let lost = TransportError::PeerLost("as planned".to_owned());
//! let plan = Plan::new().stall(1, Hold::Times(2)).fail(Call::Poll, 3, lost).busy(1, Hold::For(Duration::from_millis(20)));
//! let (transport, _control) = plan.over_local();
//!
//! let sender = Connector::local()?;
//! let receiver = Connector::builder().transport(transport).build()?;
//! let offer = sender.create_readable(vec![7u8; 64]).wait()?;
//!
//! let read = receiver.begin_read(offer.metadata(), vec![0u8; 64]).wait()?;
//! let failed = read.wait_for_completion().wait().unwrap_err();
//! assert!(matches!(failed.error, Error::Transport { source: TransportError::PeerLost(_), .. }));
//! assert!(failed.memory.is_parked(), "it says busy, so the memory can't come back yet");
//!
//! // The plan is over: the next offer is read as ever. The first may have ended with its taker.
//! let offer = sender.create_readable(vec![7u8; 64]).wait()?;
//! let read = receiver.begin_read(offer.metadata(), vec![0u8; 64]).wait()?;
//! assert_eq!(read.wait_for_completion().wait()?.memory, [7; 64]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! It is always built, because it needs nothing and costs nothing where it is not used.
//!
//! # What it never does
//! Memory is handed out and freed on a transport's word, and that stays true: it never says quiet while the
//! wrapped transport says busy, never complete before that does, and never delivers the key of an open offer as
//! a notification unless the wrapped transport did. Every fault is one that a correct transport may show.

mod control;
mod faulty;
mod plan;

pub use control::Control;
pub use plan::{Call, Hold, Plan};
