//! Why a tensor can't be sent or received: [`TensorError`], and [`TensorInfo`], which names the tensor in it.

use std::fmt;

use connect_core::layout::LayoutError;
use connect_core::{Device, DigestMismatch, Error, MetadataError, RendezvousError};
use tch::{Kind, Tensor};

use crate::dtype::dtype_of;

/// Why a tensor could not be sent or received. Each message names the tensor and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// A tensor without plain dense memory: undefined, sparse, quantised, nested, lazily conjugated.
    #[error("{tensor} can't move as it is: {reason}")]
    Unsupported {
        /// Which tensor.
        tensor: TensorInfo,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// The tensor is, or was to be, where this program can't reach it.
    #[error("{tensor} can't be reached: {reason}")]
    Device {
        /// Which tensor.
        tensor: TensorInfo,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// An element type that only one of the two sides has.
    #[error("{tensor} has elements of type {dtype}, which {lacking}; convert it before sending (`to_kind`)")]
    DType {
        /// Which tensor.
        tensor: TensorInfo,
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
    #[error("{tensor} has no elements: there is nothing to move; send its shape instead")]
    Empty {
        /// Which tensor.
        tensor: TensorInfo,
    },
    /// A tensor of truth values arrived with bytes that are neither 0 nor 1, which Rust's `bool` must not have. It is
    /// not handed out.
    #[error("{tensor} arrived with a byte {byte}, which is no truth value; have it sent as numbers (uint8)")]
    NotBool {
        /// Which tensor.
        tensor: TensorInfo,
        /// The first byte that is neither 0 nor 1.
        byte: u8,
    },
    /// Every byte arrived, but libtorch would not copy them into the tensor. They are in `received`.
    #[error("the content of {tensor} arrived but was not stored: {reason}; it is in this error's `received`")]
    NotStored {
        /// Which tensor.
        tensor: TensorInfo,
        /// The first line of what libtorch said.
        reason: String,
        /// What arrived, as a tensor of its own.
        received: Box<ReceivedTensor>,
    },
    /// libtorch has no memory for a received tensor. If the envelope came from an unreliable peer, check its
    /// shapes.
    #[error("no memory for {tensor} of {bytes} bytes: {reason}; check the shape, or free memory")]
    Allocation {
        /// Which tensor.
        tensor: TensorInfo,
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
    #[error("libtorch refused {tensor}: {reason}; use a copy (`Tensor::copy`)")]
    Torch {
        /// Which tensor.
        tensor: TensorInfo,
        /// The first line of what it said.
        reason: String,
    },
    /// Nothing could be put under a key, or got from there.
    #[error(transparent)]
    Rendezvous(#[from] RendezvousError),
    /// The operation failed.
    #[error(transparent)]
    Operation(#[from] Error),
}

impl TensorError {
    /// Whether the same call can succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Allocation { .. } => true,
            Self::Rendezvous(error) => error.is_retryable(),
            Self::Operation(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// A tensor in an error. Errors are shared between threads, and a `Tensor` alone must not be.
#[derive(Debug)]
pub struct ReceivedTensor(std::sync::Mutex<Tensor>);

impl ReceivedTensor {
    pub(crate) fn new(tensor: Tensor) -> Self {
        Self(std::sync::Mutex::new(tensor))
    }

    /// The tensor.
    pub fn into_tensor(self) -> Tensor {
        self.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A tensor in an error message, as far as it could be asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name in a set; empty outside one.
    pub name: String,
    /// Element type, if it is one that tch has.
    pub kind: Option<Kind>,
    /// Shape, if it has a plain one.
    pub shape: Option<Vec<i64>>,
    /// Where it lives, if that has a name.
    pub device: Option<Device>,
}

impl fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensor")?;
        if !self.name.is_empty() {
            write!(f, " {:?}", self.name)?;
        }
        let Some(shape) = &self.shape else { return Ok(()) };
        match self.kind.map(|kind| (kind, dtype_of(kind))) {
            Some((_, Some(dtype))) => write!(f, " ({dtype} {shape:?} on ")?,
            Some((kind, None)) => write!(f, " ({kind:?} {shape:?} on ")?,
            None => write!(f, " (unknown type {shape:?} on ")?,
        }
        match self.device {
            Some(device) => write!(f, "{device})"),
            None => f.write_str("a device that this library has no name for)"),
        }
    }
}

/// The first line of libtorch's message; the rest is its own stack trace.
pub(crate) fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}
