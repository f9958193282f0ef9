//! [`Side`]: what one framework can do on one side of a transfer, and the Rust frameworks that do it.

mod candle;
mod file;
mod raw;
mod tch;

use std::fmt;

use anyhow::{Error, Result};
use connect_core::layout::LayoutError;
use connect_core::{Connector, DType, MetadataError, TensorEnvelope};

use crate::case::Case;

pub use candle::Candle;
pub use file::File;
pub use raw::Raw;
pub use tch::Tch;

/// What the tensor is called.
pub const NAME: &str = "x";

/// Waits for the end of an offer, and checks what was written into it. Dropping it withdraws the offer.
pub type End = Box<dyn FnOnce() -> Result<()>>;

/// One framework.
pub trait Side {
    /// Whether it has such elements.
    fn has(&self, dtype: DType) -> bool;

    /// Pull, sender: offers a tensor with content.
    ///
    /// # Errors
    /// [`Refused`] is among them, as for the others.
    fn offer(&self, connector: &Connector, case: Case) -> Result<(TensorEnvelope, End)>;

    /// Pull, receiver: reads what is offered, and checks it.
    ///
    /// # Errors
    /// As [`offer`](Self::offer), or what arrived is not what was sent.
    fn receive(&self, connector: &Connector, case: Case, envelope: &TensorEnvelope) -> Result<()>;

    /// Push, receiver: offers a tensor to be written.
    ///
    /// # Errors
    /// As [`offer`](Self::offer).
    fn make_room(&self, connector: &Connector, case: Case) -> Result<(TensorEnvelope, End)>;

    /// Push, sender: writes a tensor into what is offered.
    ///
    /// # Errors
    /// As [`offer`](Self::offer).
    fn push(&self, connector: &Connector, case: Case, envelope: &TensorEnvelope) -> Result<()>;
}

/// The framework of this name.
pub fn named(name: &str) -> Option<Box<dyn Side>> {
    Some(match name {
        "candle" => Box::new(Candle),
        "tch" => Box::new(Tch),
        "bytes" => Box::new(Raw),
        "file" => Box::new(File),
        _ => return None,
    })
}

/// Something that a framework, or its part of this library, does not do. The text is what the table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused(pub &'static str);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Refused {}

/// Why nothing was moved, if that is a refusal that the table may show. Any other error is a failure.
pub fn refusal(error: &Error) -> Option<Refused> {
    use connect_candle::TensorError as C;
    use connect_core::Error as Core;
    use connect_tch::TensorError as T;

    if let Some(refused) = error.downcast_ref::<Refused>() {
        return Some(*refused);
    }
    let differ = Refused("the sides' pieces do not fit each other: an error that names `.contiguous()`");
    let count = Refused("raw bytes have as many descriptors on either side: an error that names both counts");
    let no_type = Refused("the receiver has no such element type: an error that names it");
    let opaque = Refused("opaque to Candle (F4, F6, F8_E8M0), and moved as whole tensors only");
    match error.downcast_ref::<C>() {
        Some(C::Layout { source: LayoutError::PiecesDiffer { .. }, .. }) => return Some(differ),
        Some(C::DType { .. }) => return Some(no_type),
        Some(C::OpaqueView { .. }) => return Some(opaque),
        _ => {}
    }
    match error.downcast_ref::<T>() {
        Some(T::Layout { source: LayoutError::PiecesDiffer { .. }, .. }) => return Some(differ),
        Some(T::DType { .. }) => return Some(no_type),
        _ => {}
    }
    match error.downcast_ref::<Core>() {
        Some(Core::Metadata(MetadataError::CountMismatch { .. })) => Some(count),
        _ => None,
    }
}
