//! Why blocks can't be taken, named or moved.

use super::CardId;
use crate::ErrorCategory;

/// What is wrong with a layout, a ticket, or what is asked of a pool. Nothing was moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// A layout that can't be, or does not fit its memory.
    #[error("block layout refused: {0}")]
    Layout(String),
    /// The pool has not so many free blocks. Wait for leases to come back, or make the pool larger.
    #[error("{wanted} blocks were asked for, and {free} are free; retry when leases have come back")]
    Exhausted {
        /// Blocks asked for.
        wanted: u32,
        /// Blocks there are.
        free: u32,
    },
    /// A block that is out already, or that the pool does not have.
    #[error("block {block} is taken, or there is none of that number")]
    Taken {
        /// Its number.
        block: u32,
    },
    /// The ticket is for another card: the peer restarted, or its agent was replaced. Ask the peer for its card, and
    /// use that.
    #[error("the ticket is for card {ticket}, and this is card {card}; ask the peer for its current card")]
    StaleCard {
        /// The card that is here.
        card: CardId,
        /// The card the ticket is for.
        ticket: CardId,
    },
    /// The ticket names a block that its card does not have.
    #[error("block {block} is none of the {blocks} on the card")]
    UnknownBlock {
        /// Its number.
        block: u32,
        /// Blocks on the card.
        blocks: u32,
    },
    /// The ticket is for other parts than the lease, or for parts that its card does not have.
    #[error("the ticket is for parts {ticket:?}, the lease has {lease:?}, and the card {card}")]
    Parts {
        /// Of the ticket.
        ticket: std::ops::Range<u32>,
        /// Of the lease.
        lease: std::ops::Range<u32>,
        /// How many the card has.
        card: u32,
    },
    /// Blocks here and there differ in number. Take as many as the ticket names, or select some of them.
    #[error("the ticket names {remote} blocks, and {local} are given here")]
    Count {
        /// Blocks on this side.
        local: usize,
        /// Blocks of the ticket.
        remote: usize,
    },
    /// A part has another size at the peer.
    #[error("part {part} has {remote} bytes in each block at the peer, and {local} here")]
    PartSize {
        /// Which part.
        part: u32,
        /// Its bytes here.
        local: u64,
        /// Its bytes there.
        remote: u64,
    },
    /// More pieces than one operation takes. Move fewer blocks at once, or use a layout that keeps blocks together.
    #[error("{count} pieces are more than one operation takes ({max}); move fewer blocks at once")]
    TooManyPieces {
        /// How many there are.
        count: usize,
        /// How many one operation takes.
        max: usize,
    },
}

impl BlockError {
    /// Whose side it is on.
    pub fn category(&self) -> ErrorCategory {
        match self {
            Self::Layout(_) | Self::Exhausted { .. } | Self::Taken { .. } | Self::TooManyPieces { .. } => {
                ErrorCategory::Local
            }
            Self::StaleCard { .. } => ErrorCategory::Peer,
            Self::UnknownBlock { .. } | Self::Parts { .. } | Self::Count { .. } | Self::PartSize { .. } => {
                ErrorCategory::Protocol
            }
        }
    }

    /// Whether the same call, with the peer's current card where that applies, can succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Exhausted { .. } | Self::Taken { .. } | Self::StaleCard { .. })
    }
}
