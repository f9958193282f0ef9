//! What offers and receives of tensors have in common, whatever the framework. The adapters make them.

mod named;
mod readable;
mod writable;

pub use named::NamedTensors;
pub use readable::{ReadableTensor, ReadableTensors};
pub use writable::WritableTensor;
