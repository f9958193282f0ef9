//! The transport that a plan makes faulty: [`Faulty`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Control;
use super::plan::{Call, Hold, Plan, Post};
use crate::clock::Clock;
use crate::transport::{
    Offer, OfferId, PeerId, Quiescence, RegistrationId, Transfer, TransferId, TransferState, Transport,
    TransportError, TransportEvent,
};
use crate::{Device, Region};

/// How often the driver looks while something is held up: often enough for any test, and no spinning.
const LOOK: Duration = Duration::from_millis(1);

/// A transport, and what goes wrong with it.
pub(super) struct Faulty {
    inner: Box<dyn Transport>,
    plan: Plan,
    clock: Clock,
    control: Control,
    counts: Counts,
    /// Keys of the offers that are not quiet.
    keys: HashMap<OfferId, Vec<u8>>,
    /// Transfers that are complete and not yet released.
    complete: HashSet<TransferId>,
    stalled: HashMap<TransferId, Held>,
    offers: HashMap<OfferId, Ending>,
    transfers: HashMap<TransferId, Ending>,
    /// Notifications that come later.
    late: Vec<(Instant, TransportEvent)>,
    /// Notifications that the next one overtakes.
    overtaken: VecDeque<TransportEvent>,
}

#[derive(Default)]
struct Counts {
    offers: u64,
    connects: u64,
    begins: u64,
    polls: u64,
    ends: u64,
    letters: u64,
}

/// A hold that has begun.
enum Held {
    Times(u32),
    Until(Instant),
}

impl Held {
    /// The driver asks: is it over?
    fn is_over(&mut self, now: Instant) -> bool {
        match self {
            Self::Times(0) => true,
            Self::Times(left) => {
                *left -= 1;
                false
            }
            Self::Until(at) => now >= *at,
        }
    }
}

/// An operation that ended and is called busy.
struct Ending {
    held: Option<Held>,
    /// The wrapped transport said quiet, and must not be asked again.
    quiet: bool,
}

impl Faulty {
    pub(super) fn new(inner: Box<dyn Transport>, plan: Plan, clock: Clock, control: Control) -> Self {
        control.set_waker(inner.waker());
        Self {
            inner,
            plan,
            clock,
            control,
            counts: Counts::default(),
            keys: HashMap::new(),
            complete: HashSet::new(),
            stalled: HashMap::new(),
            offers: HashMap::new(),
            transfers: HashMap::new(),
            late: Vec::new(),
            overtaken: VecDeque::new(),
        }
    }

    /// Counts a call, and blocks and fails it as planned.
    fn call(&mut self, call: Call) -> Result<(), TransportError> {
        let count = match call {
            Call::Offer => &mut self.counts.offers,
            Call::Connect => &mut self.counts.connects,
            Call::Begin => &mut self.counts.begins,
            Call::Poll => &mut self.counts.polls,
        };
        *count += 1;
        if self.control.is_healed() {
            return Ok(());
        }
        let (time, error) = self.plan.call(call, *count);
        if let Some(time) = time {
            self.clock.sleep(time);
        }
        if let Some(error) = error {
            return Err(error);
        }
        if call != Call::Offer && self.control.has_vanished() {
            return Err(TransportError::PeerLost("it vanished, as planned".to_owned()));
        }
        Ok(())
    }

    fn begin_hold(&self, hold: Hold) -> Held {
        match hold {
            Hold::Times(times) => Held::Times(times),
            Hold::For(time) => Held::Until(self.clock.now() + time),
        }
    }

    /// An operation ends. `may_hold` says that the driver is prepared for it to be busy.
    fn end(&mut self, quiet: Quiescence, may_hold: bool) -> Ending {
        self.counts.ends += 1;
        let hold = if self.control.is_healed() { None } else { self.plan.busy_of(self.counts.ends) };
        let held = hold.filter(|_| may_hold).map(|hold| self.begin_hold(hold));
        Ending { held, quiet: quiet == Quiescence::Quiet }
    }

    /// Whether an ended operation is quiet, now that the wrapped transport has said its word.
    fn look(&self, ending: &mut Ending) -> Quiescence {
        let over = self.control.is_healed()
            || ending.held.as_mut().is_none_or(|held| held.is_over(self.clock.now()));
        if ending.quiet && over { Quiescence::Quiet } else { Quiescence::Busy }
    }

    /// Says whether an ended offer is quiet, and keeps it if not.
    fn keep_offer(&mut self, id: OfferId, mut ending: Ending) -> Quiescence {
        let quiet = self.look(&mut ending);
        match quiet {
            Quiescence::Quiet => drop(self.keys.remove(&id)),
            Quiescence::Busy => drop(self.offers.insert(id, ending)),
        }
        quiet
    }

    /// One notification goes its way.
    fn deliver(&mut self, letter: TransportEvent, events: &mut Vec<TransportEvent>) {
        self.counts.letters += 1;
        let posts = self.plan.post_of(self.counts.letters);
        let (mut copies, mut time, mut overtaken) = (1, None, false);
        for post in posts {
            match post {
                Post::Lose => copies = 0,
                Post::Duplicate => copies *= 2,
                Post::Delay(by) => time = Some(by),
                Post::Reorder => overtaken = true,
            }
        }
        for _ in 0..copies {
            match time {
                Some(time) => self.late.push((self.clock.now() + time, letter.clone())),
                None if overtaken => self.overtaken.push_back(letter.clone()),
                None => events.push(letter.clone()),
            }
        }
        if !overtaken {
            events.extend(self.overtaken.drain(..));
        }
        if self.plan.stray() {
            let body = format!("nobody's {}", self.counts.letters).into_bytes();
            events.push(TransportEvent::Notification { from: "nobody".to_owned(), body });
        }
    }

    /// Something is held up, and only looking again will tell when that ends.
    fn is_holding(&self) -> bool {
        !self.stalled.is_empty()
            || !self.offers.is_empty()
            || !self.transfers.is_empty()
            || !self.late.is_empty()
    }
}

// SAFETY: all that it says of memory is what the wrapped transport said before. `Complete` is passed on. `Quiet`
// is said of an operation only after the wrapped transport said so (`Ending::quiet`). Notifications are those
// of the wrapped transport, or such as match no open offer (`progress`). The wrapped transport gets the regions
// from the calls' own callers, who keep them until this transport says quiet, which is never earlier.
unsafe impl Transport for Faulty {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn backend(&self) -> &str {
        self.inner.backend()
    }

    fn check_device(&self, device: Device) -> Result<(), TransportError> {
        self.inner.check_device(device)
    }

    unsafe fn register(&mut self, id: RegistrationId, region: Region) -> Result<(), TransportError> {
        // SAFETY: the caller's promise, passed on.
        unsafe { self.inner.register(id, region) }
    }

    fn deregister(&mut self, id: RegistrationId) -> Quiescence {
        self.inner.deregister(id)
    }

    unsafe fn offer(&mut self, offer: &Offer<'_>) -> Result<(OfferId, Vec<u8>), TransportError> {
        self.call(Call::Offer)?;
        // SAFETY: the caller's promise, passed on; see above.
        let (id, blob) = unsafe { self.inner.offer(offer) }?;
        self.keys.insert(id, offer.key.as_bytes().to_vec());
        Ok((id, blob))
    }

    fn end_offer(&mut self, id: OfferId, completed: bool) -> Quiescence {
        let ending = match self.offers.remove(&id) {
            // The wrapped transport has forgotten it.
            Some(ending) if ending.quiet => Ending { held: ending.held.filter(|_| !completed), ..ending },
            Some(ending) => {
                let quiet = self.inner.end_offer(id, completed) == Quiescence::Quiet;
                Ending { held: ending.held.filter(|_| !completed), quiet }
            }
            None => {
                let quiet = self.inner.end_offer(id, completed);
                self.end(quiet, !completed)
            }
        };
        self.keep_offer(id, ending)
    }

    fn offer_is_quiet(&mut self, id: OfferId) -> Quiescence {
        let Some(mut ending) = self.offers.remove(&id) else { return self.inner.offer_is_quiet(id) };
        ending.quiet = ending.quiet || self.inner.offer_is_quiet(id) == Quiescence::Quiet;
        self.keep_offer(id, ending)
    }

    fn connect(&mut self, blob: &[u8]) -> Result<(PeerId, String), TransportError> {
        self.call(Call::Connect)?;
        self.inner.connect(blob)
    }

    fn notify(&mut self, peer: PeerId, message: &[u8]) -> Result<(), TransportError> {
        self.inner.notify(peer, message)
    }

    fn describe(&mut self, regions: &[Region]) -> Result<Vec<u8>, TransportError> {
        self.inner.describe(regions)
    }

    fn forget(&mut self, peer: PeerId) {
        self.inner.forget(peer);
    }

    unsafe fn begin(&mut self, transfer: &Transfer<'_>) -> Result<TransferId, TransportError> {
        self.call(Call::Begin)?;
        // SAFETY: the caller's promise, passed on; see above.
        let id = unsafe { self.inner.begin(transfer) }?;
        if !self.control.is_healed()
            && let Some(hold) = self.plan.stall_of(self.counts.begins)
        {
            self.stalled.insert(id, self.begin_hold(hold));
        }
        Ok(id)
    }

    fn poll(&mut self, id: TransferId) -> Result<TransferState, TransportError> {
        self.call(Call::Poll)?;
        let now = self.clock.now();
        if let Some(held) = self.stalled.get_mut(&id)
            && !held.is_over(now)
            && !self.control.is_healed()
        {
            return Ok(TransferState::Pending { advanced: false });
        }
        self.stalled.remove(&id);
        let state = self.inner.poll(id)?;
        if state == TransferState::Complete {
            self.complete.insert(id);
        }
        Ok(state)
    }

    fn release(&mut self, id: TransferId) -> Quiescence {
        self.stalled.remove(&id);
        let complete = self.complete.remove(&id);
        let mut ending = match self.transfers.remove(&id) {
            None => {
                let quiet = self.inner.release(id);
                self.end(quiet, !complete)
            }
            Some(mut ending) => {
                ending.quiet = ending.quiet || self.inner.release(id) == Quiescence::Quiet;
                ending
            }
        };
        let quiet = self.look(&mut ending);
        if quiet == Quiescence::Busy {
            self.transfers.insert(id, ending);
        }
        quiet
    }

    fn has_transfers_in_flight(&self) -> bool {
        !self.transfers.is_empty() || self.inner.has_transfers_in_flight()
    }

    fn linger(&self) -> Duration {
        self.inner.linger()
    }

    fn progress(&mut self, events: &mut Vec<TransportEvent>) -> bool {
        let before = events.len();
        let mut busy = self.inner.progress(events);
        let (now, healed) = (self.clock.now(), self.control.is_healed());
        for event in events.split_off(before) {
            match event {
                letter @ TransportEvent::Notification { .. } if healed => events.push(letter),
                TransportEvent::Notification { .. } if self.control.has_vanished() => {}
                letter @ TransportEvent::Notification { .. } => self.deliver(letter, events),
                other => events.push(other),
            }
        }
        let due = self.late.extract_if(.., |(at, _)| healed || *at <= now).map(|(_, letter)| letter);
        events.extend(due);
        if healed {
            events.extend(self.overtaken.drain(..));
        }
        for (from, body) in self.control.take_strays() {
            if !self.keys.values().any(|key| *key == body) {
                events.push(TransportEvent::Notification { from, body });
            }
        }
        busy |= events.len() > before;
        busy
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        let longest = if self.is_holding() { Some(LOOK) } else { None };
        self.inner.wait([timeout, longest].into_iter().flatten().min());
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        self.inner.waker()
    }

    fn is_event_driven(&self) -> bool {
        self.inner.is_event_driven()
    }
}
