//! [`FanOut`]: memory that several peers may read, each once.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::{Completion, ReadableOperation, Report};
use crate::accelerator::Accelerators;
use crate::connector::Connector;
use crate::error::Error;
use crate::task::{Task, Wait};
use crate::wire::RdmaMetadata;
use crate::{MemoryError, Region, SourceMemory};

/// Memory on offer to several readers. Made by [`Connector::fan_out`].
///
/// Each reader has a document of its own, with a key of its own: what a reader does, or fails to do, counts for its
/// document alone, and counts once. The memory is registered once, and let go of after the last of them.
///
/// Dropping it withdraws what has not been read.
#[must_use = "dropping an operation cancels it"]
pub struct FanOut {
    offers: Vec<ReadableOperation>,
}

impl Connector {
    /// Offers memory for `readers` peers to read, each by a document of its own.
    ///
    /// ```
    /// use connect_core::{Connector, RdmaMetadata};
    ///
    /// let sender = Connector::local()?;
    /// let fan_out = sender.fan_out(vec![7u8; 1000], 3).wait()?;
    /// for metadata in fan_out.documents() {
    ///     let reader = Connector::local()?; // usually in another process
    ///     let metadata = RdmaMetadata::from_json(&metadata.to_json())?;
    ///     reader.begin_read(&metadata, vec![0u8; 1000]).wait()?.wait_for_completion().wait()?;
    /// }
    /// let reports = fan_out.wait_for_completion().wait();
    /// assert!(reports.iter().all(|report| report.is_ok()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`create_readable`](Self::create_readable): then none of the offers stands. No readers at all is
    /// [`MemoryError::Empty`]. For [`parked_limit`](crate::ConnectorBuilder::parked_limit) each reader counts with
    /// all of the memory.
    pub fn fan_out<M: SourceMemory>(&self, memory: M, readers: usize) -> Task<FanOut, Error> {
        if readers == 0 {
            return Task::ready(Err(MemoryError::Empty.into()));
        }
        let memory = Arc::new(memory);
        let connector = self.with_deadline_from_now();
        let offer = || connector.create_readable(Shared(Arc::clone(&memory)));
        let offers = (0..readers).map(|_| offer()).collect();
        Task::after(All::new(offers), |offers: Vec<Result<ReadableOperation, Error>>| {
            let offers: Result<Vec<_>, _> = offers.into_iter().collect();
            Task::ready(offers.map(|offers| FanOut { offers }))
        })
    }
}

impl FanOut {
    /// What each reader needs to read the memory: one document for one reader.
    pub fn documents(&self) -> impl ExactSizeIterator<Item = &RdmaMetadata> {
        self.offers.iter().map(ReadableOperation::metadata)
    }

    /// The offers one by one, in the order of their documents, to be awaited or cancelled apart from each other.
    pub fn into_offers(self) -> Vec<ReadableOperation> {
        self.offers
    }

    /// Waits until every reader has read the memory or will not: one result for each, in the order of the documents.
    /// One that fails does not end the others.
    pub fn wait_for_completion(self) -> All<Completion<Report>> {
        All::new(self.offers.into_iter().map(ReadableOperation::wait_for_completion).collect())
    }

    /// Withdraws what has not been read, and says what became of each.
    pub fn cancel(self) -> All<Completion<Report>> {
        All::new(self.offers.into_iter().map(ReadableOperation::cancel).collect())
    }
}

impl IntoFuture for FanOut {
    type Output = Vec<Result<Report, Error>>;
    type IntoFuture = All<Completion<Report>>;

    fn into_future(self) -> Self::IntoFuture {
        self.wait_for_completion()
    }
}

impl fmt::Debug for FanOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FanOut").field(&self.offers).finish()
    }
}

/// One memory in several offers.
struct Shared<M>(Arc<M>);

// SAFETY: the memory's own contract covers its regions for as long as it is not dropped, which is after all of its
// offers are.
unsafe impl<M: SourceMemory> SourceMemory for Shared<M> {
    fn regions(&self) -> Vec<Region> {
        self.0.regions()
    }

    fn accelerators(&self) -> Accelerators {
        self.0.accelerators()
    }
}

/// Several answers, each of which comes by itself: await all of them, or block with [`wait`](Self::wait).
#[must_use = "dropping it drops what it waits for"]
pub struct All<F: Future>(Vec<Answer<F>>);

enum Answer<F: Future> {
    Coming(F),
    There(F::Output),
    Taken,
}

impl<F: Wait> All<F> {
    pub(crate) fn new(coming: Vec<F>) -> Self {
        Self(coming.into_iter().map(Answer::Coming).collect())
    }

    /// Blocks the calling thread until all are there. Do not call it from async code.
    pub fn wait(self) -> Vec<F::Output> {
        let wait = |answer: Answer<F>| match answer {
            Answer::Coming(coming) => Some(coming.wait()),
            Answer::There(output) => Some(output),
            Answer::Taken => None,
        };
        self.0.into_iter().filter_map(wait).collect()
    }
}

/// Nothing that is polled here is pinned, and outputs are only moved.
impl<F: Future + Unpin> Unpin for All<F> {}

impl<F: Wait> Future for All<F> {
    type Output = Vec<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut are_there = true;
        for answer in &mut self.0 {
            if let Answer::Coming(coming) = answer {
                match Pin::new(coming).poll(cx) {
                    Poll::Ready(output) => *answer = Answer::There(output),
                    Poll::Pending => are_there = false,
                }
            }
        }
        if !are_there {
            return Poll::Pending;
        }
        let take = |answer: &mut Answer<F>| match std::mem::replace(answer, Answer::Taken) {
            Answer::There(output) => Some(output),
            Answer::Coming(_) | Answer::Taken => None,
        };
        Poll::Ready(self.0.iter_mut().filter_map(take).collect())
    }
}

impl<F: Wait> Wait for All<F>
where
    F::Output: Send,
{
    fn wait(self) -> Self::Output {
        All::wait(self)
    }
}

impl<F: Future> fmt::Debug for All<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let coming = self.0.iter().filter(|answer| matches!(answer, Answer::Coming(_))).count();
        f.debug_struct("All").field("coming", &coming).field("of", &self.0.len()).finish()
    }
}
