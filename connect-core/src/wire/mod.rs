//! The documents that travel over the user's side channel, and their bounded codecs.

mod error;

pub use error::MetadataError;
