//! [`SideChannel`]: what a rendezvous needs of a side channel, and the one within a process.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Why a channel of somebody's own failed.
pub type ChannelError = Box<dyn std::error::Error + Send + Sync>;

/// Any way for small documents: a key-value store, a web server, a folder.
///
/// Calls come from threads on which blocking is fine. They should end by themselves: set time-outs on connections.
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::Mutex;
///
/// use connect_core::rendezvous::{ChannelError, Rendezvous, SideChannel};
///
/// #[derive(Default)]
/// struct Store(Mutex<HashMap<String, Vec<String>>>);
///
/// impl SideChannel for Store {
///     fn put(&self, key: &str, document: &str) -> Result<(), ChannelError> {
///         let mut store = self.0.lock().map_err(|_| "poisoned")?;
///         store.entry(key.to_owned()).or_default().push(document.to_owned());
///         Ok(())
///     }
///
///     fn take(&self, key: &str) -> Result<Option<String>, ChannelError> {
///         Ok(self.0.lock().map_err(|_| "poisoned")?.get_mut(key).and_then(Vec::pop))
///     }
/// }
///
/// let rendezvous = Rendezvous::new(Store::default());
/// ```
pub trait SideChannel: Send + Sync + 'static {
    /// Adds a document to those under `key`. A document is one line of JSON, seldom more than some kilobytes.
    ///
    /// # Errors
    /// Whatever went wrong; it becomes the source of
    /// [`RendezvousError::Channel`](super::RendezvousError::Channel).
    fn put(&self, key: &str, document: &str) -> Result<(), ChannelError>;

    /// Takes one document from under `key`, so that nobody else gets it; `None` when there is none yet.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    fn take(&self, key: &str) -> Result<Option<String>, ChannelError>;
}

/// Within this process. A key that nothing is under takes no memory.
#[derive(Default)]
pub(super) struct InMemory(Mutex<HashMap<String, VecDeque<String>>>);

impl SideChannel for InMemory {
    fn put(&self, key: &str, document: &str) -> Result<(), ChannelError> {
        let mut documents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        documents.entry(key.to_owned()).or_default().push_back(document.to_owned());
        Ok(())
    }

    fn take(&self, key: &str) -> Result<Option<String>, ChannelError> {
        let mut documents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = documents.get_mut(key) else { return Ok(None) };
        let document = queue.pop_front();
        if queue.is_empty() {
            documents.remove(key);
        }
        Ok(document)
    }
}
