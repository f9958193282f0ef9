//! What the tests of this package share: worker processes, the pattern that travels, the buffers that hold
//! it, and prerequisites.

pub mod child;
pub mod lab;
pub mod memory;
pub mod pattern;
pub mod process;
pub mod require;
