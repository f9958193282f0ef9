//! Moves memory between model processes without copies.

mod device;
mod dtype;
mod error;
pub mod layout;
mod memory;
mod op;
mod task;
pub mod transport;
pub mod wire;

pub use device::{Device, DeviceKind, ParseDeviceError};
pub use dtype::{DType, ParseDTypeError};
pub use error::{Context, Error, ErrorCategory, Failed, Recovered};
pub use memory::{Descriptor, DescriptorMut, MemoryError, Region, SourceMemory, TargetMemory};
pub use op::{OperationKind, OperationName, OperationStatus, Report};
pub use task::{Task, Wait};
pub use wire::{
    MediaDescriptor, MetadataError, RdmaMetadata, SerializedDescriptor, TensorEnvelope, TensorSpec,
};
