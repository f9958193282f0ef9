//! Every framework with every other: each as sender and as receiver, by pull and by push, in two processes, over
//! both transports, in every element type that both have, contiguous and strided, checked bit for bit.
//!
//! The program `side` plays one side of a transfer in any of the Rust roles ([`side`]), driven over JSON lines; Python
//! is `tests/python/worker.py`. The test runs all pairs and compares with `docs/matrix.md` ([`table`]).

pub mod case;
pub mod party;
pub mod side;
pub mod table;
