//! Tensors by key: [`Rendezvous`] puts the envelopes of offers under a key of any side channel, and takes them there.
//!
//! ```
//! use connect_core::{Connector, Rendezvous};
//! # use connect_core::{DType, Error, ReadableTensors, RendezvousError, Task, TensorEnvelope, TensorSpec};
//! # fn send_tensors(connector: &Connector, bytes: Vec<u8>) -> Task<ReadableTensors, RendezvousError> {
//! #     let tensor = TensorSpec::new("x", DType::U8, [bytes.len() as u64], 0..1).map_err(Error::from);
//! #     Task::after(connector.create_readable(bytes), |opened| {
//! #         let offer = opened.and_then(|offer| Ok(ReadableTensors::new(offer, vec![tensor?])?));
//! #         Task::ready(offer.map_err(RendezvousError::from))
//! #     })
//! # }
//! # fn recv_new(connector: &Connector, envelope: &TensorEnvelope) -> Task<Vec<u8>, RendezvousError> {
//! #     let buffer = vec![0u8; envelope.metadata().total_bytes() as usize];
//! #     Task::after(connector.begin_read(envelope.metadata(), buffer), |begun| match begun {
//! #         Ok(read) => Task::after(read.wait_for_completion(), |ended| {
//! #             Task::ready(ended.map(|received| received.memory).map_err(|failed| failed.error.into()))
//! #         }),
//! #         Err(failed) => Task::ready(Err(failed.error.into())),
//! #     })
//! # }
//! # let connector = Connector::local()?;
//! let rendezvous = Rendezvous::in_memory(); // or `folder`, or a channel of your own, for two processes
//!
//! // With `send_tensors` and `recv_new` of an adapter:
//! let put = rendezvous.put("layer 7", [send_tensors(&connector, vec![7u8; 8])]).wait()?;
//! let tensors = rendezvous.get(&connector, "layer 7", recv_new).wait()?;
//! assert_eq!(tensors, [7; 8]);
//! assert!(put.wait_for_completion().wait()[0].is_ok());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! An offer is read once, so a document is taken once: what is put with `n` offers can be got `n` times, by whoever
//! comes. Who comes early waits, until the connector's deadline.
//!
//! Documents are secrets, and are believed: let the channel be one that only those can use who may have the tensors.

mod channel;
mod error;
mod folder;
mod thread;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connector::Connector;
use crate::op::{All, Completion, Report};
use crate::task::Task;
use crate::tensors::ReadableTensors;
use crate::wire::TensorEnvelope;

pub use channel::{ChannelError, SideChannel};
pub use error::RendezvousError;
use folder::Folder;
use thread::OnThread;

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;

/// How long to wait before the channel is asked again: shortly at first, because the other side is often about to
/// put, and no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// A side channel for documents, used by key. Clones share it.
///
/// Every call to the channel runs on a short-lived thread of its own, so that a channel may block and nobody needs a
/// runtime.
#[derive(Clone)]
pub struct Rendezvous {
    channel: Arc<dyn SideChannel>,
}

impl Rendezvous {
    /// Over a channel of your own.
    pub fn new(channel: impl SideChannel) -> Self {
        Self { channel: Arc::new(channel) }
    }

    /// Within this process.
    pub fn in_memory() -> Self {
        Self::new(channel::InMemory::default())
    }

    /// Between processes that can use one folder, which is made if it is not there. Its files are for this user only,
    /// and so is the right to put some there.
    ///
    /// # Errors
    /// The folder can't be made, or is another user's, or others can write to it.
    pub fn folder(path: impl AsRef<Path>) -> std::io::Result<Self> {
        Ok(Self::new(Folder::new(path.as_ref())?))
    }

    /// Puts offers under a key, as many as there may be receivers. What is there already stays, and is taken first: also
    /// what a sender left that is gone. Whoever takes that gets the error of an offer that is gone, and calls again.
    ///
    /// A channel that does not return keeps the call waiting: set time-outs on its connections.
    ///
    /// `E` is an adapter's error; the offers are what its `send_tensors` returns.
    ///
    /// # Errors
    /// The first error of an offer; [`RendezvousError::Key`], [`RendezvousError::Channel`],
    /// [`RendezvousError::NoOffers`]. All offers are withdrawn then; who has taken a document already learns so.
    pub fn put<E>(
        &self,
        key: &str,
        offers: impl IntoIterator<Item = Task<ReadableTensors, E>>,
    ) -> Task<Put, E>
    where
        E: From<RendezvousError> + Send + 'static,
    {
        let offers: Vec<_> = offers.into_iter().collect();
        let refused =
            error::check_key(key).err().or_else(|| offers.is_empty().then_some(RendezvousError::NoOffers));
        if let Some(refused) = refused {
            return Task::ready(Err(refused.into()));
        }
        let (channel, key) = (Arc::clone(&self.channel), key.to_owned());
        Task::after(All::new(offers), move |offers| {
            let offers: Vec<ReadableTensors> = match offers.into_iter().collect::<Result<_, E>>() {
                Ok(offers) => offers,
                Err(error) => return Task::ready(Err(error)),
            };
            let documents: Vec<String> = offers.iter().map(|offer| offer.envelope().to_json()).collect();
            let put = OnThread::start(key.clone(), move |caller| {
                // Nobody is left who would keep the offers: their documents would lead nowhere.
                let mut documents = documents.iter().take_while(|_| !caller.is_gone());
                let put = documents.try_for_each(|document| channel.put(&key, document));
                put.map_err(|source| RendezvousError::channel(&key, source))
            });
            Task::after(put, |put| Task::ready(put.map(|()| Put { offers }).map_err(E::from)))
        })
    }

    /// Takes what was put under a key, and receives it: `receive` is `recv_new` or `recv_verified` of an adapter.
    ///
    /// Waiting for the document and receiving share one deadline, that of the connector. A channel that does not
    /// return keeps the call waiting beyond it: set time-outs on its connections. Who drops the call leaves the document
    /// to others, unless it had been taken: that offer ends with its deadline.
    ///
    /// # Errors
    /// [`RendezvousError::NotThere`], [`RendezvousError::Key`], [`RendezvousError::Channel`],
    /// [`RendezvousError::Envelope`], and those of `receive`.
    pub fn get<T, E>(
        &self,
        connector: &Connector,
        key: &str,
        receive: impl FnOnce(&Connector, &TensorEnvelope) -> Task<T, E> + Send + 'static,
    ) -> Task<T, E>
    where
        T: Send + 'static,
        E: From<RendezvousError> + Send + 'static,
    {
        if let Err(refused) = error::check_key(key) {
            return Task::ready(Err(refused.into()));
        }
        let (channel, key) = (Arc::clone(&self.channel), key.to_owned());
        let (connector, deadline) = connector.with_its_deadline();
        let taken = OnThread::start(key.clone(), move |caller| take(&*channel, &key, deadline, caller));
        Task::after(taken, move |taken| match taken {
            Ok(envelope) => receive(&connector, &envelope),
            Err(error) => Task::ready(Err(error.into())),
        })
    }
}

impl fmt::Debug for Rendezvous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rendezvous").finish_non_exhaustive()
    }
}

/// Offers that were put under a key. Made by [`Rendezvous::put`]; dropping it withdraws those that were not taken.
#[must_use = "dropping it withdraws the offers"]
#[derive(Debug)]
pub struct Put {
    offers: Vec<ReadableTensors>,
}

impl Put {
    /// Waits until each offer has been read or will not be: one result for each. One that fails does not end the others.
    pub fn wait_for_completion(self) -> All<Completion<Report>> {
        All::new(self.offers.into_iter().map(ReadableTensors::wait_for_completion).collect())
    }

    /// The offers, to be awaited or cancelled one by one.
    pub fn into_offers(self) -> Vec<ReadableTensors> {
        self.offers
    }
}

/// Asks until something is there, the time is over, or the caller is gone.
fn take(
    channel: &dyn SideChannel,
    key: &str,
    deadline: Option<Instant>,
    caller: &thread::Caller<'_>,
) -> Result<TensorEnvelope, RendezvousError> {
    let (begin, mut pause) = (Instant::now(), Duration::from_millis(1));
    loop {
        let taken = channel.take(key).map_err(|source| RendezvousError::channel(key, source))?;
        if let Some(document) = taken {
            if caller.is_gone() {
                // It is somebody else's then. If it can't be given back, its offer ends with its deadline.
                channel.put(key, &document).map_err(|source| RendezvousError::channel(key, source))?;
            }
            let envelope = TensorEnvelope::from_json(&document);
            return envelope.map_err(|source| RendezvousError::Envelope { key: error::quoted(key), source });
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero())
            || caller.is_gone_after(left.map_or(pause, |left| left.min(pause)))
        {
            return Err(RendezvousError::NotThere { key: error::quoted(key), waited: begin.elapsed() });
        }
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests;
