//! What the program behind `cargo xtask bench` is made of.
//!
//! [`engine`] moves bytes between two processes in one way each, [`pair`] asks such processes for rounds, [`sweep`]
//! says which and takes them in turns, [`goals`] compares, and [`report`], [`plot`] and [`record`] write down.

pub mod clock;
pub mod engine;
pub mod goals;
pub mod lines;
mod load;
pub mod machine;
pub mod metric;
pub mod pair;
mod pieces;
pub mod plot;
pub mod record;
pub mod report;
mod resident;
mod samples;
pub mod sweep;
pub mod table;

pub use engine::Engine;
pub use load::{Load, Round, Usage};
pub use pieces::{Pieces, Source};
pub use samples::Samples;
