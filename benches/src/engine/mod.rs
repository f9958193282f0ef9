//! What is measured: [`Engine`] names each, one file holds each, and `active.rs` has the round that is the same for
//! all of them.
//!
//! Each engine runs in two processes of its own, an active and a passive one. The active one starts the passive
//! one, and does what it is asked to by the process that a person started ([`crate::pair`]).

mod active;
mod attach;
#[cfg(feature = "nixl")]
mod bare;
mod blocks;
mod memcpy;
mod original;
mod ours;
mod passive;
mod pipe;
mod push;
#[cfg(feature = "nixl")]
mod stranger;

use std::process::Command;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use active::{Active, Offers};
pub use active::{Answer, serve as serve_active};
pub use passive::serve as serve_passive;

use crate::Load;

/// Something that moves bytes from one process to another.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// This library over its embedded transport, its caller blocking.
    Local,
    /// The same, awaited on tokio.
    LocalAsync,
    /// This library over NIXL with its defaults, over shared memory.
    Nixl,
    /// The same, awaited on tokio.
    NixlAsync,
    /// This library over NIXL and TCP.
    NixlTcp,
    /// This library over NIXL, with NIXL's progress thread asleep until something arrives.
    NixlThread,
    /// This library over NIXL, never asleep while something is open.
    NixlLatency,
    /// This library over NIXL, asleep early and long.
    NixlEfficient,
    /// This library over NIXL, with UCX not told to report failures of peers: its control messages then go through
    /// shared memory, and not over TCP's loopback.
    NixlNoFailures,
    /// This library over its embedded transport, with pools of blocks and tickets.
    LocalBlocks,
    /// The same over NIXL.
    NixlBlocks,
    /// The same over NIXL and TCP.
    NixlTcpBlocks,
    /// This library over its embedded transport, pushing: the active side writes what the passive one offered.
    LocalPush,
    /// The same over NIXL.
    NixlPush,
    /// The same over NIXL and TCP.
    NixlTcpPush,
    /// nixl-sys with nothing around it: a fresh request for each operation, of lists that are kept.
    Bare,
    /// The same over TCP.
    BareTcp,
    /// nixl-sys, with the lists built anew for each operation, too.
    BareLists,
    /// nixl-sys, with lists that were prepared, and a request by index for each operation.
    BarePrepared,
    /// nixl-sys, with one request that is posted again and again.
    BareRepost,
    /// `dynamo.nixl_connect` on both sides.
    Original,
    /// One thread that copies from one buffer of its process to another.
    Memcpy,
    /// `process_vm_readv` from one process' memory into another's, with nothing around it.
    Attach,
    /// A line through a pipe to another process and an answer: nothing moves but those.
    Pipe,
}

/// How this library's caller waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Blocking,
    Async,
}

impl Engine {
    /// What people call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Local => "connect, local",
            Self::LocalAsync => "connect, local, async",
            Self::Nixl => "connect, NIXL",
            Self::NixlAsync => "connect, NIXL, async",
            Self::NixlTcp => "connect, NIXL, TCP",
            Self::NixlThread => "connect, NIXL, its thread",
            Self::NixlLatency => "connect, NIXL, latency",
            Self::NixlEfficient => "connect, NIXL, efficient",
            Self::NixlNoFailures => "connect, NIXL, UCX mode none",
            Self::LocalBlocks => "connect, local, blocks",
            Self::NixlBlocks => "connect, NIXL, blocks",
            Self::NixlTcpBlocks => "connect, NIXL, TCP, blocks",
            Self::LocalPush => "connect, local, push",
            Self::NixlPush => "connect, NIXL, push",
            Self::NixlTcpPush => "connect, NIXL, TCP, push",
            Self::Bare => "nixl-sys",
            Self::BareTcp => "nixl-sys, TCP",
            Self::BareLists => "nixl-sys, lists and request anew",
            Self::BarePrepared => "nixl-sys, prepared lists",
            Self::BareRepost => "nixl-sys, one request",
            Self::Original => "Python original",
            Self::Memcpy => "memcpy",
            Self::Attach => "process_vm_readv",
            Self::Pipe => "a pipe",
        }
    }

    /// How it is named on command lines and in records.
    pub fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether it needs the NIXL library.
    pub fn needs_nixl(self) -> bool {
        !matches!(self, Self::Local | Self::LocalAsync | Self::LocalBlocks | Self::Memcpy | Self::Attach)
    }

    /// Whether it can do this at all, and in a time that a run can afford.
    pub fn can(self, load: &Load) -> bool {
        let is_plain = load.in_flight == 1 && load.peers == 1 && load.regions == 0 && load.open == 0;
        match self {
            // Each descriptor is a tensor that its worker makes and checks, which takes it seconds for 64 MiB.
            Self::Original => {
                load.bytes() <= 64 << 20
                    && load.descriptors <= 1024
                    && load.in_flight <= 100
                    && load.regions <= 1000
                    && load.peers == 1
                    && load.open == 0
            }
            Self::LocalBlocks | Self::NixlBlocks | Self::NixlTcpBlocks => {
                load.peers == 1 && load.regions == 0 && load.open == 0 && load.strangers == 0
            }
            Self::LocalPush | Self::NixlPush | Self::NixlTcpPush | Self::Pipe => is_plain,
            Self::Memcpy | Self::Attach => is_plain && load.idle.is_zero() && load.every.is_zero(),
            Self::Bare | Self::BareTcp | Self::BareLists | Self::BarePrepared | Self::BareRepost => {
                load.open == 0
            }
            _ => true,
        }
    }

    /// Which of UCX' ways this engine's two processes take. Shared memory is what UCX itself prefers on one host.
    pub fn set_transports(self, command: &mut Command) {
        match self {
            Self::NixlTcp | Self::NixlTcpBlocks | Self::NixlTcpPush | Self::BareTcp => {
                command.env("UCX_TLS", "tcp")
            }
            _ => command.env_remove("UCX_TLS"),
        };
    }

    /// Its active side, in this process.
    fn active(self) -> Result<Box<dyn Active>> {
        Ok(match self {
            Self::Local
            | Self::Nixl
            | Self::NixlTcp
            | Self::NixlThread
            | Self::NixlLatency
            | Self::NixlEfficient
            | Self::NixlNoFailures => Box::new(ours::Ours::start(self, Waiting::Blocking)?),
            Self::LocalAsync | Self::NixlAsync => Box::new(ours::Ours::start(self, Waiting::Async)?),
            Self::LocalPush | Self::NixlPush | Self::NixlTcpPush => Box::new(push::Push::start(self)?),
            Self::Pipe => Box::new(pipe::Pipe::start()?),
            Self::LocalBlocks | Self::NixlBlocks | Self::NixlTcpBlocks => {
                Box::new(blocks::Blocks::start(self)?)
            }
            #[cfg(feature = "nixl")]
            Self::Bare | Self::BareTcp | Self::BareLists | Self::BarePrepared | Self::BareRepost => {
                Box::new(bare::Bare::start(self)?)
            }
            #[cfg(not(feature = "nixl"))]
            Self::Bare | Self::BareTcp | Self::BareLists | Self::BarePrepared | Self::BareRepost => {
                anyhow::bail!("built without NIXL; build with `--features nixl`")
            }
            Self::Original => Box::new(original::Original::start()?),
            Self::Memcpy => Box::new(memcpy::Memcpy::default()),
            Self::Attach => Box::new(attach::Attach::start()?),
        })
    }
}
