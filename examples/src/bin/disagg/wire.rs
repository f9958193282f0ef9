//! What the processes of the demo say to each other, as JSON over HTTP.

use std::time::Duration;

use connect_core::blocks::BlockCounts;
use connect_core::kv::TransferSummary;
use serde::{Deserialize, Serialize};

use crate::drill::Drill;

/// How a cache gets from prefill to decode.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Decode reads all of it when prefill is done
    Pull,
    /// Prefill writes all of it into blocks that decode handed out
    Push,
    /// Decode reads it chunk by chunk while prefill goes through the prompt
    Chunked,
    /// Decode reads it layer by layer while prefill goes through the model
    Layerwise,
}

impl Mode {
    pub(crate) const ALL: [Self; 4] = [Self::Pull, Self::Push, Self::Chunked, Self::Layerwise];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Chunked => "chunked",
            Self::Layerwise => "layerwise",
        }
    }
}

/// Introduces an engine to another.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Meet {
    pub(crate) card: String,
}

/// Asks prefill for a cache.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Prefill {
    pub(crate) request: String,
    pub(crate) prompt: Vec<u32>,
    pub(crate) mode: Mode,
    /// Blocks to push into, for [`Mode::Push`].
    pub(crate) push: Option<String>,
    pub(crate) drill: Option<Drill>,
}

/// What prefill has to say at once. With [`Mode::Chunked`] and [`Mode::Layerwise`] the cache is still to come.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Prefilled {
    pub(crate) ticket: Option<String>,
    pub(crate) first_token: Option<u32>,
    /// How long it computed, for the modes that wait for it.
    pub(crate) computed: Duration,
}

/// Asks decode for a completion.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Generate {
    pub(crate) request: String,
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: usize,
    /// How freely tokens are drawn; 0 for the most likely one.
    #[serde(default)]
    pub(crate) temperature: f32,
    pub(crate) mode: Mode,
    /// Where prefill is.
    pub(crate) prefill: String,
    pub(crate) drill: Option<Drill>,
}

/// One line of decode's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    Token(u32),
    Done(Done),
    Failed(Failure),
}

/// How a completion went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) tokens: Vec<u32>,
    /// Of the bits of all logits of the steps that decode computed.
    pub(crate) logits: String,
    pub(crate) timings: Timings,
    pub(crate) bytes: u64,
    pub(crate) descriptors: usize,
    /// The cache was computed again here, because the hand-off failed.
    pub(crate) recomputed: bool,
}

/// Where the time to the first token went.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Timings {
    /// Waiting for blocks, and for decode's turn.
    pub(crate) queue: Duration,
    /// Prefill's computing, as far as decode waited for it.
    pub(crate) prefill: Duration,
    /// The ticket's way: everything of the request to prefill that was not computing.
    pub(crate) ticket: Duration,
    /// Reading the blocks, or waiting for those that were pushed.
    pub(crate) transfer: Duration,
    /// Asking whether they may be used.
    pub(crate) commit: Duration,
    /// Out of the blocks, and decode's first step.
    pub(crate) first_step: Duration,
    /// All of it.
    pub(crate) ttft: Duration,
}

/// Why a completion failed, for programs and people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) kind: String,
    pub(crate) message: String,
    pub(crate) retryable: bool,
}

/// What an engine has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) role: String,
    pub(crate) engine: String,
    pub(crate) blocks: u32,
    pub(crate) free: u32,
    pub(crate) leases: u64,
    pub(crate) delivered: u64,
    pub(crate) aborted: u64,
    pub(crate) expired: u64,
    pub(crate) failed: u64,
    pub(crate) fetched: u64,
    pub(crate) lost: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) parked_bytes: u64,
    /// Where the blocks are that are not free.
    #[serde(default)]
    pub(crate) states: Option<States>,
    /// The transfers that it made.
    #[serde(default)]
    pub(crate) moved: Option<Moved>,
}

/// Blocks that are not free, by who has them.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct States {
    pub(crate) leased: u32,
    pub(crate) in_flight: u32,
    pub(crate) quarantined: u32,
}

impl From<BlockCounts> for States {
    fn from(counts: BlockCounts) -> Self {
        Self { leased: counts.leased, in_flight: counts.in_flight, quarantined: counts.quarantined }
    }
}

/// What an engine's transfers were like since it started. Speeds are in GB/s.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Moved {
    pub(crate) transfers: u64,
    pub(crate) bytes: u64,
    pub(crate) descriptors: u64,
    pub(crate) mean: Duration,
    pub(crate) p90: Duration,
    pub(crate) per_transfer: f64,
    pub(crate) aggregate: f64,
    pub(crate) failed: u64,
    pub(crate) late: u64,
}

impl From<TransferSummary> for Moved {
    fn from(summary: TransferSummary) -> Self {
        Self {
            transfers: summary.transfers,
            bytes: summary.bytes,
            descriptors: summary.descriptors,
            mean: summary.mean_transfer,
            p90: summary.p90_transfer,
            per_transfer: summary.speeds.per_transfer,
            aggregate: summary.speeds.aggregate,
            failed: summary.failed,
            late: summary.late,
        }
    }
}
