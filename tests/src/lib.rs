//! What the tests of this package share: worker processes, the pattern that travels, the buffers that hold
//! it, whole operations, prerequisites, and the parts of the programs `storm` and `soak`.

pub mod child;
pub mod hosts;
pub mod lab;
pub mod memory;
pub mod moves;
pub mod pattern;
pub mod process;
pub mod require;
pub mod storm;
