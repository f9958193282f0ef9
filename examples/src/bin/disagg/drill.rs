//! What goes wrong on purpose: where a request says so, its processes end, stop, give up or damage what they have.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use serde::{Deserialize, Serialize};

/// What goes wrong with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Drill {
    /// Decode flips bits of what it fetched: the check must notice.
    Corrupt,
    /// Decode gives the request up while it has the ticket.
    Abort,
    /// Decode waits for longer than the lease before it says that it has the ticket.
    Expire,
    /// Decode has the blocks, and takes its time before it goes on.
    Slow,
    /// Decode has the first half of the blocks from an earlier request, and fetches the others.
    Warm,
    /// A process is killed, as the kernel does it.
    Kill(Step),
    /// A process is stopped, as a debugger or a snapshot of its machine does it, until somebody lets it go on.
    Stop(Step),
}

/// How far a request is, in the process that [`reached`](Self::reached) is called in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    /// Prefill was asked.
    PrefillAsked,
    /// It has computed all, or the first chunk or layer; nothing but that is on offer.
    PrefillComputed,
    /// All is on offer or pushed. Where the ticket goes out last, it has not.
    PrefillOffered,
    /// Decode has the answer, and has done nothing with it yet.
    PrefillAnswered,
    /// Decode has asked prefill, and waits.
    DecodeAsked,
    /// Decode has the ticket.
    DecodeQueued,
    /// Prefill can know that decode has it.
    DecodeTracked,
    /// The transfer has begun, or the wait for what is pushed.
    DecodeFetching,
    /// Decode may use the blocks.
    DecodeFetched,
    /// Decode has made some tokens.
    DecodeDecoding,
}

impl Step {
    /// In the order in which they come.
    pub(crate) const ALL: [Self; 10] = [
        Self::PrefillAsked,
        Self::PrefillComputed,
        Self::PrefillOffered,
        Self::PrefillAnswered,
        Self::DecodeAsked,
        Self::DecodeQueued,
        Self::DecodeTracked,
        Self::DecodeFetching,
        Self::DecodeFetched,
        Self::DecodeDecoding,
    ];

    /// Whether it is prefill that something happens to.
    pub(crate) fn is_prefill(self) -> bool {
        matches!(
            self,
            Self::PrefillAsked | Self::PrefillComputed | Self::PrefillOffered | Self::PrefillAnswered
        )
    }

    /// Does what the drill says, if it is for this step. Once in this process: decode asks again when a card was stale.
    pub(crate) fn reached(self, drill: Option<Drill>) {
        /// A bit for each step.
        static DONE: AtomicU32 = AtomicU32::new(0);
        let signal = match drill {
            Some(Drill::Kill(step)) if step == self => Signal::SIGKILL,
            Some(Drill::Stop(step)) if step == self => Signal::SIGSTOP,
            _ => return,
        };
        if DONE.fetch_or(1 << self as u32, Ordering::Relaxed) & (1 << self as u32) == 0 {
            raise(signal).expect("a process can signal itself");
        }
    }

    /// The same a moment later, while this process goes on.
    pub(crate) fn soon(self, drill: Option<Drill>) {
        if matches!(drill, Some(Drill::Kill(step) | Drill::Stop(step)) if step == self) {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(30)).await;
                self.reached(drill);
            });
        }
    }

    /// Waits until what happens [`soon`](Self::soon) in another process has happened.
    pub(crate) async fn elsewhere(self, drill: Option<Drill>) {
        if matches!(drill, Some(Drill::Kill(step) | Drill::Stop(step)) if step == self) {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}
