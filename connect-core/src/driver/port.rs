//! The way into the driver thread: [`Port`] for callers, [`Inbox`] for the driver.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use super::{Keep, OpInfo};
use crate::Region;
use crate::accelerator::{self, Accelerators};
use crate::error::Error;
use crate::memory::MemoryError;
use crate::op::OperationStatus;
use crate::op::slot::Outcome;
use crate::op::state::Why;
use crate::stats;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::mpsc::{self, Receiver, Sender};
use crate::transport::RegistrationId;
use crate::wire::RdmaMetadata;

/// What callers ask of the driver.
pub(crate) enum Command {
    /// Start an operation.
    Start(Box<Start>),
    /// Get to know a peer, without moving anything.
    Connect(Request, RdmaMetadata),
    /// Send a peer a message.
    Notify(Request, RdmaMetadata, Vec<u8>),
    /// Keep memory registered beyond single operations.
    Register(Request, Keep),
    /// Describe memory that is kept registered.
    Describe(Request, Vec<Region>),
    /// Nobody uses that memory any more.
    Deregister(RegistrationId),
    /// Somebody waits for a slot of a slab.
    Wait(Request),
    /// End an operation, or a wait.
    Stop(u64, Why),
    /// End an offer whose peer says that it does not touch the memory and will not.
    StopOnWord(u64),
    /// Take no more operations, end those there are, and finish when everything is quiet.
    ShutDown(Request),
    /// The last handle is gone: as `ShutDown`, with nobody waiting.
    Abandon,
}

/// An operation to start. If it is dropped on the way, its caller gets the memory back and an answer.
pub(crate) struct Start {
    pub(crate) info: Arc<OpInfo>,
    pub(crate) regions: Vec<Region>,
    /// The devices that the memory is on, for which was waited.
    pub(crate) accelerators: Accelerators,
    /// They failed, and the operation with them.
    pub(crate) refused: Option<MemoryError>,
    /// `Some` until the driver takes it.
    pub(crate) memory: Option<Box<dyn Any + Send>>,
    /// The peer's metadata, for an active operation.
    pub(crate) remote: Option<RdmaMetadata>,
}

impl Start {
    /// On its way to the driver. One that can't be sent answers for itself when it is dropped.
    pub(crate) fn send(self: Box<Self>, port: &Port) {
        drop(port.send(Command::Start(self)));
    }

    /// The same, once all is done that was queued for its memory. This blocks.
    pub(crate) fn send_when_produced(mut self: Box<Self>, port: &Port) {
        self.refused = accelerator::synchronize(&self.accelerators).err();
        stats::sub(&self.info.counters.awaiting_devices, 1);
        self.send(port);
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        if self.memory.is_some() {
            answer_shut_down(&self.info, self.memory.take(), || stats::add(&self.info.counters.failed, 1));
        }
    }
}

/// Something that is not a transfer but has a caller waiting. If it is dropped unanswered, the caller is
/// told that the connector is shut down.
pub(crate) struct Request(pub(crate) Arc<OpInfo>);

impl Drop for Request {
    fn drop(&mut self) {
        answer_shut_down(&self.0, None, || {});
    }
}

/// Does nothing if there is an answer already.
fn answer_shut_down(info: &OpInfo, memory: Option<Box<dyn Any + Send>>, count: impl FnOnce()) {
    info.slot.settle(OperationStatus::Errored, Outcome { result: Err(Error::ShutDown), memory }, count);
}

/// Sends commands to the driver and wakes it if it sleeps.
#[derive(Clone)]
pub(crate) struct Port {
    commands: Sender<Command>,
    bell: Arc<Bell>,
}

/// Receives commands on the driver thread.
pub(crate) struct Inbox {
    commands: Receiver<Command>,
    bell: Arc<Bell>,
}

/// Wakes the driver, but only when it sleeps: a wake-up costs a system call.
#[derive(Default)]
struct Bell {
    /// Only ever swapped, never just stored or loaded: swaps have one order, and each sees what happened before
    /// those that came before it. So if a sender's swap comes first, the driver's look at the commands after
    /// its own finds that sender's; if the driver's comes first, the sender finds it asleep.
    asleep: AtomicBool,
    ring: OnceLock<Arc<dyn Fn() + Send + Sync>>,
}

pub(crate) fn channel() -> (Port, Inbox) {
    let (sender, receiver) = mpsc::channel();
    let bell = Arc::new(Bell::default());
    (Port { commands: sender, bell: Arc::clone(&bell) }, Inbox { commands: receiver, bell })
}

impl Port {
    /// Hands a command over; gives it back when the driver is gone.
    pub(crate) fn send(&self, command: Command) -> Result<(), Command> {
        self.commands.send(command).map_err(|mpsc::SendError(command)| command)?;
        // Pairs with `Inbox::falling_asleep`: either the driver sees the command before it sleeps, or this
        // sees that it is asleep.
        if self.bell.asleep.swap(false, Ordering::AcqRel)
            && let Some(ring) = self.bell.ring.get()
        {
            ring();
        }
        Ok(())
    }
}

impl Inbox {
    /// How to wake the driver, known once its transport is built.
    pub(crate) fn set_waker(&self, waker: Arc<dyn Fn() + Send + Sync>) {
        // Set once, right after the transport is built; a second call can't happen.
        let _ = self.bell.ring.set(waker);
    }

    pub(crate) fn try_recv(&self) -> Option<Command> {
        self.commands.try_recv().ok()
    }

    /// Announces that the driver is about to sleep. Returns a command that slipped in, in which case it
    /// must not.
    pub(crate) fn falling_asleep(&self) -> Option<Command> {
        self.bell.asleep.swap(true, Ordering::AcqRel);
        let command = self.try_recv();
        if command.is_some() {
            self.awake();
        }
        command
    }

    pub(crate) fn awake(&self) {
        self.bell.asleep.swap(false, Ordering::AcqRel);
    }
}
