//! The passive side's process: what it is asked, and which engine answers.

use std::env;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{Engine, attach, blocks, ours, pipe, push};
use crate::Load;
use crate::lines::Lines;

/// What the active side asks of the passive one.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Get ready for this load; answered by what the engine's active side needs to know, if anything.
    Prepare(Load),
    /// Offer so many operations, by this peer, and say when all of them have completed: two answers.
    Offer { count: usize, peer: usize },
    /// Give back what was prepared.
    Release,
}

/// When the passive side's caller knew of the end of a burst, on the clock that all processes share.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Learned(pub(super) Duration);

/// The address and length of each piece of a source.
pub(super) type Spots = Vec<(usize, usize)>;

/// Starts this program again as the passive side of `engine`.
pub(super) fn start(engine: Engine) -> Result<Lines> {
    Lines::start(Command::new(env::current_exe()?).args(["--passive", &engine.name()]))
}

/// Runs as the passive side of `engine`.
///
/// # Errors
/// An operation failed, or the active side is gone.
pub fn serve(engine: Engine) -> Result<()> {
    match engine {
        Engine::Attach => attach::serve(),
        Engine::Pipe => pipe::serve(),
        Engine::LocalPush | Engine::NixlPush | Engine::NixlTcpPush => push::serve(engine),
        Engine::LocalBlocks | Engine::NixlBlocks | Engine::NixlTcpBlocks => blocks::serve(engine),
        #[cfg(feature = "nixl")]
        Engine::Bare | Engine::BareTcp | Engine::BareLists | Engine::BarePrepared | Engine::BareRepost => {
            super::bare::serve()
        }
        _ => ours::serve(engine),
    }
}
