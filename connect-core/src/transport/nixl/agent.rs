//! One generation of this connector's NIXL agent: its backend, registrations and known peers.
//!
//! Deregistering memory does not end a peer's access over shared memory or TCP; destroying the agent does.
//! So a connector goes through generations of agents: after an offer that ended without its notification,
//! new operations go to a new agent, and the old one is destroyed with its last live operation. Only then
//! is such an offer's memory quiet (P1, P8).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nixl_sys::{
    Agent, AgentConfig, Backend, MemType, MemoryRegion, NixlDescriptor, NixlError, NotificationMap, OptArgs,
    Params, RegDescList, RegistrationHandle, XferDescList, XferOp, XferRequest,
};

use super::blob;
use super::config::{NixlConfig, NixlProgress};
use super::counted::Counted;
use super::kept::{Kept, Standings};
use crate::fingerprint::{Fingerprint, Fingerprints};
use crate::stats::{self, Counters};
use crate::transport::TransportError;
use crate::{Device, DeviceKind, OperationKind, Region};

/// One agent and what hangs on it. Fields drop in this order: everything that points into the agent first.
pub(super) struct Generation {
    /// Memory that is registered, which deregisters when dropped.
    registrations: Counted<Region, RegistrationHandle>,
    /// Memory that stays registered when no operation uses it, and what could not be.
    kept: Standings<RegistrationHandle>,
    /// The blobs of such memory: they stay the same.
    blobs: HashMap<Vec<Region>, Vec<u8>>,
    counters: Arc<Counters>,
    /// Peers whose metadata is loaded, by name.
    peers: HashMap<String, Loaded>,
    fingerprints: Fingerprints,
    /// Peers that were forgotten: what NIXL says about their blobs is about their end, not about the blobs.
    forgotten: HashSet<String>,
    /// Peers that died in a way after which this agent can't load them, or a successor of their name.
    stuck: HashSet<String>,
    connection_blob: Option<Vec<u8>>,
    incoming: NotificationMap,
    backend: Backend,
    agent: Agent,
    name: String,
    /// Offers and transfers that live on it.
    pub(super) live: usize,
    /// Since when it is to be replaced: an offer ended without being known to be quiet, a peer is stuck, or it is
    /// old.
    pub(super) dirty_since: Option<Instant>,
    created: Instant,
}

/// Blobs that are kept. An operation over slots of one slab needs one, and more are for slots of several.
const MAX_KEPT_BLOBS: usize = 64;

/// A request that was handed to the engine.
pub(super) struct Posted {
    /// Kept even after an error: a part of it may be in flight.
    pub(super) request: XferRequest,
    /// Whether bytes are still moving; if not, they have arrived.
    pub(super) in_progress: Result<bool, TransportError>,
}

/// What is loaded of one peer.
#[derive(Debug, Default)]
struct Loaded {
    blobs: HashSet<Fingerprint>,
    bytes: usize,
}

/// Names of peers remembered after they were forgotten. It takes moments until nobody begins anything with a
/// peer that is gone, and far fewer are lost in that time.
const MAX_FORGOTTEN: usize = 1024;

/// Blobs loaded of one peer, and their bytes, before it is loaded afresh. NIXL keeps what it learns of a peer's
/// memory until the peer is unloaded, so a peer that offers new memory for ever would make it grow without end;
/// loading afresh costs about 10 ms, which over this many blobs is not felt.
const MAX_BLOBS: usize = 4096;
const MAX_BLOB_BYTES: usize = 16 << 20;

impl Loaded {
    fn is_full(&self) -> bool {
        self.blobs.len() >= MAX_BLOBS || self.bytes >= MAX_BLOB_BYTES
    }
}

impl Generation {
    pub(super) fn new(
        name: String,
        config: &NixlConfig,
        counters: Arc<Counters>,
    ) -> Result<Self, TransportError> {
        let mut agent_config = AgentConfig { enable_prog_thread: false, ..AgentConfig::default() };
        if let NixlProgress::Thread(interval) = config.progress {
            agent_config.enable_prog_thread = true;
            agent_config.pthr_delay_us = interval.as_micros().try_into().unwrap_or(u64::MAX);
        }
        let agent = Agent::new_configured(&name, &agent_config).map_err(engine("createAgent"))?;
        let backend = create_backend(&agent, config)?;
        let incoming = NotificationMap::new().map_err(engine("createNotifMap"))?;
        Ok(Self {
            registrations: Counted::default(),
            kept: Standings::default(),
            blobs: HashMap::new(),
            counters,
            peers: HashMap::new(),
            fingerprints: Fingerprints::default(),
            forgotten: HashSet::new(),
            stuck: HashSet::new(),
            connection_blob: None,
            incoming,
            backend,
            agent,
            name,
            live: 0,
            dirty_since: None,
            created: Instant::now(),
        })
    }

    /// Marks it to be replaced if it is older than this.
    pub(super) fn age(&mut self, lifetime: Duration) {
        if self.dirty_since.is_none() && self.created.elapsed() >= lifetime {
            self.dirty_since = Some(self.created);
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Registers each region, or counts one more user of it: operations may share memory. What lies in memory that
    /// is kept registered needs no registration of its own.
    ///
    /// Those that have one come back, to be [given up](Self::deregister) when the operation ends: what is kept then need
    /// not be what is kept now.
    pub(super) fn register(
        &mut self,
        kept: &Kept,
        regions: &[Region],
    ) -> Result<Vec<Region>, TransportError> {
        let mut own = Vec::new();
        for region in regions {
            let registered = match kept.around(region) {
                Some(whole) => self.keep(whole),
                None => self.register_one(*region).map(|()| own.push(*region)),
            };
            if let Err(error) = registered {
                self.deregister(&own);
                return Err(error);
            }
        }
        Ok(own)
    }

    fn register_one(&mut self, region: Region) -> Result<(), TransportError> {
        let (agent, backend) = (&self.agent, &self.backend);
        let mut hit = true;
        self.registrations.add(region, || {
            hit = false;
            register_memory(agent, backend, region)
        })?;
        self.count(hit);
        Ok(())
    }

    /// Registers memory that stays registered in this agent, unless it is.
    pub(super) fn keep(&mut self, region: Region) -> Result<(), TransportError> {
        let (agent, backend) = (&self.agent, &self.backend);
        let hit = self.kept.ensure(region, Instant::now(), || register_memory(agent, backend, region))?;
        self.count(hit);
        Ok(())
    }

    /// Deregisters memory that was kept. Says whether a peer may have been told of it.
    pub(super) fn give_up(&mut self, region: &Region) -> bool {
        self.blobs.retain(|regions, _| !regions.contains(region));
        self.kept.remove(region)
    }

    fn count(&self, hit: bool) {
        stats::add(if hit { &self.counters.registration_hits } else { &self.counters.registrations }, 1);
    }

    /// Gives up one use of each region. The last goes first: NIXL keeps them in one sorted list, and to take 16,384 of
    /// them out of it from the front takes a second.
    pub(super) fn deregister(&mut self, regions: &[Region]) {
        regions.iter().rev().for_each(|region| self.registrations.remove(region));
    }

    /// The blob that lets a peer reach these registered regions, and no others (P8). NIXL describes what was
    /// registered and no part of it, so a region in memory that is kept brings all of that.
    pub(super) fn describe(&mut self, kept: &Kept, regions: &[Region]) -> Result<Vec<u8>, TransportError> {
        if kept.is_empty() {
            return self.describe_anew(regions);
        }
        let (mut registered, mut seen) = (Vec::with_capacity(regions.len()), HashSet::new());
        for region in regions {
            match kept.around(region) {
                None => registered.push(*region),
                Some(whole) if seen.insert(whole) => registered.push(whole),
                Some(_) => {}
            }
        }
        seen.iter().for_each(|whole| self.kept.describe(whole));
        if seen.len() < registered.len() {
            return self.describe_anew(&registered);
        }
        if let Some(blob) = self.blobs.get(&registered) {
            return Ok(blob.clone());
        }
        let blob = self.describe_anew(&registered)?;
        if self.blobs.len() >= MAX_KEPT_BLOBS {
            self.blobs.clear();
        }
        self.blobs.insert(registered, blob.clone());
        Ok(blob)
    }

    fn describe_anew(&mut self, registered: &[Region]) -> Result<Vec<u8>, TransportError> {
        if self.connection_blob.is_none() {
            // The partial metadata of no regions is the connection data.
            self.connection_blob = Some(self.partial_blob(MemType::Dram, &[])?);
        }
        let connection = self.connection_blob.as_deref().unwrap_or_default();
        // NIXL describes one kind of memory at a time.
        let mut partial = Vec::new();
        for (kind, regions) in by_memory_type(registered) {
            partial.push(self.partial_blob(kind, &regions)?);
        }
        match blob::splice(connection, &partial) {
            Some(blob) => Ok(blob),
            None => {
                tracing::warn!("this NIXL writes blobs in an unknown format; taking the agent's whole blob");
                self.agent.get_local_md().map_err(engine("getLocalMD"))
            }
        }
    }

    fn partial_blob(&self, memory_type: MemType, regions: &[Region]) -> Result<Vec<u8>, TransportError> {
        let mut list = RegDescList::new(memory_type).map_err(engine("createRegDList"))?;
        for region in regions {
            list.add_desc(region.addr() as usize, region.len() as usize, u64::from(region.device().id()));
        }
        let options = self.options(None)?;
        self.agent.get_local_partial_md(&list, Some(&options)).map_err(engine("getLocalPartialMD"))
    }

    /// Loads a peer's checked blob, unless it is loaded already. `in_use` says that transfers with a peer of
    /// this name are in flight.
    pub(super) fn load(
        &mut self,
        name: &str,
        blob: &[u8],
        in_use: impl Fn() -> bool,
    ) -> Result<(), TransportError> {
        let is_known =
            self.peers.contains_key(name) || self.forgotten.contains(name) || self.stuck.contains(name);
        let fingerprint = self.fingerprints.of(blob);
        match self.peers.get(name) {
            Some(loaded) if loaded.blobs.contains(&fingerprint) => return Ok(()),
            Some(loaded) if loaded.is_full() && !in_use() => self.unload(name),
            // Never out of use, so never to be unloaded: the next agent begins afresh.
            Some(loaded) if loaded.is_full() => drop(self.dirty_since.get_or_insert_with(Instant::now)),
            _ => {}
        }
        let loaded = match self.agent.load_remote_md(blob) {
            Err(_) if is_known && !in_use() => {
                // The same name with other connection data: the peer restarted, and its predecessor's is
                // dropped. While something is in flight with that, the error stands: it will fail soon, and
                // then this can be tried again.
                self.unload(name);
                self.agent.load_remote_md(blob)
            }
            loaded => loaded,
        };
        match loaded {
            Ok(loaded) if loaded == name => {
                self.forgotten.remove(name);
                let loaded = self.peers.entry(loaded).or_default();
                loaded.blobs.insert(fingerprint);
                loaded.bytes += blob.len();
                Ok(())
            }
            Ok(loaded) => {
                let _ = self.agent.invalidate_remote_md(&loaded);
                Err(TransportError::Protocol(format!("NIXL read the name {loaded:?} in {name:?}'s blob")))
            }
            Err(NixlError::InvalidParam) if is_known => {
                // NIXL found the peer gone, and kept half of its connection: this agent will load nothing of that
                // name any more, be it of a restarted peer. The next agent will.
                self.stuck.insert(name.to_owned());
                self.dirty_since.get_or_insert_with(Instant::now);
                Err(lost("loadRemoteMD", name, &NixlError::InvalidParam))
            }
            Err(error @ NixlError::InvalidParam) => {
                Err(TransportError::Protocol(format!("NIXL refused the blob of {name:?}: {error}")))
            }
            // The blob is sound as far as can be seen, and UCX may dial its addresses while it is loaded. Of a
            // known peer that died NIXL even says that the parameter is invalid.
            Err(error) => Err(lost("loadRemoteMD", name, &error)),
        }
    }

    /// Forgets a peer, so that a blob of its successor can be loaded.
    pub(super) fn unload(&mut self, name: &str) {
        if self.peers.remove(name).is_none() {
            return;
        }
        if self.forgotten.len() >= MAX_FORGOTTEN {
            self.forgotten.clear();
        }
        self.forgotten.insert(name.to_owned());
        if let Err(error) = self.agent.invalidate_remote_md(name) {
            tracing::debug!(peer = name, %error, "forgetting a peer failed");
        }
    }

    /// Makes and posts a request for these pieces; `key` is delivered when all of them have arrived.
    pub(super) fn post(
        &self,
        peer: &str,
        kind: OperationKind,
        pieces: &[(Region, Region)],
        key: Option<&str>,
    ) -> Result<Posted, TransportError> {
        let local = list(pieces.iter().map(|(local, _)| local))?;
        let remote = list(pieces.iter().map(|(_, remote)| remote))?;
        let direction = match kind {
            OperationKind::Read => XferOp::Read,
            OperationKind::Write => XferOp::Write,
        };
        let options = self.options(key)?;
        let request = self
            .agent
            .create_xfer_req(direction, &local, &remote, peer, Some(&options))
            .map_err(engine(CREATE_REQUEST))?;
        let in_progress = self.agent.post_xfer_req(&request, Some(&options));
        let in_progress = in_progress.map_err(|error| lost("postXferReq", peer, &error));
        Ok(Posted { request, in_progress })
    }

    /// Whether a posted request is still moving bytes.
    pub(super) fn in_progress(&self, peer: &str, request: &XferRequest) -> Result<bool, TransportError> {
        let status = self.agent.get_xfer_status(request);
        status.map(|status| !status.is_success()).map_err(|error| lost("getXferStatus", peer, &error))
    }

    /// Sends a peer a notification of its own. Nothing depends on it: a peer that can't be reached will not miss it.
    pub(super) fn tell(&self, peer: &str, body: &[u8]) {
        if self.peers.contains_key(peer)
            && let Err(error) = self.agent.send_notification(peer, body, Some(&self.backend))
        {
            tracing::debug!(peer, %error, "a sign to a peer was not sent");
        }
    }

    /// Sends a peer, whose blob is loaded, a notification that somebody depends on.
    pub(super) fn notify(&self, peer: &str, body: &[u8]) -> Result<(), TransportError> {
        let sent = self.agent.send_notification(peer, body, Some(&self.backend));
        sent.map_err(|error| lost("genNotif", peer, &error))
    }

    /// Takes the notifications that have arrived: sender and body.
    pub(super) fn notifications(&mut self) -> Vec<(String, Vec<u8>)> {
        if self.agent.get_notifications(&mut self.incoming, None).is_err() {
            return Vec::new();
        }
        if self.incoming.is_empty().unwrap_or(true) {
            return Vec::new();
        }
        let mut taken = Vec::new();
        for sender in self.incoming.agents().flatten() {
            // Compared as bytes: one that is not UTF-8 must not harm the others (D15 of the original).
            let bodies = self.incoming.get_notifications(sender).into_iter().flatten().flatten();
            taken.extend(bodies.map(|body| (sender.to_owned(), body)));
        }
        // The map only ever grows, and offers no way to clear it.
        if let Ok(fresh) = NotificationMap::new() {
            self.incoming = fresh;
        }
        taken
    }

    fn options(&self, key: Option<&str>) -> Result<OptArgs, TransportError> {
        let mut options = options_of(&self.backend)?;
        if let Some(key) = key {
            options.set_has_notification(true).map_err(engine("optArgsSetHasNotif"))?;
            options.set_notification_message(key.as_bytes()).map_err(engine("optArgsSetNotifMsg"))?;
        }
        Ok(options)
    }
}

fn options_of(backend: &Backend) -> Result<OptArgs, TransportError> {
    let mut options = OptArgs::new().map_err(engine("createOptArgs"))?;
    options.add_backend(backend).map_err(engine("optArgsAddBackend"))?;
    Ok(options)
}

fn register_memory(
    agent: &Agent,
    backend: &Backend,
    region: Region,
) -> Result<RegistrationHandle, TransportError> {
    let options = options_of(backend)?;
    agent.register_memory(&Described(region), Some(&options)).map_err(|error| TransportError::Resource {
        what: "registering memory with NIXL",
        reason: format!("{} bytes on {}: {error}", region.len(), region.device()),
    })
}

fn create_backend(agent: &Agent, config: &NixlConfig) -> Result<Backend, TransportError> {
    let name = config.backend.as_str();
    let unavailable = |reason: String| {
        let plugins = agent.get_available_plugins().map(|list| {
            list.iter().filter_map(|plugin| plugin.ok().map(str::to_owned)).collect::<Vec<_>>().join(", ")
        });
        let plugins = plugins.unwrap_or_else(|_| "unknown".to_owned());
        TransportError::Unavailable(format!("NIXL backend {name:?}: {reason}; plugins here: {plugins}"))
    };
    let (_, defaults) =
        agent.get_plugin_params(name).map_err(|_| unavailable("no such plugin".to_owned()))?;
    // Copied at once: the iterator's strings belong to the C side and do not outlive its next step.
    let mut params: HashMap<String, String> = HashMap::new();
    for (key, value) in &defaults {
        params.insert(key.to_owned(), value.to_owned());
    }
    params.extend(config.params.clone());
    let params = Params::from(&params).map_err(|error| unavailable(format!("its parameters: {error}")))?;
    agent.create_backend(name, &params).map_err(|error| unavailable(error.to_string()))
}

fn list<'a>(regions: impl Iterator<Item = &'a Region>) -> Result<XferDescList<'static>, TransportError> {
    let mut regions = regions.peekable();
    let memory_type = regions.peek().map_or(MemType::Dram, |region| memory_type(region.device()));
    let mut list = XferDescList::new(memory_type).map_err(engine("createXferDList"))?;
    for region in regions {
        list.add_desc(region.addr() as usize, region.len() as usize, u64::from(region.device().id()));
    }
    Ok(list)
}

/// The regions of each kind of memory, in the order in which the kinds first come.
fn by_memory_type(regions: &[Region]) -> Vec<(MemType, Vec<Region>)> {
    let mut groups: Vec<(MemType, Vec<Region>)> = Vec::new();
    for region in regions {
        let kind = memory_type(region.device());
        match groups.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, group)) => group.push(*region),
            None => groups.push((kind, vec![*region])),
        }
    }
    groups
}

pub(super) fn memory_type(device: Device) -> MemType {
    match device.kind() {
        DeviceKind::Host => MemType::Dram,
        DeviceKind::Cuda | DeviceKind::Xpu => MemType::Vram,
    }
}

/// A region as nixl-sys wants to see it.
#[derive(Debug)]
struct Described(Region);

impl MemoryRegion for Described {
    unsafe fn as_ptr(&self) -> *const u8 {
        self.0.addr() as *const u8
    }

    fn size(&self) -> usize {
        self.0.len() as usize
    }
}

impl NixlDescriptor for Described {
    fn mem_type(&self) -> MemType {
        memory_type(self.0.device())
    }

    fn device_id(&self) -> u64 {
        u64::from(self.0.device().id())
    }
}

const CREATE_REQUEST: &str = "createXferReq";

/// Whether an error of [`Generation::post`] says that the request could not even be made.
pub(super) fn is_unmade_request(error: &TransportError) -> bool {
    matches!(error, TransportError::Engine { call: CREATE_REQUEST, .. })
}

fn engine(call: &'static str) -> impl Fn(NixlError) -> TransportError {
    move |error| TransportError::Engine { call, status: error.to_string() }
}

/// NIXL knows better, but its C interface folds a lost peer and nearly everything else into one error. When
/// a checked blob can't be loaded, or a request that could be made can't be posted or completed, the peer
/// being gone is what it means.
fn lost(call: &'static str, peer: &str, error: &NixlError) -> TransportError {
    TransportError::PeerLost(format!(
        "{call} with {peer} failed: {error}; its process has ended, or it withdrew the memory"
    ))
}
