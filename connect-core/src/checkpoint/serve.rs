//! [`Served`]: a checkpoint whose memory is registered, and offers of its tensors.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use super::error::CheckpointError;
use super::open::{Checkpoint, Opened};
use super::pages::Readable;
use crate::accelerator::Accelerators;
use crate::connector::Connector;
use crate::deadline::Deadline;
use crate::driver::Registration;
use crate::error::Error;
use crate::op::All;
use crate::task::Task;
use crate::tensors::ReadableTensors;
use crate::wire::TensorSpec;

/// A checkpoint that peers may be let at. Made by [`Checkpoint::serve`]; clones share it.
///
/// Each file is registered once, as a whole; offers register nothing. Over NIXL a document of an offer therefore
/// reaches the whole file, and not the tensors alone: treat it as a key to the checkpoint.
#[derive(Clone)]
pub struct Served {
    checkpoint: Checkpoint,
    connector: Connector,
    registrations: Arc<Vec<Registration>>,
}

impl Checkpoint {
    /// Registers the files with a connector's transport.
    ///
    /// # Errors
    /// [`CheckpointError::Operation`]: the transport can't register them. If it is for their being files,
    /// [`open_a_copy`](Self::open_a_copy).
    pub fn serve(&self, connector: &Connector) -> Task<Served, CheckpointError> {
        let keep = |opened: &Arc<Opened>| {
            connector.register(opened.pages.region(), Accelerators::new(), Arc::clone(opened) as _)
        };
        let (registrations, pending): (Vec<_>, Vec<_>) = self.files.iter().map(keep).unzip();
        let served = Served {
            checkpoint: self.clone(),
            connector: connector.clone(),
            registrations: Arc::new(registrations),
        };
        Task::after(All::new(pending), move |registered: Vec<Result<(), Error>>| {
            let all: Result<Vec<()>, Error> = registered.into_iter().collect();
            Task::ready(all.map(|_| served).map_err(CheckpointError::from))
        })
    }
}

impl Served {
    /// What is served.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The same, with another deadline for its offers.
    pub fn with_deadline(&self, deadline: impl Into<Deadline>) -> Self {
        Self { connector: self.connector.with_deadline(deadline), ..self.clone() }
    }

    /// Offers the tensors of these names for one peer to read, in one operation. Tensors without elements may be among
    /// them, not alone.
    ///
    /// # Errors
    /// [`CheckpointError::NoTensor`], [`CheckpointError::Changed`], [`CheckpointError::Envelope`] for a name that is
    /// there twice, [`CheckpointError::Operation`].
    pub fn offer<N: AsRef<str>>(
        &self,
        names: impl IntoIterator<Item = N>,
    ) -> Task<ReadableTensors, CheckpointError> {
        self.make_offer(names, false)
    }

    /// The same with digests in the envelope. They are computed on the calling thread, once for each tensor.
    ///
    /// # Errors
    /// As [`offer`](Self::offer), and [`CheckpointError::Io`].
    pub fn offer_with_digests<N: AsRef<str>>(
        &self,
        names: impl IntoIterator<Item = N>,
    ) -> Task<ReadableTensors, CheckpointError> {
        self.make_offer(names, true)
    }

    fn make_offer<N: AsRef<str>>(
        &self,
        names: impl IntoIterator<Item = N>,
        with_digests: bool,
    ) -> Task<ReadableTensors, CheckpointError> {
        let (memory, specs) = match self.describe(names, with_digests) {
            Ok(described) => described,
            Err(error) => return Task::ready(Err(error)),
        };
        Task::after(self.connector.create_readable(memory), move |opened| {
            let offer = |operation| ReadableTensors::new(operation, specs).map_err(CheckpointError::from);
            Task::ready(opened.map_err(CheckpointError::from).and_then(offer))
        })
    }

    fn describe<N: AsRef<str>>(
        &self,
        names: impl IntoIterator<Item = N>,
        with_digests: bool,
    ) -> Result<(Readable, Vec<TensorSpec>), CheckpointError> {
        self.checkpoint.check_unchanged()?;
        let (mut regions, mut specs) = (Vec::new(), Vec::new());
        for name in names {
            let entry = self.checkpoint.entry(name.as_ref())?;
            let first = regions.len();
            if entry.tensor.byte_len > 0 {
                let whole = self.checkpoint.files[entry.file].pages.region();
                let region = whole.slice(entry.start..entry.start + entry.tensor.byte_len);
                regions.push(region.map_err(Error::from)?);
            }
            let (dtype, shape) = (entry.tensor.dtype, entry.tensor.shape.clone());
            let mut spec = TensorSpec::new(name.as_ref(), dtype, shape, first..regions.len())?;
            if with_digests {
                spec = spec.with_digest(self.checkpoint.digest(entry)?);
            }
            specs.push(spec);
        }
        // The files outlive the operation, and so does their registration.
        let mut pages: Vec<Arc<dyn Any + Send + Sync>> = vec![Arc::clone(&self.registrations) as _];
        pages.extend(self.checkpoint.files.iter().map(|opened| Arc::clone(opened) as _));
        Ok((Readable::new(regions, pages), specs))
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Served").field(&self.checkpoint).finish()
    }
}
