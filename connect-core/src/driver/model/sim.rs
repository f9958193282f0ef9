//! The simulated transport: [`Sim`], and what it knows of each operation: [`Net`].
//!
//! It moves nothing. It decides by chance how each offer and transfer goes, notes what it told the driver, and
//! holds the driver to the transport's contract.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::memory::Ledger;
use super::probe::Notes;
use crate::Device;
use crate::clock::Clock;
use crate::driver::{Deadlines, OpInfo};
use crate::transport::{
    Offer, OfferId, PeerId, Quiescence, Transfer, TransferId, TransferState, Transport, TransportError,
    TransportEvent,
};

struct SimOffer {
    addr: u64,
    notified: bool,
    fails_at: Option<Instant>,
    ended: bool,
    completed: bool,
    /// From its end until it is quiet; `None` stays busy until it is notified or the world is healed.
    busy_for: Option<Duration>,
    /// Busy though it completed, which no transport should say.
    contradicts: bool,
    quiet_at: Option<Instant>,
}

struct SimTransfer {
    addr: u64,
    polls_left: u64,
    fails: bool,
    over: bool,
    released: bool,
    busy_for: Option<Duration>,
    contradicts: bool,
    quiet_at: Option<Instant>,
}

/// A notification on its way.
struct Letter {
    at: Instant,
    body: Vec<u8>,
    offer: Option<u64>,
}

/// The peers and the wire between, as far as the model needs them.
pub(super) struct Net {
    pub(super) random: fastrand::Rng,
    pub(super) clock: Clock,
    pub(super) ledger: Ledger,
    pub(super) deadlines: Arc<Deadlines>,
    pub(super) notes: Notes,
    /// Operations that the watchdog answered while the driver was stuck.
    pub(super) late_answers: u64,
    /// While one of these has not ended, the driver must not sleep beyond its moment.
    pub(super) wake_by: Vec<(Instant, Arc<OpInfo>)>,
    /// Nothing goes wrong any more.
    pub(super) healed: bool,
    event_driven: bool,
    offers: BTreeMap<u64, SimOffer>,
    transfers: BTreeMap<u64, SimTransfer>,
    letters: Vec<Letter>,
    peers: BTreeSet<u64>,
    next: u64,
}

/// The driver's transport.
pub(super) struct Sim(pub(super) Rc<RefCell<Net>>);

impl Net {
    pub(super) fn new(seed: u64, clock: Clock, ledger: Ledger, deadlines: Arc<Deadlines>) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        Self {
            event_driven: random.u64(..2) == 0,
            random,
            clock,
            ledger,
            deadlines,
            notes: Notes::default(),
            late_answers: 0,
            wake_by: Vec::new(),
            healed: false,
            offers: BTreeMap::new(),
            transfers: BTreeMap::new(),
            letters: Vec::new(),
            peers: BTreeSet::new(),
            next: 0,
        }
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn millis(&mut self, below: u64) -> Duration {
        Duration::from_micros(self.random.u64(..below * 1000))
    }

    fn cause(&mut self) -> TransportError {
        let n = self.id();
        match self.random.u64(..3) {
            0 => TransportError::PeerLost(format!("cause {n}")),
            1 => TransportError::Refused(format!("cause {n}")),
            _ => TransportError::Engine { call: "sim", status: format!("cause {n}") },
        }
    }

    fn chance(&mut self, n: u64) -> bool {
        self.random.u64(..n) == 0 && !self.healed
    }

    fn violation(&self, what: &str, id: u64) {
        self.ledger.violation(format!("the driver broke the contract: {what} ({id})"));
    }

    /// How long something stays busy: often not at all, sometimes until the world is healed.
    fn busy_for(&mut self) -> Option<Duration> {
        match self.random.u64(..8) {
            0..4 => Some(Duration::ZERO),
            4 | 5 => Some(self.millis(10)),
            6 => Some(self.millis(600)),
            _ => None,
        }
    }

    /// From now on everything becomes quiet when it is asked about.
    pub(super) fn heal(&mut self) {
        self.healed = true;
        let now = self.clock.now();
        let offers = self.offers.values_mut().map(|offer| (&mut offer.busy_for, &mut offer.quiet_at));
        let transfers =
            self.transfers.values_mut().map(|transfer| (&mut transfer.busy_for, &mut transfer.quiet_at));
        for (busy_for, quiet_at) in offers.chain(transfers) {
            *busy_for = Some(Duration::ZERO);
            *quiet_at = quiet_at.map(|_| now);
        }
    }

    /// Something that looks like a notification and is none, or comes again.
    pub(super) fn send_stray(&mut self, keys: &[String]) {
        let key = match keys.len() as u64 {
            0 => "stray".to_owned(),
            n => keys[self.random.u64(..n) as usize].clone(),
        };
        let body = match self.random.u64(..4) {
            0 => key.as_bytes()[..key.len() - 1].to_vec(),
            1 => format!("{key} ").into_bytes(),
            2 => vec![0xFF; 3],
            _ => key.to_uppercase().into_bytes().into_iter().chain([b'!']).collect(),
        };
        let at = self.clock.now() + self.millis(3);
        self.letters.push(Letter { at, body, offer: None });
    }
}

impl Sim {
    /// A call that does not return for a while: the watchdog looks meanwhile.
    fn get_stuck(&self) {
        let (clock, deadlines, time) = {
            let mut net = self.0.borrow_mut();
            let time = net.millis(200);
            (net.clock.clone(), Arc::clone(&net.deadlines), time)
        };
        clock.advance(time);
        let answered = deadlines.look(clock.now());
        self.0.borrow_mut().late_answers += answered as u64;
    }
}

// SAFETY: it touches no memory. What it says about memory is what the ledger has.
unsafe impl Transport for Sim {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn check_device(&self, _: Device) -> Result<(), TransportError> {
        let mut net = self.0.borrow_mut();
        if net.chance(100) { Err(net.cause()) } else { Ok(()) }
    }

    unsafe fn offer(&mut self, offer: &Offer<'_>) -> Result<(OfferId, Vec<u8>), TransportError> {
        let net = &mut *self.0.borrow_mut();
        let addr = offer.regions[0].addr();
        if net.chance(30) {
            return Err(net.cause());
        }
        net.ledger.may_touch(offer.regions);
        let (id, now) = (net.id(), net.clock.now());
        // Peers come at once, later, or never; some say so twice, in any order.
        let copies = match net.random.u64(..16) {
            0..4 => 0,
            4 => 2,
            5 => 3,
            _ => 1,
        };
        for _ in 0..copies {
            let late = if net.random.u64(..4) == 0 { 800 } else { 8 };
            let at = now + net.millis(late);
            net.letters.push(Letter { at, body: offer.key.as_bytes().to_vec(), offer: Some(id) });
        }
        let fails_at = net.chance(12).then(|| now + net.millis(30));
        let busy_for = net.busy_for();
        let contradicts = net.chance(40);
        net.offers.insert(
            id,
            SimOffer {
                addr,
                notified: false,
                fails_at,
                ended: false,
                completed: false,
                busy_for,
                contradicts,
                quiet_at: None,
            },
        );
        Ok((OfferId(id), b"blob".to_vec()))
    }

    fn end_offer(&mut self, OfferId(id): OfferId, completed: bool) -> Quiescence {
        let net = &mut *self.0.borrow_mut();
        let now = net.clock.now();
        let Some(offer) = net.offers.get_mut(&id) else {
            net.violation("it ended an offer that was quiet", id);
            return Quiescence::Quiet;
        };
        let (again, unheard) = (offer.ended && !completed, completed && !offer.notified);
        let twice = completed && offer.completed;
        offer.ended = true;
        offer.completed |= completed;
        let quiet_at = offer.busy_for.map(|busy_for| now + busy_for);
        let quiet = match completed {
            true if offer.contradicts => {
                net.notes.told.entry(offer.addr).or_default().contradicted = true;
                offer.quiet_at = quiet_at;
                false
            }
            true => true,
            false => {
                offer.quiet_at = quiet_at;
                quiet_at == Some(now)
            }
        };
        if again {
            net.violation("it ended an offer twice", id);
        }
        if unheard {
            net.violation("P7: it took an offer for completed that nobody completed", id);
        }
        if twice {
            net.violation("P7: it took an offer for completed twice", id);
        }
        if quiet {
            let addr = net.offers[&id].addr;
            net.offers.remove(&id);
            net.ledger.quiet(addr);
            return Quiescence::Quiet;
        }
        Quiescence::Busy
    }

    fn offer_is_quiet(&mut self, OfferId(id): OfferId) -> Quiescence {
        let net = &mut *self.0.borrow_mut();
        let now = net.clock.now();
        let Some(offer) = net.offers.get(&id) else {
            net.violation("it asked about an offer that was quiet", id);
            return Quiescence::Quiet;
        };
        if !offer.ended {
            net.violation("it asked about an offer that it had not ended", id);
        }
        if offer.quiet_at.is_none_or(|at| now < at) && !net.healed {
            return Quiescence::Busy;
        }
        let addr = offer.addr;
        net.offers.remove(&id);
        net.ledger.quiet(addr);
        Quiescence::Quiet
    }

    fn connect(&mut self, _: &[u8]) -> Result<(PeerId, String), TransportError> {
        let net = &mut *self.0.borrow_mut();
        if net.chance(10) {
            return Err(net.cause());
        }
        let id = net.id();
        net.peers.insert(id);
        Ok((PeerId(id), format!("peer {id}")))
    }

    fn forget(&mut self, PeerId(id): PeerId) {
        self.0.borrow_mut().peers.remove(&id);
    }

    unsafe fn begin(&mut self, transfer: &Transfer<'_>) -> Result<TransferId, TransportError> {
        let net = &mut *self.0.borrow_mut();
        if !net.peers.contains(&transfer.peer.0) {
            net.violation("it named a peer that it had forgotten", transfer.peer.0);
        }
        let addr = transfer.local[0].addr();
        if net.chance(30) {
            return Err(net.cause());
        }
        net.ledger.may_touch(transfer.local);
        let id = net.id();
        let polls_left = match net.random.u64(..8) {
            0 => 0,
            // Longer than any deadline but `never`.
            1 => u64::MAX,
            _ => net.random.u64(..40),
        };
        let sim = SimTransfer {
            addr,
            polls_left,
            fails: net.chance(6),
            over: false,
            released: false,
            busy_for: net.busy_for(),
            contradicts: net.chance(40),
            quiet_at: None,
        };
        net.transfers.insert(id, sim);
        Ok(TransferId(id))
    }

    fn poll(&mut self, TransferId(id): TransferId) -> Result<TransferState, TransportError> {
        if self.0.borrow_mut().chance(200) {
            self.get_stuck();
        }
        let net = &mut *self.0.borrow_mut();
        let advanced = net.random.u64(..2) == 0;
        let Some(transfer) = net.transfers.get_mut(&id) else {
            net.violation("it polled a transfer that was quiet", id);
            return Ok(TransferState::Complete);
        };
        let over = std::mem::replace(&mut transfer.over, transfer.polls_left == 0);
        let (released, addr) = (transfer.released, transfer.addr);
        if over || released {
            net.violation("it polled a transfer that was over", id);
            return Ok(TransferState::Complete);
        }
        if transfer.polls_left > 0 {
            transfer.polls_left -= 1;
            return Ok(TransferState::Pending { advanced });
        }
        if transfer.fails {
            return Err(net.cause());
        }
        let contradicts = transfer.contradicts;
        net.notes.told.entry(addr).or_default().contradicted = contradicts;
        Ok(TransferState::Complete)
    }

    fn release(&mut self, TransferId(id): TransferId) -> Quiescence {
        let net = &mut *self.0.borrow_mut();
        let now = net.clock.now();
        let Some(transfer) = net.transfers.get_mut(&id) else {
            net.violation("it released a transfer that was quiet", id);
            return Quiescence::Quiet;
        };
        if !std::mem::replace(&mut transfer.released, true) {
            let completed = transfer.over && !transfer.fails && !transfer.contradicts;
            transfer.quiet_at = if completed { Some(now) } else { transfer.busy_for.map(|time| now + time) };
            if transfer.over && transfer.contradicts {
                transfer.quiet_at = transfer.busy_for.map(|time| now + time + Duration::from_nanos(1));
            }
        }
        if transfer.quiet_at.is_none_or(|at| now < at) && !net.healed {
            return Quiescence::Busy;
        }
        let addr = transfer.addr;
        net.transfers.remove(&id);
        net.ledger.quiet(addr);
        Quiescence::Quiet
    }

    fn has_transfers_in_flight(&self) -> bool {
        !self.0.borrow().transfers.is_empty()
    }

    fn progress(&mut self, events: &mut Vec<TransportEvent>) -> bool {
        let net = &mut *self.0.borrow_mut();
        let (now, before) = (net.clock.now(), events.len());
        let due = net.letters.extract_if(.., |letter| letter.at <= now);
        for letter in due {
            if let Some(offer) = letter.offer.and_then(|id| net.offers.get_mut(&id)) {
                offer.notified = true;
            }
            events.push(TransportEvent::Notification { from: "peer".to_owned(), body: letter.body });
        }
        let failing: Vec<u64> = net
            .offers
            .iter_mut()
            .filter(|(_, offer)| offer.fails_at.is_some_and(|at| at <= now) && !offer.notified)
            .map(|(id, offer)| {
                offer.fails_at = None;
                *id
            })
            .collect();
        for id in failing {
            let error = net.cause();
            events.push(TransportEvent::OfferFailed { id: OfferId(id), error });
        }
        events.len() > before
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        let net = &mut *self.0.borrow_mut();
        let now = net.clock.now();
        let (overdue, deadline) = net.deadlines.overdue(now);
        let waiting = net.wake_by.iter().filter(|(_, info)| !info.slot.is_settled()).map(|(at, _)| *at);
        let wake_by = waiting.chain(deadline).min();
        let until = timeout.map(|timeout| now + timeout);
        if let Some(wake_by) = wake_by
            && until.is_none_or(|until| until > wake_by.max(now))
        {
            net.ledger.violation(format!(
                "P2: the driver would sleep {timeout:?}, which is {:?} too long",
                until.map(|until| until - wake_by)
            ));
        }
        if !overdue.is_empty() {
            net.ledger.violation(format!("P2: the driver sleeps while {overdue:?} are overdue"));
        }
        if timeout.is_none() && !net.event_driven {
            net.ledger.violation("the driver sleeps for ever on a transport that can't wake it".to_owned());
        }
        let next = net.letters.iter().map(|letter| letter.at);
        let next = next.chain(net.offers.values().filter_map(|offer| offer.fails_at)).min();
        let woken = if net.event_driven { next } else { None };
        if let Some(until) = [until, woken].into_iter().flatten().min() {
            net.clock.advance(until.saturating_duration_since(now));
        }
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        Arc::new(|| {})
    }

    fn is_event_driven(&self) -> bool {
        self.0.borrow().event_driven
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        let net = &mut *self.0.borrow_mut();
        if !net.transfers.is_empty() {
            net.ledger.violation("the transport was dropped with transfers in flight".to_owned());
        }
        // With the transport go its offers.
        for offer in std::mem::take(&mut net.offers).into_values() {
            net.ledger.quiet(offer.addr);
        }
    }
}
