//! Moves memory between model processes without copies.

mod connector;
mod deadline;
mod device;
mod driver;
mod dtype;
mod error;
pub mod layout;
mod memory;
mod op;
mod stats;
mod task;
mod tensors;
pub mod transport;
pub mod wire;

pub use connector::{Connector, ConnectorBuilder};
pub use deadline::Deadline;
pub use device::{Device, DeviceKind, ParseDeviceError};
pub use dtype::{DType, ParseDTypeError};
pub use error::{Context, Error, ErrorCategory, Failed, Recovered};
pub use memory::{Descriptor, DescriptorMut, MemoryError, Region, SourceMemory, TargetMemory};
pub use op::{
    Completion, OperationKind, OperationName, OperationStatus, Pending, ReadOperation, ReadableOperation,
    Received, Report, WritableOperation, WriteOperation,
};
pub use stats::Stats;
pub use task::{Task, Wait};
pub use tensors::{NamedTensors, ReadableTensor, ReadableTensors};
pub use wire::{
    MediaDescriptor, MetadataError, RdmaMetadata, SerializedDescriptor, TensorEnvelope, TensorSpec,
};
