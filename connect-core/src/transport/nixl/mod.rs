//! The scale-out transport, over [NIXL](https://github.com/ai-dynamo/nixl): RDMA, shared memory, TCP, GPU
//! memory.
//!
//! It speaks to Python workers that use `dynamo.nixl_connect`, and to connectors like this one. The library
//! is found at run time ([`candidates`] lists where), so a program built with this feature starts without
//! it.
//!
//! # What NIXL can't promise
//! * The side that offers memory never learns who reads it, only that somebody sent the notification. An
//!   offer that ends without it is not known to be quiet; its memory stays parked until this connector's
//!   agent is replaced, which happens as soon as nothing else needs the old one.
//! * Over shared memory the kernel copies for a peer, whatever has become of the agent that offered, until the
//!   peer's UCX hears of its end. So memory is kept for a second longer, and this side looks before it posts. A
//!   peer that is stopped within a copy, and continued after that second, can still touch it.
//! * Over TCP a READ is answered by UCX in the process that offers, and the UCX of NIXL 1.5.1 ends that process
//!   at times when the reader dies meanwhile. Where readers may die, let the other side WRITE.
//! * A posted transfer can't be called back. Cancelling waits for it, and parks its memory meanwhile.
//! * A document can be used again while its agent lives, also after its operation completed;
//!   [`NixlConfig::agent_lifetime`] bounds that time.
//! * Its errors do not tell a lost peer from other failures of a posted request.

mod agent;
mod blob;
mod config;
mod counted;
mod kept;
mod library;
mod moving;
mod reach;
mod signs;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use agent::{Generation, memory_type};
use blob::Blob;
pub use config::{NixlConfig, NixlProgress};
use kept::Kept;
pub use library::{candidates, load, plugins};
use moving::{Moving, Phase, Pieces, failed_with};
use reach::Reach;
use signs::{Sign, Takers};

use super::{
    Offer, OfferId, PeerId, Quiescence, RegistrationId, Transfer, TransferId, TransferState, Transport,
    TransportContext, TransportError, TransportEvent,
};
use crate::{Device, DeviceKind, Region};

/// How long a generation with memory that is not quiet stays in use for new operations, so that a burst of
/// expiring offers costs one new agent (40 ms) and not one each.
const RECYCLE_AFTER: Duration = Duration::from_millis(250);

/// How long an offer's memory is kept after its agent was destroyed. Over shared memory the kernel copies for a
/// peer that posts, whoever lives at the address by then: what ends its access is that its UCX has heard of the
/// agent's end. A connector looks before it posts ([`NixlTransport::look`]), others at least every 20 ms or in a
/// thread that spins; the rest is for schedulers. A peer that is stopped between the look and the post, or in
/// the middle of a copy, and continued later than this, is out of reach of any measure on this side.
const LINGER: Duration = Duration::from_secs(1);

/// The NIXL transport. Made by [`NixlConfig::factory`] on the driver thread.
pub struct NixlTransport {
    // Dropped first: requests point into agents.
    transfers: HashMap<TransferId, Moving>,
    generations: HashMap<u64, Generation>,
    /// The generation that new operations go to; created when first needed after the last was retired.
    current: Option<u64>,
    offers: HashMap<OfferId, OpenOffer>,
    /// Memory that is registered beyond operations.
    kept: Kept,
    /// What of that was given up after peers were told of it, with the generations they may reach it by.
    leaving: HashMap<RegistrationId, Vec<u64>>,
    takers: Takers,
    /// When to look for takers that fell silent.
    next_look: Instant,
    /// Offers that ended without their notification, until their generation is gone.
    unquiet: HashMap<OfferId, u64>,
    /// Generations that were destroyed less than [`LINGER`] ago.
    destroyed: HashMap<u64, Instant>,
    /// Notifications that came with a look before a post.
    early: Vec<TransportEvent>,
    peers: HashMap<PeerId, Rc<Peer>>,
    config: NixlConfig,
    context: TransportContext,
    next_id: u64,
    driver: Thread,
}

struct Peer {
    name: String,
    blob: Vec<u8>,
    reach: Reach,
}

struct OpenOffer {
    generation: u64,
    /// What was registered for it.
    registered: Vec<Region>,
    key: String,
}

impl NixlTransport {
    fn new(config: NixlConfig, context: &TransportContext) -> Result<Self, TransportError> {
        library::load(config.library.as_deref())?;
        let mut transport = Self {
            transfers: HashMap::new(),
            generations: HashMap::new(),
            current: None,
            offers: HashMap::new(),
            kept: Kept::default(),
            leaving: HashMap::new(),
            takers: Takers::default(),
            next_look: Instant::now(),
            unquiet: HashMap::new(),
            destroyed: HashMap::new(),
            early: Vec::new(),
            peers: HashMap::new(),
            config,
            context: context.clone(),
            next_id: 0,
            driver: thread::current(),
        };
        transport.current_generation()?;
        Ok(transport)
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// The generation for a new operation, made now if there is none.
    fn current_generation(&mut self) -> Result<u64, TransportError> {
        if let Some(current) = self.current {
            return Ok(current);
        }
        let id = self.id();
        let TransportContext { worker_id, incarnation, counters, .. } = &self.context;
        let name = signs::name(worker_id, incarnation, id);
        let generation = Generation::new(name, &self.config, Arc::clone(counters))?;
        self.generations.insert(id, generation);
        self.current = Some(id);
        Ok(id)
    }

    /// Retires the current generation when some of its memory is not quiet, and destroys those that nothing
    /// needs any more.
    fn recycle(&mut self) {
        let lifetime = self.config.agent_lifetime;
        if let Some(current) = self.current
            && let Some(generation) = self.generations.get_mut(&current)
        {
            lifetime.inspect(|lifetime| generation.age(*lifetime));
        }
        if let Some(current) = self.current
            && let Some(generation) = self.generations.get(&current)
            && let Some(since) = generation.dirty_since
            && (generation.live == 0 || since.elapsed() >= RECYCLE_AFTER)
        {
            tracing::debug!(agent = generation.name(), live = generation.live, "retiring a NIXL agent");
            self.current = None;
        }
        let current = self.current;
        let generations = &mut self.generations;
        let is_over = |id: &u64, generation: &Generation| Some(*id) != current && generation.live == 0;
        if generations.iter().any(|(id, generation)| is_over(id, generation)) {
            // Requests that failed in part go right before their agent.
            self.transfers.retain(|_, moving| {
                let generation = generations.get(&moving.generation);
                generation.is_some_and(|generation| !is_over(&moving.generation, generation))
            });
            let over = generations.extract_if(|id, generation| is_over(id, generation));
            let over: Vec<u64> = over.map(|(id, generation)| (id, drop(generation)).0).collect();
            let now = Instant::now();
            self.destroyed.extend(over.into_iter().map(|id| (id, now)));
        }
        self.destroyed.retain(|_, since| since.elapsed() < LINGER);
    }

    /// Lets UCX hear of peers that are gone, before it is asked to touch their memory. What arrives is kept.
    fn look(&mut self, generation: u64) {
        if let Some(generation) = self.generations.get_mut(&generation) {
            let taken = generation.notifications();
            self.early.extend(events_of(taken, &mut self.takers, &self.context));
        }
    }

    fn mark_dirty(&mut self, generation: u64) {
        if let Some(generation) = self.generations.get_mut(&generation) {
            generation.dirty_since.get_or_insert_with(Instant::now);
        }
    }

    /// Posts the next slice, if the last one is done.
    fn advance(&mut self, id: TransferId) -> Result<TransferState, TransportError> {
        let Some(moving) = self.transfers.get_mut(&id) else { return Err(unknown_transfer()) };
        let Some(generation) = self.generations.get(&moving.generation) else {
            return Err(unknown_transfer());
        };
        let mut step = moving.step(generation);
        moving.sign_of_life(generation);
        if matches!(&step, Err(error) if agent::is_unmade_request(error)) {
            step = self.step_elsewhere(id);
        }
        if let Err(error) = &step
            && error.is_retryable()
            && let Some(moving) = self.transfers.get(&id)
        {
            let peer = Rc::clone(&moving.peer);
            self.unload_unless_used(&peer.name);
        }
        step
    }

    /// Tries again after a request could not be made.
    ///
    /// NIXL finds a range only if the last region that begins at or before it also holds its end. A region that
    /// overlaps another hides parts of it: one that the peer offered earlier (allocators hand out the same
    /// addresses again, and NIXL forgets nothing of a peer), or another one of ours. In an agent that knows
    /// this transfer's regions alone nothing is hidden: in this one once the peer is loaded afresh, if that
    /// disturbs nobody, else in a new one.
    fn step_elsewhere(&mut self, id: TransferId) -> Result<TransferState, TransportError> {
        let moving = self.transfers.get(&id).ok_or_else(unknown_transfer)?;
        let (peer, old) = (Rc::clone(&moving.peer), moving.generation);
        let is_posted = |other: &Moving| {
            other.state == Phase::InProgress && other.posted.is_some() && other.peer.name == peer.name
        };
        if !self.transfers.values().any(is_posted) {
            let generation = self.generations.get_mut(&old).ok_or_else(unknown_transfer)?;
            generation.unload(&peer.name);
            generation.load(&peer.name, &peer.blob, || false)?;
            let step = self.transfers.get_mut(&id).ok_or_else(unknown_transfer)?.step(generation);
            if !matches!(&step, Err(error) if agent::is_unmade_request(error)) {
                return step;
            }
        }
        tracing::debug!(peer = peer.name, "regions overlap; going on with a new NIXL agent");
        // Not the current one: what hides this transfer's regions may be registered there too.
        self.current = None;
        let new = self.current_generation()?;
        let generation = self.generations.get_mut(&new).ok_or_else(unknown_transfer)?;
        generation.load(&peer.name, &peer.blob, || false)?;
        let moving = self.transfers.get_mut(&id).ok_or_else(unknown_transfer)?;
        let registered = generation.register(&self.kept, &moving.local)?;
        generation.live += 1;
        moving.generation = new;
        let before = std::mem::replace(&mut moving.registered, registered);
        if let Some(generation) = self.generations.get_mut(&old) {
            generation.deregister(&before);
            generation.live -= 1;
        }
        let generation = self.generations.get(&new).ok_or_else(unknown_transfer)?;
        moving.step(generation)
    }

    /// Forgets what is loaded of a peer, so that its successor's blob can be loaded.
    fn unload_unless_used(&mut self, name: &str) {
        if !is_in_use(&self.transfers, name) {
            for generation in self.generations.values_mut() {
                generation.unload(name);
            }
        }
    }
}

// SAFETY: `Complete` is NIXL's success of every slice; `Quiet` follows a terminal request, a notification, or
// the end of the agent (the module's docs say what NIXL can't promise).
unsafe impl Transport for NixlTransport {
    fn name(&self) -> &'static str {
        "nixl"
    }

    fn backend(&self) -> &str {
        &self.config.backend
    }

    fn check_device(&self, device: Device) -> Result<(), TransportError> {
        match device.kind() {
            DeviceKind::Host | DeviceKind::Cuda | DeviceKind::Xpu => Ok(()),
        }
    }

    unsafe fn register(&mut self, id: RegistrationId, region: Region) -> Result<(), TransportError> {
        let current = self.current_generation()?;
        if !self.kept.add(id, region) {
            // Operations over it register what they need.
            return Ok(());
        }
        let generation = self.generations.get_mut(&current).ok_or_else(unknown_transfer)?;
        generation.keep(region).inspect_err(|_| {
            generation.give_up(&region);
            self.kept.remove(id);
        })
    }

    fn deregister(&mut self, id: RegistrationId) -> Quiescence {
        if let Some(region) = self.kept.remove(id) {
            let mut described = Vec::new();
            for (number, generation) in &mut self.generations {
                if generation.give_up(&region) {
                    generation.dirty_since.get_or_insert_with(Instant::now);
                    described.push(*number);
                }
            }
            self.leaving.insert(id, described);
        }
        let is_alive =
            |number: &u64| self.generations.contains_key(number) || self.destroyed.contains_key(number);
        if self.leaving.get(&id).is_some_and(|numbers| numbers.iter().any(is_alive)) {
            return Quiescence::Busy;
        }
        self.leaving.remove(&id);
        Quiescence::Quiet
    }

    fn describe(&mut self, regions: &[Region]) -> Result<Vec<u8>, TransportError> {
        if let Some(region) = regions.iter().find(|region| self.kept.around(region).is_none()) {
            let status = format!("{region:?} is not registered, or overlaps memory that is");
            return Err(TransportError::Engine { call: "describe", status });
        }
        let current = self.current_generation()?;
        let generation = self.generations.get_mut(&current).ok_or_else(unknown_transfer)?;
        generation.register(&self.kept, regions)?;
        generation.describe(&self.kept, regions)
    }

    unsafe fn offer(&mut self, offer: &Offer<'_>) -> Result<(OfferId, Vec<u8>), TransportError> {
        let current = self.current_generation()?;
        let id = OfferId(self.id());
        let generation = self.generations.get_mut(&current).ok_or_else(unknown_transfer)?;
        let (regions, key) = (self.kept.joined(offer.regions), offer.key.to_owned());
        let registered = generation.register(&self.kept, &regions)?;
        let blob =
            generation.describe(&self.kept, &regions).inspect_err(|_| generation.deregister(&registered))?;
        generation.live += 1;
        self.takers.add(&key, id);
        self.offers.insert(id, OpenOffer { generation: current, registered, key });
        Ok((id, blob))
    }

    fn end_offer(&mut self, id: OfferId, completed: bool) -> Quiescence {
        let Some(offer) = self.offers.remove(&id) else {
            // Ended before. A late notification says that the peer is done after all.
            if completed {
                self.unquiet.remove(&id);
            }
            return self.offer_is_quiet(id);
        };
        if let Some(generation) = self.generations.get_mut(&offer.generation) {
            generation.deregister(&offer.registered);
            generation.live -= 1;
        }
        let let_go = self.takers.remove(&offer.key, id);
        if completed || let_go {
            return Quiescence::Quiet;
        }
        self.mark_dirty(offer.generation);
        self.unquiet.insert(id, offer.generation);
        Quiescence::Busy
    }

    fn offer_is_quiet(&mut self, id: OfferId) -> Quiescence {
        match self.unquiet.get(&id) {
            Some(generation)
                if self.generations.contains_key(generation) || self.destroyed.contains_key(generation) =>
            {
                Quiescence::Busy
            }
            _ => {
                self.unquiet.remove(&id);
                Quiescence::Quiet
            }
        }
    }

    fn connect(&mut self, blob: &[u8]) -> Result<(PeerId, String), TransportError> {
        if blob.starts_with(super::local::LOCAL_MARKER) {
            return Err(TransportError::Protocol(
                "this metadata is of the `local` transport, and this connector uses `nixl`".to_owned(),
            ));
        }
        let Blob { agent, regions, .. } = Blob::parse(blob)?;
        if !self.context.allows(agent) {
            return Err(TransportError::NotAllowed(agent.to_owned()));
        }
        if self.generations.values().any(|generation| generation.name() == agent) {
            return Err(TransportError::Refused(
                "this connector made the offer itself; a NIXL agent can't be its own peer, use two connectors"
                    .to_owned(),
            ));
        }
        let (name, reach) = (agent.to_owned(), Reach::new(&regions));
        let current = self.current_generation()?;
        let in_use = || is_in_use(&self.transfers, &name);
        self.generations.get_mut(&current).ok_or_else(unknown_transfer)?.load(&name, blob, in_use)?;
        let id = PeerId(self.id());
        self.peers.insert(id, Rc::new(Peer { name: name.clone(), blob: blob.to_vec(), reach }));
        Ok((id, name))
    }

    fn notify(&mut self, peer: PeerId, message: &[u8]) -> Result<(), TransportError> {
        let current = self.current_generation()?;
        let peer = Rc::clone(self.peers.get(&peer).ok_or_else(unknown_transfer)?);
        let in_use = || is_in_use(&self.transfers, &peer.name);
        let generation = self.generations.get_mut(&current).ok_or_else(unknown_transfer)?;
        generation.load(&peer.name, &peer.blob, in_use)?;
        generation.notify(&peer.name, &[MESSAGE, message].concat())
    }

    fn forget(&mut self, peer: PeerId) {
        let Some(forgotten) = self.peers.remove(&peer) else { return };
        if !self.peers.values().any(|peer| peer.name == forgotten.name) {
            self.unload_unless_used(&forgotten.name);
        }
    }

    unsafe fn begin(&mut self, transfer: &Transfer<'_>) -> Result<TransferId, TransportError> {
        let current = self.current_generation()?;
        self.look(current);
        let peer = Rc::clone(self.peers.get(&transfer.peer).ok_or_else(unknown_transfer)?);
        check_covered(&peer, transfer.remote)?;
        let is_one = |local: &Region, remote: &Region| self.kept.is_one(local) && is_covered(&peer, remote);
        let pieces = Pieces::new(transfer.local, transfer.remote, is_one);
        let generation = self.generations.get_mut(&current).ok_or_else(unknown_transfer)?;
        generation.load(&peer.name, &peer.blob, || is_in_use(&self.transfers, &peer.name))?;
        let local = self.kept.joined(transfer.local);
        let registered = generation.register(&self.kept, &local)?;
        generation.live += 1;
        let id = TransferId(self.id());
        let next_sign = signs::is_ours(&peer.name).then(|| Instant::now() + signs::FIRST);
        let moving = Moving {
            generation: current,
            peer,
            kind: transfer.kind,
            key: transfer.key.to_owned(),
            local,
            registered,
            pieces,
            posted: None,
            state: Phase::InProgress,
            counted: true,
            next_sign,
        };
        self.transfers.insert(id, moving);
        // Posted by the first poll, which the driver does at once.
        Ok(id)
    }

    fn poll(&mut self, id: TransferId) -> Result<TransferState, TransportError> {
        match self.transfers.get(&id).map(|moving| moving.state) {
            Some(Phase::Complete) => Ok(TransferState::Complete),
            Some(Phase::InProgress) => self.advance(id),
            _ => Err(unknown_transfer()),
        }
    }

    fn release(&mut self, id: TransferId) -> Quiescence {
        let Some(moving) = self.transfers.get_mut(&id) else { return Quiescence::Quiet };
        let Some(generation) = self.generations.get_mut(&moving.generation) else {
            return Quiescence::Quiet;
        };
        if let (Phase::InProgress, Some((request, pieces))) = (moving.state, &moving.posted) {
            match generation.in_progress(&moving.peer.name, request) {
                Ok(true) => {
                    moving.sign_of_life(generation);
                    return Quiescence::Busy;
                }
                // The slice is; the rest is not posted any more.
                Ok(false) => moving.state = Phase::FailedQuiet,
                Err(_) => moving.state = failed_with(*pieces),
            }
        }
        if moving.state != Phase::Complete {
            moving.give_up(generation);
        }
        if std::mem::take(&mut moving.counted) {
            generation.deregister(&moving.registered);
            generation.live -= 1;
        }
        if moving.state == Phase::FailedUnknown {
            generation.dirty_since.get_or_insert_with(Instant::now);
            return Quiescence::Busy;
        }
        self.transfers.remove(&id);
        Quiescence::Quiet
    }

    fn has_transfers_in_flight(&self) -> bool {
        self.transfers.values().any(|moving| moving.state == Phase::InProgress && moving.posted.is_some())
    }

    fn linger(&self) -> Duration {
        if self.unquiet.is_empty() && self.leaving.is_empty() { Duration::ZERO } else { LINGER }
    }

    fn progress(&mut self, events: &mut Vec<TransportEvent>) -> bool {
        let before = events.len();
        events.append(&mut self.early);
        for generation in self.generations.values_mut() {
            events.extend(events_of(generation.notifications(), &mut self.takers, &self.context));
        }
        let now = Instant::now();
        if now >= self.next_look {
            self.next_look = now + signs::EVERY / 4;
            let silent = self.takers.silent(now).into_iter();
            events.extend(silent.map(|(id, error)| TransportEvent::OfferFailed { id, error }));
        }
        self.recycle();
        events.len() > before
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        match timeout {
            Some(timeout) => thread::park_timeout(timeout),
            None => thread::park(),
        }
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let driver = self.driver.clone();
        Arc::new(move || driver.unpark())
    }

    fn is_event_driven(&self) -> bool {
        // NIXL has no descriptor to wait on.
        false
    }
}

/// What messages begin with, so that none is taken for a key or a sign.
const MESSAGE: &[u8] = b"connect-message:";

/// What notifications mean: signs are for the takers' list, the rest for operations.
fn events_of(
    notifications: Vec<(String, Vec<u8>)>,
    takers: &mut Takers,
    context: &TransportContext,
) -> Vec<TransportEvent> {
    let event = |(from, body): (String, Vec<u8>)| match Sign::parse(&body) {
        _ if body.starts_with(MESSAGE) => {
            let body = body[MESSAGE.len()..].to_vec();
            context.allows(&from).then_some(TransportEvent::Message { from, body })
        }
        Some((sign, key)) => {
            let over = takers.heard(&from, sign, key, Instant::now());
            over.map(|(id, error)| TransportEvent::OfferFailed { id, error })
        }
        None => Some(TransportEvent::Notification { from, body }),
    };
    notifications.into_iter().filter_map(event).collect()
}

fn check_covered(peer: &Peer, remote: &[Region]) -> Result<(), TransportError> {
    match remote.iter().position(|region| !is_covered(peer, region)) {
        None => Ok(()),
        Some(index) => Err(TransportError::Protocol(format!(
            "descriptor {index} lies outside the memory that {} made reachable",
            peer.name
        ))),
    }
}

/// Whether something is in flight with a peer of this name. Looks at all there is, so it is asked only when it matters.
fn is_in_use(transfers: &HashMap<TransferId, Moving>, name: &str) -> bool {
    transfers.values().any(|moving| moving.state == Phase::InProgress && moving.peer.name == name)
}

fn is_covered(peer: &Peer, region: &Region) -> bool {
    let (memory_type, device) = (memory_type(region.device()) as u32, u64::from(region.device().id()));
    peer.reach.covers(memory_type, device, region.addr(), region.len())
}

fn unknown_transfer() -> TransportError {
    TransportError::Engine { call: "look-up", status: "it was released, or its agent is gone".to_owned() }
}
