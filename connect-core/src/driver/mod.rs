//! The driver: one thread per connector that owns the transport and every operation's memory.
//!
//! It takes commands from the handles, polls transfers, routes notifications, keeps deadlines, and watches
//! parked memory until it is quiet. It never blocks in a lock that a caller holds, and a caller never
//! blocks in a transport call.

mod closing;
mod contacts;
mod encoded;
mod end;
mod info;
#[cfg(all(test, loom))]
mod loom;
mod mailbox;
#[cfg(test)]
mod model;
mod operation;
mod pace;
mod peers;
mod port;
mod registrations;
mod settling;
#[cfg(test)]
mod tests;
mod watchdog;

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use encoded::Encoded;
pub(crate) use end::End;
pub(crate) use info::OpInfo;
pub(crate) use mailbox::{Expecting, Inbox as Letters, Mailbox};
use operation::Operation;
pub use pace::Polling;
use pace::{Load, Pace, Pause};
use peers::Peers;
pub(crate) use port::{Command, Inbox, Port, Request, Start, channel};
use registrations::Registrations;
pub(crate) use registrations::{Keep, Registration};
pub(crate) use watchdog::Deadlines;

use crate::accelerator;
use crate::clock::Clock;
use crate::error::Error;
use crate::op::OperationStatus;
use crate::op::slot::Opened;
use crate::op::state::{Event, Phase, Verdict, Why};
use crate::stats::{self, Counters};
use crate::transport::{
    Offer, OfferId, Quiescence, Transfer, TransferState, Transport, TransportContext, TransportError,
    TransportEvent, TransportFactory,
};
use crate::wire::RdmaMetadata;
use crate::{Device, Region};

/// Commands taken up in one round, so that a flood of new operations does not starve those in flight.
const COMMANDS_PER_ROUND: usize = 64;
/// How long a cancelled operation may wait for its memory before the caller is told that it is parked.
const CANCEL_GRACE: Duration = Duration::from_millis(200);
/// How often memory that is not quiet is looked at while a caller may wait for it: a fraction of the grace.
const WATCH_INTERVAL: Duration = Duration::from_millis(2);
/// And how often once nobody waits: a stopped peer may keep it busy for hours.
const PARKED_INTERVAL: Duration = Duration::from_millis(20);

/// What a new driver reports about its transport.
pub(crate) struct Ready {
    pub(crate) transport: &'static str,
    pub(crate) backend: String,
    pub(crate) end: Arc<End>,
    pub(crate) mailbox: Arc<Mailbox>,
}

/// Starts the driver thread and waits until its transport is built.
pub(crate) fn start(
    factory: TransportFactory,
    context: TransportContext,
    polling: Polling,
    inbox: Inbox,
    deadlines: Arc<Deadlines>,
    counters: Arc<Counters>,
) -> Result<Ready, TransportError> {
    let (sender, ready) = std::sync::mpsc::sync_channel(1);
    let name = format!("connect-{}", context.worker_id.chars().take(7).collect::<String>());
    thread::Builder::new()
        .name(name)
        .spawn(move || run(factory, &context, polling, inbox, deadlines, counters, &sender))
        .map_err(|error| TransportError::resource("starting the driver thread", error))?;
    ready.recv().unwrap_or_else(|_| {
        Err(TransportError::Engine { call: "building the transport", status: "it panicked".to_owned() })
    })
}

fn run(
    factory: TransportFactory,
    context: &TransportContext,
    polling: Polling,
    inbox: Inbox,
    deadlines: Arc<Deadlines>,
    counters: Arc<Counters>,
    ready: &SyncSender<Result<Ready, TransportError>>,
) {
    let transport = match factory(context) {
        Ok(transport) => transport,
        Err(error) => {
            // Whoever builds the connector ends the watchdog, too.
            let _ = ready.send(Err(error));
            return;
        }
    };
    inbox.set_waker(transport.waker());
    let end = Arc::new(End::new());
    let (name, backend) = (transport.name(), transport.backend().to_owned());
    let mailbox = Arc::new(Mailbox::default());
    let (ended, letters) = (Arc::clone(&end), Arc::clone(&mailbox));
    let _ = ready.send(Ok(Ready { transport: name, backend, end: ended, mailbox: letters }));

    let mut driver = Driver::new(transport, polling, inbox, Arc::clone(&deadlines), counters, Clock::Real);
    driver.mailbox = mailbox;
    let work = || {
        while driver.turn() {}
        // The transport is gone; whoever drops the last handle waits for no more than that.
        end.reached();
        driver.finish();
    };
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        // A bug, in this library or in an engine. Nothing is known about the memory any more, so none of it
        // is freed (P1), and every caller is told (P2).
        tracing::error!("the driver thread panicked; its connector is unusable and its memory is kept");
        driver.abandon_everything();
        std::mem::forget(driver);
    } else {
        drop(driver);
    }
    deadlines.close();
    end.reached();
}

fn still_busy(call: &'static str) -> TransportError {
    TransportError::Engine { call, status: "the memory of a completed operation is still busy".to_owned() }
}

struct Driver {
    transport: Box<dyn Transport>,
    inbox: Inbox,
    deadlines: Arc<Deadlines>,
    counters: Arc<Counters>,
    clock: Clock,
    pace: Pace,
    peers: Peers,
    encoded: Encoded,
    operations: HashMap<u64, Operation>,
    registrations: Registrations,
    mailbox: Arc<Mailbox>,
    /// Transfers in flight, in the order in which they are polled next.
    in_flight: VecDeque<u64>,
    /// Open offers by notification key.
    keys: HashMap<String, u64>,
    /// Open offers by the transport's id.
    offers: HashMap<OfferId, u64>,
    /// Operations whose memory is not quiet.
    watched: Vec<u64>,
    next_deadline: Option<Instant>,
    next_watch: Option<Instant>,
    events: Vec<TransportEvent>,
    /// Set once the connector shuts down: nobody, or the callers who wait for the end.
    closing: Option<Vec<Request>>,
    /// How long memory is kept after the transport was dropped.
    lingers_for: Duration,
}

impl Driver {
    fn new(
        transport: Box<dyn Transport>,
        polling: Polling,
        inbox: Inbox,
        deadlines: Arc<Deadlines>,
        counters: Arc<Counters>,
        clock: Clock,
    ) -> Self {
        Self {
            pace: Pace::new(transport.is_event_driven(), polling),
            transport,
            inbox,
            deadlines,
            counters,
            clock,
            peers: Peers::new(),
            encoded: Encoded::new(),
            operations: HashMap::new(),
            registrations: Registrations::default(),
            mailbox: Arc::default(),
            in_flight: VecDeque::new(),
            keys: HashMap::new(),
            offers: HashMap::new(),
            watched: Vec::new(),
            next_deadline: None,
            next_watch: None,
            events: Vec::new(),
            closing: None,
            lingers_for: Duration::ZERO,
        }
    }

    /// Looks at everything once, and pauses if nothing happened. Says whether there will be another turn.
    fn turn(&mut self) -> bool {
        let mut busy = self.take_commands();
        busy |= self.transport.progress(&mut self.events);
        busy |= self.route_events();
        busy |= self.poll_transfers();
        let now = self.clock.now();
        busy |= self.expire(now);
        busy |= self.watch(now);
        if self.closing.is_some() && self.finish_closing(now) {
            return false;
        }
        if busy {
            self.pace.busy(now);
        } else {
            self.pause(now);
        }
        true
    }

    fn load(&self) -> Load {
        if !self.in_flight.is_empty() {
            Load::Active
        } else if !self.offers.is_empty()
            || !self.watched.is_empty()
            || self.registrations.are_leaving()
            || self.mailbox.is_expecting()
        {
            Load::Passive
        } else {
            Load::None
        }
    }

    fn pause(&mut self, now: Instant) {
        let load = self.load();
        let longest = match self.pace.idle(load, now) {
            Pause::Yield => return thread::yield_now(),
            Pause::Sleep(longest) => Some(longest),
            Pause::Park => None,
        };
        let wakes = [self.next_deadline, self.next_watch, self.closing_deadline()];
        let next = wakes.into_iter().flatten().min().map(|at| at.saturating_duration_since(now));
        let timeout = match (longest.filter(|longest| *longest < Duration::MAX), next) {
            (Some(longest), Some(next)) => Some(longest.min(next)),
            (longest, next) => longest.or(next),
        };
        if let Some(command) = self.inbox.falling_asleep() {
            return self.take(command);
        }
        self.transport.wait(timeout);
        self.inbox.awake();
    }

    // --- commands ---------------------------------------------------------------------------------------

    fn take_commands(&mut self) -> bool {
        for taken in 0..COMMANDS_PER_ROUND {
            match self.inbox.try_recv() {
                Some(command) => self.take(command),
                None => return taken > 0,
            }
        }
        true
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Start(start) => self.start(*start),
            Command::Connect(request, metadata) => self.connect(&request.0, &metadata),
            Command::Notify(request, metadata, message) => self.notify(&request.0, &metadata, &message),
            Command::Register(request, keep) => self.register(&request, keep),
            Command::Describe(request, regions) => self.describe(&request, &regions),
            Command::Deregister(id) => self.deregister(id),
            Command::Wait(request) => self.await_slot(request),
            Command::Stop(id, why) => self.stop(id, why),
            Command::StopOnWord(id) => self.stop_on_word(id),
            Command::ShutDown(request) => self.begin_closing(Some(request)),
            Command::Abandon => self.begin_closing(None),
        }
    }

    fn start(&mut self, start: Start) {
        let info = Arc::clone(&start.info);
        let _entered = info.span.clone().entered();
        let (mut start, late) = (start, info.slot.is_settled());
        let refused = start.refused.take().map(Error::Memory);
        let mut operation = Operation::new(start);
        stats::add(&self.counters.open, 1);
        if self.closing.is_some() {
            return self.refuse(operation, Error::ShutDown);
        }
        if info.withdrawn.load(Ordering::Relaxed) {
            let step = operation.machine.on(Event::Stop(Why::Cancelled, Quiescence::Quiet));
            return self.settle(
                &mut operation,
                step.verdict.unwrap_or(Verdict::Stopped(Why::Cancelled)),
                true,
            );
        }
        if let Some(error) = refused.or_else(|| late.then(|| info.deadline_exceeded())) {
            // Late is what waited for its device until the watchdog had answered.
            return self.refuse(operation, error);
        }
        if let Some(deadline) = info.deadline {
            self.next_deadline = Some(self.next_deadline.map_or(deadline, |next| next.min(deadline)));
        }
        match self.open(&mut operation) {
            Ok(opened) => {
                operation.opened_at = Some(self.clock.now());
                operation.machine.on(Event::Opened);
                info.slot.set_status(OperationStatus::Initialized);
                info.slot.open(opened);
                tracing::debug!(peer = info.peer.get(), "open");
                let (id, is_active) = (info.id, operation.transfer.is_some());
                self.operations.insert(id, operation);
                if is_active {
                    // A small transfer may be complete already; look before anything else is done.
                    if !self.poll_transfer(id) {
                        self.in_flight.push_back(id);
                    }
                }
            }
            Err(error) => self.refuse(operation, error),
        }
    }

    /// Hands the operation to the transport.
    fn open(&mut self, operation: &mut Operation) -> Result<Opened, Error> {
        let info = Arc::clone(&operation.info);
        let failed = |source| Error::Transport { context: info.context(), source };
        accelerator::bind(&operation.accelerators)?;
        check_devices(self.transport.as_ref(), "of this side", &operation.regions).map_err(failed)?;
        let Some(remote) = operation.remote.take() else {
            let key = uuid::Uuid::new_v4().to_string();
            let offer = Offer { kind: info.name.kind(), regions: &operation.regions, key: &key };
            // SAFETY: the regions are those of `operation.memory`, which keeps its trait's promise about them
            // while it lives; it is dropped or handed back only after the state machine said `Release`, which
            // it does only after the transport said `Quiet`, or after the transport itself was dropped.
            let (offer_id, blob) = unsafe { self.transport.offer(&offer) }.map_err(failed)?;
            let (kind, regions) = (info.name.kind(), &operation.regions);
            let metadata = self
                .encoded
                .of(&blob)
                .and_then(|blob| RdmaMetadata::with_encoded_blob(kind, regions, blob, key.clone()));
            let metadata = metadata.inspect_err(|_| {
                // Nobody has seen its key, so it counts as completed: no peer can be reading.
                let _ = self.transport.end_offer(offer_id, true);
            })?;
            self.keys.insert(key.clone(), info.id);
            self.offers.insert(offer_id, info.id);
            operation.offer = Some((offer_id, key));
            return Ok(Opened { metadata: Some(metadata), ..Opened::default() });
        };
        let remote_regions = remote.regions();
        check_devices(self.transport.as_ref(), "of the peer", &remote_regions).map_err(failed)?;
        let now = self.clock.now();
        let (peer, name) = self.peers.connect(self.transport.as_mut(), &remote, now, failed)?;
        let _ = info.peer.set(name.clone());
        let transfer = Transfer {
            peer,
            kind: info.name.kind(),
            local: &operation.regions,
            remote: &remote_regions,
            key: remote.notification_key(),
        };
        // SAFETY: as for the offer above; the transport is dropped only without transfers in flight.
        let begun = unsafe { self.transport.begin(&transfer) };
        let id = begun.map_err(|source| {
            self.peers.forget_if_lost(self.transport.as_mut(), &source, peer);
            failed(source)
        })?;
        operation.transfer = Some((id, peer));
        Ok(Opened { peer: Some(name), ..Opened::default() })
    }

    /// Ends an operation that the transport never took: its memory was never reachable.
    fn refuse(&mut self, mut operation: Operation, error: Error) {
        operation.error = Some(error);
        let step = operation.machine.on(Event::Failed(Quiescence::Quiet));
        self.settle(&mut operation, step.verdict.unwrap_or(Verdict::Failed), true);
    }

    // --- what happens to operations ---------------------------------------------------------------------

    fn route_events(&mut self) -> bool {
        let events = std::mem::take(&mut self.events);
        let any = !events.is_empty();
        for event in events {
            match event {
                TransportEvent::Notification { from, body } => self.notified(from, &body),
                TransportEvent::Message { from, body } => {
                    if !self.mailbox.deliver(from, &body) {
                        stats::add(&self.counters.unmatched_notifications, 1);
                    }
                }
                TransportEvent::OfferFailed { id, error } => self.offer_failed(id, error),
            }
        }
        any
    }

    /// A notification completes the operation whose key it is, byte for byte. The key is good for one (P7).
    fn notified(&mut self, from: String, body: &[u8]) {
        let id = std::str::from_utf8(body).ok().and_then(|key| self.keys.remove(key));
        let Some(operation) = id.and_then(|id| self.operations.get_mut(&id)) else {
            stats::add(&self.counters.unmatched_notifications, 1);
            tracing::debug!(from, bytes = body.len(), "a notification that matches no operation");
            return;
        };
        let _ = operation.info.peer.set(from);
        let id = operation.info.id;
        // The peer is done with the memory, whatever this side thinks of the operation by now.
        operation.ending = true;
        operation.bind();
        let offer = operation.offer.as_ref().map(|(offer, _)| *offer);
        match offer.map_or(Quiescence::Quiet, |offer| self.transport.end_offer(offer, true)) {
            Quiescence::Quiet => self.happened(id, Event::Completed),
            // Not what a transport should do, but the memory comes first.
            Quiescence::Busy => self.fail(id, still_busy("end_offer"), Quiescence::Busy),
        }
    }

    fn offer_failed(&mut self, offer: OfferId, error: TransportError) {
        let Some(id) = self.offers.get(&offer).copied() else { return };
        let quiet = self.let_go(id);
        self.fail(id, error, quiet);
    }

    fn fail(&mut self, id: u64, source: TransportError, quiet: Quiescence) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        if operation.error.is_none() {
            operation.error = Some(Error::Transport { context: operation.info.context(), source });
        }
        self.happened(id, Event::Failed(quiet));
    }

    fn poll_transfers(&mut self) -> bool {
        let mut busy = false;
        for _ in 0..self.in_flight.len() {
            let Some(id) = self.in_flight.pop_front() else { break };
            let ended = self.poll_transfer(id);
            busy |= ended || self.operations.get(&id).is_some_and(|operation| operation.advanced);
            if !ended {
                self.in_flight.push_back(id);
            }
        }
        busy
    }

    /// Polls one transfer; says whether it left the flight.
    fn poll_transfer(&mut self, id: u64) -> bool {
        let Some(operation) = self.operations.get_mut(&id) else { return true };
        let (Some((transfer, peer)), Phase::Open) = (operation.transfer, operation.machine.phase()) else {
            return true;
        };
        operation.bind();
        match self.transport.poll(transfer) {
            Ok(TransferState::Pending { advanced }) => {
                operation.advanced = advanced;
                if advanced {
                    operation.machine.on(Event::Moved);
                    operation.info.slot.set_status(OperationStatus::InProgress);
                }
                false
            }
            Ok(TransferState::Complete) => {
                match self.transport.release(transfer) {
                    Quiescence::Quiet => self.happened(id, Event::Completed),
                    // Not what a transport should do, but the memory comes first.
                    Quiescence::Busy => self.fail(id, still_busy("release"), Quiescence::Busy),
                }
                true
            }
            Err(error) => {
                let quiet = self.transport.release(transfer);
                self.peers.forget_if_lost(self.transport.as_mut(), &error, peer);
                self.fail(id, error, quiet);
                true
            }
        }
    }

    fn stop(&mut self, id: u64, why: Why) {
        if self.end_waiting(id, why) {
            return;
        }
        let Some(operation) = self.operations.get(&id) else { return };
        if matches!(operation.machine.phase(), Phase::Parked | Phase::Finished) {
            return;
        }
        let quiet = self.let_go(id);
        self.happened(id, Event::Stop(why, quiet));
    }

    /// Ends an offer as if its notification had come, without success: its taker can say that with the key it has, too.
    fn stop_on_word(&mut self, id: u64) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        let Some((offer, _)) = operation.offer else { return self.stop(id, Why::Cancelled) };
        if matches!(operation.machine.phase(), Phase::Parked | Phase::Finished) {
            return;
        }
        operation.ending = true;
        operation.bind();
        let quiet = self.transport.end_offer(offer, true);
        self.happened(id, Event::Stop(Why::Cancelled, quiet));
    }

    /// Asks the transport to stop touching an operation's memory.
    fn let_go(&mut self, id: u64) -> Quiescence {
        let Some(operation) = self.operations.get_mut(&id) else { return Quiescence::Quiet };
        let first = !std::mem::replace(&mut operation.ending, true);
        operation.bind();
        match (&operation.offer, operation.transfer) {
            (Some((offer, _)), _) if first => self.transport.end_offer(*offer, false),
            (Some((offer, _)), _) => self.transport.offer_is_quiet(*offer),
            (None, Some((transfer, _))) => self.transport.release(transfer),
            (None, None) => Quiescence::Quiet,
        }
    }

    // --- time -------------------------------------------------------------------------------------------

    fn expire(&mut self, now: Instant) -> bool {
        if self.next_deadline.is_none_or(|deadline| now < deadline) {
            return false;
        }
        let (overdue, next) = self.deadlines.overdue(now);
        self.next_deadline = next;
        for id in &overdue {
            self.stop(*id, Why::Deadline);
        }
        !overdue.is_empty()
    }

    fn watch(&mut self, now: Instant) -> bool {
        if self.next_watch.is_none_or(|at| now < at) {
            return false;
        }
        let (mut ended, mut waited_for) = (false, false);
        for id in std::mem::take(&mut self.watched) {
            if self.let_go(id) == Quiescence::Quiet {
                self.happened(id, Event::Quiet);
                ended = true;
                continue;
            }
            let in_grace = self.operations.get(&id).is_some_and(|operation| now < operation.grace_ends);
            waited_for |= in_grace;
            if !in_grace {
                self.happened(id, Event::GraceOver);
            }
            self.watched.push(id);
        }
        self.watched.retain(|id| self.operations.contains_key(id));
        self.watch_registrations();
        let watching = !self.watched.is_empty() || self.registrations.are_leaving();
        let interval = if waited_for { WATCH_INTERVAL } else { PARKED_INTERVAL };
        self.next_watch = watching.then(|| now + interval);
        ended
    }
}

/// Asks the transport about each device that the regions are on. A refusal names the first descriptor there.
fn check_devices(transport: &dyn Transport, whose: &str, regions: &[Region]) -> Result<(), TransportError> {
    let mut checked: Vec<Device> = Vec::new();
    for (index, region) in regions.iter().enumerate() {
        let device = region.device();
        if checked.contains(&device) {
            continue;
        }
        transport.check_device(device).map_err(|error| match error {
            TransportError::UnsupportedDevice { device, reason } if index > 0 => {
                let reason = format!("descriptor {index} {whose}: {reason}");
                TransportError::UnsupportedDevice { device, reason }
            }
            other => other,
        })?;
        checked.push(device);
    }
    Ok(())
}
