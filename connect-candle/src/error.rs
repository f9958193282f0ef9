//! Why a tensor can't be sent or received: [`TensorError`], and [`TensorInfo`], which names the tensor in it.

use std::fmt;

use candle_core::{DType, Device, DeviceLocation, Tensor};
use connect_core::layout::LayoutError;
use connect_core::wire::MetadataError;
use connect_core::{DigestMismatch, Error, RendezvousError};

/// Why a tensor could not be sent or received. Each message names the tensor and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The tensor lives where this build can't reach it.
    #[error("{tensor} can't be reached: {reason}")]
    Device {
        /// Which tensor.
        tensor: TensorInfo,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// An element type that only one of the two sides has.
    #[error(
        "tensor {name:?} ({dtype} {shape:?} on {device}) has elements of a type that {lacking}; convert it before sending"
    )]
    DType {
        /// The tensor's name.
        name: String,
        /// Its element type.
        dtype: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Where it is, or was to be.
        device: connect_core::Device,
        /// Who does not know the type.
        lacking: &'static str,
    },
    /// A view of elements that Candle holds as opaque bytes.
    #[error(
        "{tensor} is part of a storage of opaque elements, which can only move as a whole; send the tensor it was cut from"
    )]
    OpaqueView {
        /// Which tensor.
        tensor: TensorInfo,
    },
    /// The view can't be described by pieces of memory: too fragmented, overlapping, or longer than its
    /// storage. The source names the remedy.
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
        /// Which tensor, or the first of a set.
        tensor: TensorInfo,
    },
    /// The storage is taken by another operation. Wait for that one, or work on a copy.
    #[error("{tensor} is busy: {holder}; wait for that to end, or use a copy (`Tensor::copy`)")]
    Busy {
        /// Which tensor.
        tensor: TensorInfo,
        /// Who has it.
        holder: &'static str,
    },
    /// Every byte arrived, but the tensor could not take them. They are in `received`.
    #[error("the content of {tensor} arrived but was not stored: {reason}; it is in this error's `received`")]
    NotStored {
        /// Which tensor.
        tensor: TensorInfo,
        /// What was in the way.
        reason: &'static str,
        /// What arrived, as a tensor of its own.
        received: Box<Tensor>,
    },
    /// There is no memory for a received tensor. If the envelope came from an unreliable peer, check its
    /// shapes.
    #[error("no memory for {tensor} of {bytes} bytes; check the shape, or free memory")]
    Allocation {
        /// Which tensor.
        tensor: TensorInfo,
        /// Bytes asked for.
        bytes: u64,
    },
    /// A KV cache that is not as its pool's layout says, or blocks that do not hold it.
    #[error("{what} can't be handed off: {reason}")]
    Kv {
        /// The tensor, cache or pool.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The envelope is malformed, or a set of tensors makes no valid one (two of the same name, say).
    #[error("envelope refused: {0}")]
    Envelope(#[from] MetadataError),
    /// A tensor arrived that is not what was sent. It is not handed out, and neither are the others of its
    /// set; have them sent again.
    #[error(transparent)]
    Digest(#[from] DigestMismatch),
    /// Candle refused.
    #[error("candle refused {tensor}: {source}; use a copy on the CPU (`Tensor::copy`)")]
    Candle {
        /// Which tensor.
        tensor: TensorInfo,
        /// What it said.
        source: Box<candle_core::Error>,
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
            Self::Busy { .. } | Self::NotStored { .. } | Self::Allocation { .. } => true,
            Self::Rendezvous(error) => error.is_retryable(),
            Self::Operation(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// A tensor in an error message: its name where it has one, element type, shape and device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name in a set; empty outside one.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// Where it lives.
    pub device: DeviceLocation,
}

impl TensorInfo {
    pub(crate) fn new(name: &str, tensor: &Tensor) -> Self {
        Self {
            name: name.to_owned(),
            dtype: tensor.dtype(),
            shape: tensor.dims().to_vec(),
            device: tensor.device().location(),
        }
    }

    /// A tensor that does not exist yet, and will be on the CPU unless [`on`](Self::on) says otherwise.
    pub(crate) fn described(name: &str, dtype: DType, shape: &[usize]) -> Self {
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), device: DeviceLocation::Cpu }
    }

    /// The same on a device.
    pub(crate) fn on(self, device: &Device) -> Self {
        Self { device: device.location(), ..self }
    }
}

impl fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensor ")?;
        if !self.name.is_empty() {
            write!(f, "{:?} ", self.name)?;
        }
        write!(f, "({} {:?} on ", self.dtype.as_str(), self.shape)?;
        match self.device {
            DeviceLocation::Cpu => f.write_str("cpu)"),
            DeviceLocation::Cuda { gpu_id } => write!(f, "cuda:{gpu_id})"),
            DeviceLocation::Metal { gpu_id } => write!(f, "metal:{gpu_id})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What can't be made to happen with CPU tensors; the others are in tests/errors.rs.
    #[test]
    fn errors_of_other_devices_name_tensor_device_and_remedy() {
        let device = DeviceLocation::Cuda { gpu_id: 1 };
        let tensor = TensorInfo { name: "k".to_owned(), dtype: DType::BF16, shape: vec![2, 8], device };
        let says = |error: TensorError, remedy: &str| {
            let text = error.to_string();
            assert!(text.contains("tensor \"k\" (bf16 [2, 8] on cuda:1)") && text.contains(remedy), "{text}");
            assert!(!error.is_retryable());
        };
        let reason = "call `to_device(&Device::Cpu)` first";
        says(TensorError::Device { tensor: tensor.clone(), reason }, reason);
        let source = Box::new(candle_core::Error::Msg("no".to_owned()));
        says(TensorError::Candle { tensor, source }, "`Tensor::copy`");
        let metal = TensorInfo {
            device: DeviceLocation::Metal { gpu_id: 0 },
            ..TensorInfo::described("", DType::U8, &[])
        };
        assert_eq!(metal.to_string(), "tensor (u8 [] on metal:0)");
    }
}
