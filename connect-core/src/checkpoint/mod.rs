//! Checkpoints in safetensors files: served from disk without loading them, and received into a new file. By the
//! feature `safetensors`.
//!
//! ```
//! use connect_core::Connector;
//! use connect_core::checkpoint::{Checkpoint, Download, Manifest};
//! # let folder = std::env::temp_dir().join(format!("connect-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! # let (path, copy) = (folder.join("model.safetensors"), folder.join("copy.safetensors"));
//! # let header = r#"{"w":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}"#;
//! # std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[7; 8]].concat())?;
//!
//! let (sender, receiver) = (Connector::local()?, Connector::local()?); // usually in two processes
//!
//! // Who has the file. It is mapped and registered once, however many peers come.
//! let served = Checkpoint::open(&path)?.serve(&sender).wait()?;
//! let manifest = served.checkpoint().manifest_with_digests()?.to_json(); // over HTTP, a pipe, NATS ...
//!
//! // Who wants it. What an earlier, interrupted download has left is taken over, if its digests are right.
//! let download = Download::begin(&receiver, &copy, &Manifest::from_json(&manifest)?).wait()?;
//! let wanted = download.missing();
//!
//! let offer = served.offer(&wanted).wait()?;
//! download.receive(offer.envelope()).wait()?;
//! println!("{} of {} bytes", download.progress().bytes, download.progress().total_bytes);
//! download.finish()?; // only now is there a file of that name
//! # assert_eq!(Checkpoint::open(&copy)?.read("w")?, [7; 8]);
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The tensors of an offer are read by any receiver that takes a [`TensorEnvelope`](crate::TensorEnvelope):
//! `recv_new` of the tensor adapters makes tensors of them, and a [`Download`] takes any sender's tensors.
//!
//! # What is in memory
//! A served file is mapped, read-only and shared: its pages are the page cache's, and nothing is loaded before somebody
//! reads it. The process's own memory does not grow. [`Checkpoint::open_a_copy`] reads the file into memory instead.
//!
//! # When the file changes under it
//! An advisory lock (`flock`) is held on each file, shared while it is served and exclusive while it is received into:
//! programs that ask for locks stay out. For those that do not:
//! * An offer is refused ([`CheckpointError::Changed`]) when the length or the time of the last change of a file is not
//!   what it was. [`Checkpoint::check_unchanged`] asks the same at any time.
//! * A file that is *replaced* (a new one renamed into its place, as careful programs do) goes on being served as it
//!   was.
//! * One that is *written to* during a transfer arrives as whatever it was at that moment. Digests catch that: the
//!   receiver gets an error. Without digests nobody notices.
//! * One that is *truncated* during a transfer: between processes, over `local`, the transfer fails and nothing else
//!   does, because the kernel copies the pages and says that they are gone. A transfer within one process, and NIXL
//!   over TCP, copy with ordinary instructions, and the kernel ends the serving process with `SIGBUS`.
//!
//! Where such files can't be kept from being truncated, serve a copy: nobody else can reach it.
//!
//! The file that is received into is in the same place: whoever truncates `.name.part`, lock or not, ends the receiver in
//! the same cases. Its blocks are taken at the start, so that a full disk is an error there; on file systems that write
//! elsewhere than in place (copy-on-write, some network ones) a disk that fills up later can still be that signal. Those
//! blocks are taken on the word of a manifest: look at [`Manifest::total_bytes`] first if its sender is not to be trusted.
//!
//! Over RDMA, memory of a file may be refused when it is registered (the kernel pins no pages that a file system
//! may want to write back); that is an error of `serve` or `begin`, and a copy in memory is the remedy there, too.

mod download;
mod error;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod header;
mod index;
mod manifest;
mod open;
mod pages;
mod part;
mod serve;
#[cfg(test)]
mod tests;

pub use download::{Download, Progress};
pub use error::CheckpointError;
pub use header::MAX_HEADER_BYTES;
pub use manifest::{MAX_MANIFEST_BYTES, Manifest, ManifestTensor};
pub use open::Checkpoint;
pub use serve::Served;
