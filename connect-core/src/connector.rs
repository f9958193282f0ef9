//! [`Connector`]: where operations come from.

mod builder;

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::accelerator::{self, Accelerator, Accelerators};
use crate::clock::Clock;
use crate::deadline::Deadline;
use crate::driver::{Command, Deadlines, End, Keep, Mailbox, OpInfo, Port, Registration, Request, Start};
use crate::error::{Error, Failed, Recovered};
use crate::memory::{MemoryError, check_regions};
use crate::op::pending::{Handle, source_ended, target_ended};
use crate::op::slot::{Outcome, Slot};
use crate::op::state::Why;
use crate::op::{
    Completion, OperationKind, OperationName, OperationStatus, Pending, ReadOperation, ReadableOperation,
    WritableOperation, WriteOperation,
};
use crate::stats::{self, Counters, Stats};
use crate::transport::RegistrationId;
use crate::trial::Patience;
use crate::wire::{RdmaMetadata, SerializedDescriptor};
use crate::{Region, SourceMemory, TargetMemory};

pub use builder::ConnectorBuilder;

/// Offers memory to peers, and reads and writes the memory that peers offer.
///
/// A connector owns one transport and the thread that drives it. Clones share both; when the last clone and
/// the last operation are gone, the transport is closed and the thread ends. Dropping the last one waits a
/// quarter of a second for that at most; [`shutdown`](Self::shutdown) waits as long as you say, and tells. One connector per process is
/// the rule: operations on it run side by side.
///
/// ```
/// use connect_core::{Connector, RdmaMetadata};
///
/// let (sender, receiver) = (Connector::local()?, Connector::local()?); // usually in two processes
///
/// let offer = sender.create_readable(vec![1.0f32, 2.0, 3.0]).wait()?;
/// let json = offer.metadata().to_json(); // travels over HTTP, a pipe, NATS ...
///
/// let metadata = RdmaMetadata::from_json(&json)?;
/// let received = receiver.begin_read(&metadata, vec![0f32; 3]).wait()?.wait_for_completion().wait()?;
/// assert_eq!(received.memory, [1.0, 2.0, 3.0]);
/// assert_eq!(offer.wait_for_completion().wait()?.bytes, 12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Connector {
    core: Arc<Core>,
    deadline: Deadline,
}

/// What clones and operations share.
pub(crate) struct Core {
    pub(crate) port: Port,
    deadlines: Arc<Deadlines>,
    counters: Arc<Counters>,
    clock: Clock,
    next_id: AtomicU64,
    worker_id: String,
    transport: &'static str,
    backend: String,
    end: Arc<End>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) patience: Callers,
}

/// Whether callers that block look for their answers before they sleep.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    /// The driver's, which come at once unless something is connected to first.
    pub(crate) opening: Patience,
    acting: Patience,
    offering: Patience,
}

impl Callers {
    /// For the end of such an operation: of a transfer of this side, or of what depends on others.
    pub(crate) fn of(&self, name: OperationName) -> &Patience {
        match name {
            OperationName::Read | OperationName::Write => &self.acting,
            _ => &self.offering,
        }
    }
}

/// How long the last handle waits for the transport to close. A NIXL agent takes 10 ms, and a process that
/// ends meanwhile can crash in its destructors; what is in flight for longer is drained in the background.
const LAST_WAIT: Duration = Duration::from_millis(250);

impl Drop for Core {
    fn drop(&mut self) {
        if self.port.send(Command::Abandon).is_ok() {
            self.end.wait(LAST_WAIT);
        }
    }
}

impl Connector {
    /// A connector over the embedded `local` transport, with defaults throughout: it moves memory between
    /// processes of one host and needs nothing installed.
    ///
    /// # Errors
    /// [`Error::Start`] when the system refuses a socket or a thread.
    pub fn local() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// Chooses a worker id, a transport, deadlines and an allow-list.
    pub fn builder() -> ConnectorBuilder {
        ConnectorBuilder::default()
    }

    /// The same connector, with another deadline for the operations created through this value.
    pub fn with_deadline(&self, deadline: impl Into<Deadline>) -> Self {
        Self { core: Arc::clone(&self.core), deadline: deadline.into() }
    }

    /// This worker's id.
    pub fn worker_id(&self) -> &str {
        &self.core.worker_id
    }

    /// The transport: `local` or `nixl`.
    pub fn transport(&self) -> &'static str {
        self.core.transport
    }

    /// The engine underneath: `local`, or for NIXL its backend, such as `UCX`.
    pub fn backend(&self) -> &str {
        &self.core.backend
    }

    /// Which way bulk memory moves faster between this connector and a peer: pulled by who needs it, or pushed by who
    /// has it. Let the other side offer accordingly.
    ///
    /// Over TCP a WRITE was 1.2 to 5 times faster than a READ of 64 MiB wherever it was measured (two cores, loopback):
    /// UCX serves a READ on request in the process that offers. Within one host both are about as fast, and a reader
    /// begins when it is ready. Networks with RDMA have not been measured.
    ///
    /// ```
    /// use connect_core::{Connector, OperationKind};
    ///
    /// let connector = Connector::local()?;
    /// assert_eq!(connector.faster_kind(true), OperationKind::Read);
    /// # Ok::<(), connect_core::Error>(())
    /// ```
    pub fn faster_kind(&self, same_host: bool) -> OperationKind {
        if same_host || self.core.transport == "local" { OperationKind::Read } else { OperationKind::Write }
    }

    /// Offers memory for one peer to read.
    ///
    /// # Errors
    /// [`Error::Memory`] when the memory can't be offered, [`Error::Transport`] when the transport can't
    /// reach it, [`Error::ParkedLimit`] while too much memory of earlier operations is parked.
    pub fn create_readable<M: SourceMemory>(&self, memory: M) -> Pending<ReadableOperation> {
        let memory = Box::new(memory);
        let (regions, accelerators) = (memory.regions(), memory.accelerators());
        match self.submit(OperationName::Readable, regions, accelerators, None) {
            Ok(submit) => submit.send(memory, ReadableOperation::new, source_ended),
            Err(error) => Pending::refused(error),
        }
    }

    /// Offers memory for one peer to write.
    ///
    /// # Errors
    /// As [`create_readable`](Self::create_readable); the memory comes back with the error.
    pub fn create_writable<M: TargetMemory>(&self, memory: M) -> Pending<WritableOperation<M>, Failed<M>> {
        let mut memory = Box::new(memory);
        let (regions, accelerators) = (memory.regions(), memory.accelerators());
        match self.submit(OperationName::Writable, regions, accelerators, None) {
            Ok(submit) => submit.send(memory, WritableOperation::new, target_ended),
            Err(error) => Pending::refused(Failed { error, memory: Recovered::Returned(*memory) }),
        }
    }

    /// Reads the memory behind a readable operation's metadata into `memory`, which must have as many
    /// pieces of the same lengths. The transfer begins at once.
    ///
    /// # Errors
    /// [`Error::Memory`], [`Error::Metadata`] when the document is malformed or does not fit,
    /// [`Error::Transport`] when the peer can't be reached or refuses, [`Error::ParkedLimit`]; the memory comes
    /// back with the error.
    pub fn begin_read<M: TargetMemory>(
        &self,
        metadata: &RdmaMetadata,
        memory: M,
    ) -> Pending<ReadOperation<M>, Failed<M>> {
        self.read(Cow::Borrowed(metadata), memory)
    }

    /// The same, with a document that was made for this and needs no copy.
    pub(crate) fn begin_read_owned<M: TargetMemory>(
        &self,
        metadata: RdmaMetadata,
        memory: M,
    ) -> Pending<ReadOperation<M>, Failed<M>> {
        self.read(Cow::Owned(metadata), memory)
    }

    fn read<M: TargetMemory>(
        &self,
        metadata: Cow<'_, RdmaMetadata>,
        memory: M,
    ) -> Pending<ReadOperation<M>, Failed<M>> {
        let mut memory = Box::new(memory);
        let (regions, accelerators) = (memory.regions(), memory.accelerators());
        match self.submit(OperationName::Read, regions, accelerators, Some(metadata)) {
            Ok(submit) => submit.send(memory, ReadOperation::new, target_ended),
            Err(error) => Pending::refused(Failed { error, memory: Recovered::Returned(*memory) }),
        }
    }

    /// Reads the memory behind a readable operation's metadata into the beginning of `memory`, one piece that may be
    /// larger. The descriptors of the document are put one after another; [`Report::bytes`](crate::Report::bytes)
    /// says how much arrived, and a [`Slot`](crate::Slot) has that length then.
    ///
    /// ```
    /// use connect_core::Connector;
    ///
    /// let (sender, receiver) = (Connector::local()?, Connector::local()?);
    /// let offer = sender.create_readable(vec![7u8; 3]).wait()?;
    /// let received = receiver.begin_read_into(offer.metadata(), vec![0u8; 8]).wait()?.wait_for_completion().wait()?;
    /// assert_eq!((received.report.bytes, received.memory), (3, vec![7, 7, 7, 0, 0, 0, 0, 0]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`begin_read`](Self::begin_read). Memory that is too small is [`Error::Memory`] with
    /// [`MemoryError::TooSmall`](crate::MemoryError::TooSmall), and memory that can't be
    /// filled in part [`MemoryError::AllOrNothing`](crate::MemoryError::AllOrNothing); both before anything was asked
    /// of the peer. Use a larger buffer, or one of plain elements.
    pub fn begin_read_into<M: TargetMemory>(
        &self,
        metadata: &RdmaMetadata,
        memory: M,
    ) -> Pending<ReadOperation<M>, Failed<M>> {
        let mut memory = Box::new(memory);
        let regions = memory.beginning(metadata.total_bytes()).and_then(|region| cut(region, metadata));
        match regions.map_err(Error::from).and_then(|regions| {
            let metadata = Some(Cow::Borrowed(metadata));
            self.submit(OperationName::Read, regions, memory.accelerators(), metadata)
        }) {
            Ok(submit) => submit.send(memory, ReadOperation::new, target_ended),
            Err(error) => Pending::refused(Failed { error, memory: Recovered::Returned(*memory) }),
        }
    }

    /// Writes `memory` to the memory behind a writable operation's metadata, which must have as many pieces
    /// of the same lengths. The transfer begins at once.
    ///
    /// # Errors
    /// As [`begin_read`](Self::begin_read).
    pub fn begin_write<M: SourceMemory>(
        &self,
        memory: M,
        metadata: &RdmaMetadata,
    ) -> Pending<WriteOperation> {
        self.write(memory, Cow::Borrowed(metadata))
    }

    /// The same, with a document that was made for this and needs no copy.
    pub(crate) fn begin_write_owned<M: SourceMemory>(
        &self,
        memory: M,
        metadata: RdmaMetadata,
    ) -> Pending<WriteOperation> {
        self.write(memory, Cow::Owned(metadata))
    }

    fn write<M: SourceMemory>(&self, memory: M, metadata: Cow<'_, RdmaMetadata>) -> Pending<WriteOperation> {
        let memory = Box::new(memory);
        let (regions, accelerators) = (memory.regions(), memory.accelerators());
        match self.submit(OperationName::Write, regions, accelerators, Some(metadata)) {
            Ok(submit) => submit.send(memory, WriteOperation::new, source_ended),
            Err(error) => Pending::refused(error),
        }
    }

    /// Gets to know the peer behind `metadata` ahead of the first transfer, and returns its name. A first
    /// connection over NIXL takes tens of milliseconds.
    ///
    /// # Errors
    /// [`Error::Metadata`] or [`Error::Transport`].
    pub fn connect(&self, metadata: &RdmaMetadata) -> Pending<String> {
        let handle = self.request(OperationName::Connect, 0, self.deadline);
        let command = Command::Connect(Request(Arc::clone(&handle.info)), metadata.clone());
        self.ask(handle, command, |_, opened| opened.peer.unwrap_or_default())
    }

    /// Ends every operation, closes the transport and waits until nothing is in flight, at most until
    /// `deadline`. Operations that are still open end with [`Error::ShutDown`]; new ones are refused.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`] when a transfer would not end in time. Its memory stays parked, and the
    /// connector goes on waiting for it in the background.
    pub fn shutdown(&self, deadline: impl Into<Deadline>) -> Pending<()> {
        let handle = self.request(OperationName::ShutDown, 0, deadline.into());
        let command = Command::ShutDown(Request(Arc::clone(&handle.info)));
        self.ask(handle, command, |_, _| ())
    }

    /// Runs work that blocks on the thread of an accelerator, once all is done that was queued on the device: what
    /// allocates its memory, or copies it to the host. For adapters.
    ///
    /// # Errors
    /// [`Error::Memory`] when the device failed, [`Error::DeadlineExceeded`]; the work may then go on by itself.
    pub fn run_on<T: Send + 'static>(
        &self,
        accelerator: Arc<dyn Accelerator>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Completion<T> {
        let handle = self.wait(self.info(OperationName::Prepare, 0, 0, self.deadline));
        let (info, port) = (Arc::clone(&handle.info), self.core.port.clone());
        accelerator::run_on_thread_of(accelerator.device(), move || {
            if info.withdrawn.load(Ordering::Relaxed) || info.slot.is_settled() {
                return;
            }
            let outcome = match accelerator::run(accelerator.as_ref(), work) {
                Ok(made) => Outcome { result: Ok(info.waited()), memory: Some(Box::new(made)) },
                Err(error) => Outcome { result: Err(error.into()), memory: None },
            };
            let status =
                if outcome.result.is_ok() { OperationStatus::Complete } else { OperationStatus::Errored };
            info.slot.settle(status, outcome, || {});
            // The driver need not think of its deadline any more.
            let _ = port.send(Command::Stop(info.id, Why::Cancelled));
        });
        Completion::new(handle, ran)
    }

    /// What the connector has done so far.
    pub fn stats(&self) -> Stats {
        self.core.counters.snapshot()
    }

    /// The same connector, whose deadline counts from now and not from each call: what is begun through it shares the
    /// time. For operations of several steps, such as adapters have.
    #[must_use]
    pub fn with_deadline_from_now(&self) -> Self {
        self.with_its_deadline().0
    }

    /// The same, and the moment.
    pub(crate) fn with_its_deadline(&self) -> (Self, Option<Instant>) {
        let at = self.deadline.resolve(self.core.clock.now());
        (self.with_deadline(at.map_or(Deadline::never(), Deadline::at)), at)
    }

    /// Keeps memory registered until the registration is dropped, and valid, by its owner, for as long as anybody
    /// may reach it.
    pub(crate) fn register(
        &self,
        region: Region,
        accelerators: Accelerators,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> (Registration, Pending<()>) {
        let handle = self.request(OperationName::Register, region.len(), self.deadline);
        let id = RegistrationId(handle.info.id);
        let keep = Keep { id, region, accelerators, owner };
        let command = Command::Register(Request(Arc::clone(&handle.info)), keep);
        (Registration { id, port: self.core.port.clone() }, self.ask(handle, command, |_, _| ()))
    }

    /// What leads a peer to memory that is registered, as documents carry it.
    pub(crate) fn describe(&self, regions: Vec<Region>) -> Pending<String> {
        let handle = self.request(OperationName::Describe, 0, self.deadline);
        let command = Command::Describe(Request(Arc::clone(&handle.info)), regions);
        self.ask(handle, command, |_, opened| opened.blob.unwrap_or_default())
    }

    /// Sends a message to the peer behind `metadata`. That it was sent does not say that it arrives.
    pub(crate) fn notify(&self, metadata: RdmaMetadata, message: Vec<u8>) -> Pending<()> {
        let handle = self.request(OperationName::Notify, 0, self.deadline);
        let command = Command::Notify(Request(Arc::clone(&handle.info)), metadata, message);
        self.ask(handle, command, |_, _| ())
    }

    /// Where messages to this connector arrive.
    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.core.mailbox
    }

    /// Somebody who is about to wait for a slot.
    pub(crate) fn waiter(&self, slot_bytes: usize) -> Arc<OpInfo> {
        self.info(OperationName::Take, slot_bytes as u64, 0, self.deadline)
    }

    /// Has the driver keep the deadline of a waiter.
    pub(crate) fn wait(&self, waiter: Arc<OpInfo>) -> Handle {
        self.core.deadlines.insert(&waiter);
        // A request that can't be sent answers for itself when it is dropped.
        drop(self.core.port.send(Command::Wait(Request(Arc::clone(&waiter)))));
        Handle { info: waiter, core: Arc::clone(&self.core) }
    }

    /// Everything that can be refused without asking the driver is refused here, on the caller's thread.
    fn submit(
        &self,
        name: OperationName,
        regions: Vec<Region>,
        accelerators: Accelerators,
        remote: Option<Cow<'_, RdmaMetadata>>,
    ) -> Result<Submit, Error> {
        let is_target = name.is_incoming();
        check_regions(&regions, is_target)?;
        if let Some(metadata) = &remote {
            metadata.check_against(name.kind(), &regions)?;
        }
        let bytes = regions.iter().map(Region::len).sum();
        let counters = &self.core.counters;
        counters.admit(bytes).map_err(|parked| {
            let limit = counters.parked_limit.load(Ordering::Relaxed);
            Error::ParkedLimit { bytes, parked, limit }
        })?;
        let info = self.info(name, bytes, regions.len(), self.deadline);
        stats::add(&counters.started, 1);
        let remote = remote.map(Cow::into_owned);
        Ok(Submit { core: Arc::clone(&self.core), info, regions, remote, accelerators })
    }

    fn request(&self, name: OperationName, bytes: u64, deadline: Deadline) -> Handle {
        Handle { info: self.info(name, bytes, 0, deadline), core: Arc::clone(&self.core) }
    }

    fn ask<T>(
        &self,
        handle: Handle,
        command: Command,
        opened: fn(Handle, crate::op::slot::Opened) -> T,
    ) -> Pending<T> {
        self.core.deadlines.insert(&handle.info);
        // A command that can't be sent answers for itself when it is dropped.
        drop(self.core.port.send(command));
        Pending::new(handle, opened, source_ended)
    }

    fn info(&self, name: OperationName, bytes: u64, descriptors: usize, deadline: Deadline) -> Arc<OpInfo> {
        let id = self.core.next_id.fetch_add(1, Ordering::Relaxed);
        let created = self.core.clock.now();
        Arc::new(OpInfo {
            id,
            name,
            transport: self.core.transport,
            bytes,
            descriptors,
            created,
            clock: self.core.clock.clone(),
            deadline: deadline.resolve(created),
            peer: OnceLock::new(),
            slot: Slot::new(),
            withdrawn: AtomicBool::new(false),
            span: tracing::debug_span!("connect", operation = %name, id, bytes, descriptors),
            counters: Arc::clone(&self.core.counters),
        })
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("worker_id", &self.core.worker_id)
            .field("transport", &self.core.transport)
            .field("backend", &self.core.backend)
            .field("deadline", &self.deadline)
            .finish()
    }
}

#[cfg(test)]
impl Connector {
    /// A connector without threads: whoever has the other end of `port` drives it, and the one who has
    /// `deadlines` watches over that.
    pub(crate) fn stepped(
        port: Port,
        deadlines: Arc<Deadlines>,
        counters: Arc<Counters>,
        clock: Clock,
    ) -> Self {
        let core = Core {
            port,
            deadlines,
            counters,
            clock,
            next_id: AtomicU64::new(1),
            worker_id: "stepped".to_owned(),
            transport: "stepped",
            backend: "stepped".to_owned(),
            end: Arc::new(End::new()),
            mailbox: Arc::default(),
            patience: Callers::default(),
        };
        Self { core: Arc::new(core), deadline: Deadline::DEFAULT }
    }
}

/// The pieces of `region`, one after another, that a document's descriptors fill. It is as long as those are together.
fn cut(region: Region, metadata: &RdmaMetadata) -> Result<Vec<Region>, MemoryError> {
    let mut at = 0;
    let piece = |descriptor: &SerializedDescriptor| {
        let begin = at;
        at += descriptor.size();
        region.slice(begin..at)
    };
    metadata.descriptors().iter().map(piece).collect()
}

/// What work that ran somewhere else left behind.
fn ran<T: 'static>(outcome: Outcome) -> Result<T, Error> {
    outcome.result?;
    let made = outcome.memory.and_then(|made| made.downcast::<T>().ok());
    made.map(|made| *made).ok_or(Error::ShutDown)
}

/// A checked operation on its way to the driver.
struct Submit {
    core: Arc<Core>,
    info: Arc<OpInfo>,
    regions: Vec<Region>,
    remote: Option<RdmaMetadata>,
    accelerators: Accelerators,
}

impl Submit {
    fn send<M: Send + 'static, T, E>(
        self,
        memory: Box<M>,
        opened: fn(Handle, crate::op::slot::Opened) -> T,
        ended: fn(crate::op::slot::Outcome) -> E,
    ) -> Pending<T, E> {
        let start = Box::new(Start {
            info: Arc::clone(&self.info),
            regions: self.regions,
            accelerators: self.accelerators,
            refused: None,
            memory: Some(memory),
            remote: self.remote,
        });
        self.core.deadlines.insert(&self.info);
        match start.accelerators.first() {
            None => start.send(&self.core.port),
            Some(first) => {
                let (device, port) = (first.device(), self.core.port.clone());
                // Until the driver has it, it must not end: nobody else keeps the deadline then.
                stats::add(&self.core.counters.awaiting_devices, 1);
                accelerator::run_on_thread_of(device, move || start.send_when_produced(&port));
            }
        }
        Pending::new(Handle { info: self.info, core: self.core }, opened, ended)
    }
}
