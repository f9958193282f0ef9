//! What is fuzzed: everything that reads what a peer wrote. Not part of the API: compiled for this crate's own
//! tests and under `--cfg fuzzing` only.
//!
//! A [`Target`] takes any bytes and panics when a property does not hold. Beyond not panicking by itself, each
//! asserts that what is accepted comes back the same after being written again, that what is refused is
//! refused by a short error of one line, and that no more memory is taken than the input can pay for.
//!
//! `cargo xtask fuzz` runs the targets under libFuzzer. The inputs kept in `fuzz/corpus` (each reaches code
//! that no other does) and `fuzz/crashes` (each has failed once) are run by a test, see `replay.rs`.

#[cfg(test)]
mod attacks;
mod bytes;
mod documents;
mod layers;
mod layout;
mod meter;
mod nixl_blob;
#[cfg(test)]
mod replay;

use crate::transport::local;

pub(crate) use bytes::Bytes;
pub use meter::Meter;
pub(crate) use meter::{bounded, measured};

/// Something that reads bytes of a peer's.
#[derive(Debug)]
pub struct Target {
    /// Its name, and that of its folders.
    pub name: &'static str,
    /// Reads the bytes; panics when a property does not hold.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "metadata", run: documents::metadata },
    Target { name: "envelope", run: documents::envelope },
    Target { name: "media", run: documents::media },
    Target { name: "transfer_spec", run: documents::transfer_spec },
    Target { name: "blob_layers", run: layers::blob_layers },
    Target { name: "layout", run: layout::layout },
    Target { name: "nixl_blob", run: nixl_blob::nixl_blob },
    Target { name: "local_blob", run: local::fuzz::blob },
    Target { name: "local_frames", run: local::fuzz::frames },
    Target { name: "local_server", run: local::fuzz::server },
    Target { name: "local_client", run: local::fuzz::client },
    #[cfg(feature = "safetensors")]
    Target { name: "checkpoint_header", run: crate::checkpoint::fuzz::header },
    #[cfg(feature = "safetensors")]
    Target { name: "checkpoint_manifest", run: crate::checkpoint::fuzz::manifest },
];

/// An error's text ends up in logs: one line, and no longer than a few names.
pub(crate) fn printable(error: &impl std::fmt::Display) {
    let text = error.to_string();
    assert!(!text.is_empty() && text.len() <= 3 << 10, "{} bytes of error", text.len());
    assert!(!text.contains(char::is_control), "{text:?}");
}
