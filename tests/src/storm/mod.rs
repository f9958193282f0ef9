//! The storm: peers are killed and stopped by the thousand, at random and at chosen moments, and the survivor
//! must stay well.
//!
//! [`survivor::Survivor`] is a long-lived process with one connector. It goes through rounds
//! ([`round::play`]): in each a fresh victim process ([`victim`]) gets several operations with it under way,
//! and dies or stops in the middle of them, as the round's [`plan::Plan`] says. Afterwards the survivor must have
//! * an outcome of each operation within its deadline, and of the right kind,
//! * its memory back, untouched since ([`yard::Yard`]), or counted as parked, and that for a while only,
//! * as many files and threads open as before,
//! * and served a bystander all the time, and a fresh guest afterwards, every byte right.

pub mod plan;
pub mod prey;
pub mod random;
pub mod round;
pub mod survivor;
pub mod tally;
pub mod trigger;
pub mod victim;
pub mod yard;

use std::fmt;

use anyhow::Result;
use connect_core::transport::TransportFactory;
use connect_core::transport::local::{DataPath, LocalConfig};

/// How bytes move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Way {
    /// The embedded transport, with cross-memory attach.
    Local,
    /// The embedded transport, with every byte over the socket.
    LocalStream,
    /// NIXL over shared memory.
    Nixl,
    /// NIXL over TCP.
    NixlTcp,
}

impl Way {
    /// Whether it is NIXL.
    pub fn is_nixl(self) -> bool {
        matches!(self, Self::Nixl | Self::NixlTcp)
    }

    /// What builds the transport.
    ///
    /// # Errors
    /// This program was built without NIXL.
    pub fn factory(self) -> Result<TransportFactory> {
        match self {
            Self::Local => Ok(LocalConfig::default().factory()),
            Self::LocalStream => Ok(LocalConfig::default().data_path(DataPath::Stream).factory()),
            #[cfg(feature = "nixl")]
            Self::Nixl | Self::NixlTcp => Ok(connect_core::transport::nixl::NixlConfig::default().factory()),
            #[cfg(not(feature = "nixl"))]
            Self::Nixl | Self::NixlTcp => anyhow::bail!("this program was built without NIXL"),
        }
    }

    /// What UCX must find in the environment: it reads it once, when it is loaded.
    pub fn environment(self) -> Vec<(&'static str, &'static str)> {
        // A peer that is gone is what these programs are about; UCX would write a line about each.
        let quiet = [("UCX_LOG_LEVEL", "fatal"), ("NIXL_LOG_LEVEL", "FATAL")];
        match self {
            Self::Local | Self::LocalStream => Vec::new(),
            Self::Nixl => quiet.into(),
            Self::NixlTcp => [&quiet[..], &[("UCX_TLS", "tcp")]].concat(),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::LocalStream => "local-stream",
            Self::Nixl => "nixl",
            Self::NixlTcp => "nixl-tcp",
        })
    }
}
