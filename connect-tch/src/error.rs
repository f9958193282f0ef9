//! Why a tensor can't be sent or received: [`TensorError`], and [`TensorInfo`], which names the tensor in it.

use std::fmt;

use connect_core::layout::LayoutError;
use connect_core::{DType, Device, DigestMismatch, Error, MetadataError};

/// Why a tensor could not be sent or received. Each message names the tensor and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// A tensor without plain dense memory on the CPU: undefined, sparse, quantised, lazily conjugated, or on
    /// another device.
    #[error("{tensor} can't be sent: {reason}")]
    Unsupported {
        /// Which tensor.
        tensor: TensorInfo,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// An element type that only one of the two sides has.
    #[error("tensor {name:?} has elements of type {dtype}, which {lacking}; convert it before sending")]
    DType {
        /// The tensor's name.
        name: String,
        /// Its element type.
        dtype: String,
        /// Who does not know the type.
        lacking: &'static str,
    },
    /// The view can't be described by pieces of memory. The source names the remedy.
    #[error("{tensor} can't move as it is: {source}")]
    Layout {
        /// Which tensor.
        tensor: TensorInfo,
        /// What is wrong with its layout.
        source: LayoutError,
    },
    /// There is nothing to move: no tensor has elements. Send the shape instead.
    #[error("{tensor} has no elements: there is nothing to move")]
    Empty {
        /// Which tensor.
        tensor: TensorInfo,
    },
    /// libtorch has no memory for a received tensor. If the envelope came from an unreliable peer, check its
    /// shapes.
    #[error("no memory for tensor {name:?} of {bytes} bytes: {reason}")]
    Allocation {
        /// The tensor's name.
        name: String,
        /// Bytes asked for.
        bytes: u64,
        /// What libtorch said.
        reason: String,
    },
    /// The envelope is malformed, or a set of tensors makes no valid one (two of the same name, say).
    #[error("envelope refused: {0}")]
    Envelope(#[from] MetadataError),
    /// A tensor arrived that is not what was sent. It is not handed out, and neither are the others of its
    /// set; have them sent again.
    #[error(transparent)]
    Digest(#[from] DigestMismatch),
    /// libtorch refused.
    #[error("libtorch refused {tensor}: {reason}")]
    Torch {
        /// Which tensor.
        tensor: TensorInfo,
        /// The first line of what it said.
        reason: String,
    },
    /// The operation failed.
    #[error(transparent)]
    Operation(#[from] Error),
}

impl TensorError {
    /// Whether the same call can succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Allocation { .. } => true,
            Self::Operation(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// A tensor in an error message, as far as it could be asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name in a set; empty outside one.
    pub name: String,
    /// Element type, if it has one the wire knows.
    pub dtype: Option<DType>,
    /// Shape; empty for tensors that don't have a plain one.
    pub shape: Vec<i64>,
    /// Where it lives, if that could be asked.
    pub device: Option<Device>,
}

impl fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensor")?;
        if !self.name.is_empty() {
            write!(f, " {:?}", self.name)?;
        }
        match (self.dtype, self.device) {
            (Some(dtype), Some(device)) => write!(f, " ({dtype} {:?} on {device})", self.shape),
            (Some(dtype), None) => write!(f, " ({dtype} {:?})", self.shape),
            (None, _) => Ok(()),
        }
    }
}

/// The first line of libtorch's message; the rest is its own stack trace.
pub(crate) fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}
