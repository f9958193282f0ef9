//! What the comparison program is made of: the two sides of a measurement, CPU time, and percentiles.

mod cpu;
mod original;
mod ours;
mod samples;

pub use cpu::CpuTime;
pub use original::Original;
pub use ours::{Engine, Offers, serve};
pub use samples::Samples;
