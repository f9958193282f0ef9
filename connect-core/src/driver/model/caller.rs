//! The other side of the model: callers who start operations, look at them, cancel and drop them, at any time.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use super::memory::Tracked;
use crate::driver::OpInfo;
use crate::{
    Completion, Connector, Error, Failed, OperationName, Pending, RdmaMetadata, ReadOperation,
    ReadableOperation, Received, Recovered, Report, WritableOperation, WriteOperation,
};

/// Counts how often its caller was woken.
#[derive(Default)]
pub(super) struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a caller holds of an operation.
enum Held {
    BeginReadable(Pending<ReadableOperation>),
    BeginWritable(Pending<WritableOperation<Tracked>, Failed<Tracked>>),
    BeginRead(Pending<ReadOperation<Tracked>, Failed<Tracked>>),
    BeginWrite(Pending<WriteOperation>),
    Readable(ReadableOperation),
    Writable(WritableOperation<Tracked>),
    Read(ReadOperation<Tracked>),
    Write(WriteOperation),
    Source(Completion<Report>),
    Target(Completion<Received<Tracked>, Failed<Tracked>>),
}

/// How an operation ended for its caller.
pub(super) struct Ended {
    pub(super) result: Result<(), Error>,
    /// What became of a target; sources never come back.
    pub(super) target: Option<Recovered<Tracked>>,
}

/// One operation, as its caller knows it.
pub(super) struct Caller {
    held: Option<Held>,
    wakes: Arc<Wakes>,
    /// How often it had been woken when it was last told to wait.
    waits_since: Option<usize>,
    pub(super) name: OperationName,
    pub(super) addr: u64,
    pub(super) info: Option<Arc<OpInfo>>,
    pub(super) cancelled: bool,
    /// When the driver had taken the cancel up, at the latest.
    pub(super) cancel_seen: Option<Instant>,
    /// The notification key of an open offer.
    pub(super) key: Option<String>,
}

impl Caller {
    /// Starts an operation.
    pub(super) fn start(
        connector: &Connector,
        name: OperationName,
        memory: Tracked,
        remote: &RdmaMetadata,
    ) -> Self {
        let addr = memory.addr;
        let (held, info) = match name {
            OperationName::Readable => {
                let pending = connector.create_readable(memory);
                let info = pending.info();
                (Held::BeginReadable(pending), info)
            }
            OperationName::Writable => {
                let pending = connector.create_writable(memory);
                let info = pending.info();
                (Held::BeginWritable(pending), info)
            }
            OperationName::Read => {
                let pending = connector.begin_read(remote, memory);
                let info = pending.info();
                (Held::BeginRead(pending), info)
            }
            _ => {
                let pending = connector.begin_write(memory, remote);
                let info = pending.info();
                (Held::BeginWrite(pending), info)
            }
        };
        let held = Some(held);
        let wakes = Arc::default();
        Self {
            held,
            wakes,
            waits_since: None,
            name,
            addr,
            info,
            cancelled: false,
            cancel_seen: None,
            key: None,
        }
    }

    /// Looks at the answer, if there is one.
    pub(super) fn look(&mut self) -> Option<Ended> {
        let waker = Waker::from(Arc::clone(&self.wakes));
        let mut cx = Context::from_waker(&waker);
        let held = match self.held.take()? {
            Held::Readable(operation) => Held::Source(operation.wait_for_completion()),
            Held::Writable(operation) => Held::Target(operation.wait_for_completion()),
            Held::Read(operation) => Held::Target(operation.wait_for_completion()),
            Held::Write(operation) => Held::Source(operation.wait_for_completion()),
            waiting => waiting,
        };
        let (held, ended) = match held {
            Held::BeginReadable(mut pending) => match Pin::new(&mut pending).poll(&mut cx) {
                Poll::Pending => (Some(Held::BeginReadable(pending)), None),
                Poll::Ready(Ok(operation)) => {
                    self.key = Some(operation.metadata().notification_key().to_owned());
                    (Some(Held::Readable(operation)), None)
                }
                Poll::Ready(Err(error)) => (None, Some(source_failed(error))),
            },
            Held::BeginWritable(mut pending) => match Pin::new(&mut pending).poll(&mut cx) {
                Poll::Pending => (Some(Held::BeginWritable(pending)), None),
                Poll::Ready(Ok(operation)) => {
                    self.key = Some(operation.metadata().notification_key().to_owned());
                    (Some(Held::Writable(operation)), None)
                }
                Poll::Ready(Err(failed)) => (None, Some(target_failed(failed))),
            },
            Held::BeginRead(mut pending) => match Pin::new(&mut pending).poll(&mut cx) {
                Poll::Pending => (Some(Held::BeginRead(pending)), None),
                Poll::Ready(Ok(operation)) => (Some(Held::Read(operation)), None),
                Poll::Ready(Err(failed)) => (None, Some(target_failed(failed))),
            },
            Held::BeginWrite(mut pending) => match Pin::new(&mut pending).poll(&mut cx) {
                Poll::Pending => (Some(Held::BeginWrite(pending)), None),
                Poll::Ready(Ok(operation)) => (Some(Held::Write(operation)), None),
                Poll::Ready(Err(error)) => (None, Some(source_failed(error))),
            },
            open @ (Held::Readable(_) | Held::Writable(_) | Held::Read(_) | Held::Write(_)) => {
                (Some(open), None)
            }
            Held::Source(mut completion) => match Pin::new(&mut completion).poll(&mut cx) {
                Poll::Pending => (Some(Held::Source(completion)), None),
                Poll::Ready(Ok(_)) => (None, Some(Ended { result: Ok(()), target: None })),
                Poll::Ready(Err(error)) => (None, Some(source_failed(error))),
            },
            Held::Target(mut completion) => match Pin::new(&mut completion).poll(&mut cx) {
                Poll::Pending => (Some(Held::Target(completion)), None),
                Poll::Ready(Ok(received)) => {
                    let target = Some(Recovered::Returned(received.memory));
                    (None, Some(Ended { result: Ok(()), target }))
                }
                Poll::Ready(Err(failed)) => (None, Some(target_failed(failed))),
            },
        };
        let waits = matches!(
            held,
            Some(
                Held::BeginReadable(_)
                    | Held::BeginWritable(_)
                    | Held::BeginRead(_)
                    | Held::BeginWrite(_)
                    | Held::Source(_)
                    | Held::Target(_)
            )
        );
        self.waits_since = waits.then(|| self.wakes.0.load(Ordering::Relaxed));
        self.held = held;
        ended
    }

    /// Whether it was told to wait and has not been woken since. Then there must be no answer.
    pub(super) fn sleeps(&self) -> bool {
        self.waits_since == Some(self.wakes.0.load(Ordering::Relaxed))
    }

    /// Whether an answer is there for the taking.
    pub(super) fn has_answer(&self) -> bool {
        let Some(info) = &self.info else { return true };
        match self.held {
            Some(Held::Source(_) | Held::Target(_)) => info.slot.is_settled(),
            Some(
                Held::BeginReadable(_) | Held::BeginWritable(_) | Held::BeginRead(_) | Held::BeginWrite(_),
            ) => info.slot.status() != crate::OperationStatus::Uninitialized,
            _ => false,
        }
    }

    /// Cancels, however far it is.
    pub(super) fn cancel(&mut self) {
        if matches!(self.held, Some(Held::Source(_) | Held::Target(_))) {
            // Only its drop ends an operation that is waited for; that is another action.
            return;
        }
        self.cancelled = true;
        self.held = self.held.take().map(|held| match held {
            Held::BeginReadable(pending) => Held::BeginReadable(pending.cancel()),
            Held::BeginWritable(pending) => Held::BeginWritable(pending.cancel()),
            Held::BeginRead(pending) => Held::BeginRead(pending.cancel()),
            Held::BeginWrite(pending) => Held::BeginWrite(pending.cancel()),
            Held::Readable(operation) => Held::Source(operation.cancel()),
            Held::Writable(operation) => Held::Target(operation.cancel()),
            Held::Read(operation) => Held::Target(operation.cancel()),
            Held::Write(operation) => Held::Source(operation.cancel()),
            ending @ (Held::Source(_) | Held::Target(_)) => ending,
        });
    }
}

fn source_failed(error: Error) -> Ended {
    Ended { result: Err(error), target: None }
}

fn target_failed(failed: Failed<Tracked>) -> Ended {
    Ended { result: Err(failed.error), target: Some(failed.memory) }
}
