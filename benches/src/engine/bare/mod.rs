//! nixl-sys with as little around it as there can be: what NIXL itself costs, and what this library is held to.
//!
//! Memory is registered once, as one region. Both sides drive NIXL themselves and yield between looks: a progress
//! thread would take one of two cores from the transfer.

mod passive;
mod requests;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connect_core::transport::nixl;
use nixl_sys::{
    Agent, AgentConfig, Backend, MemType, MemoryRegion, NixlDescriptor, OptArgs, RegistrationHandle,
    XferRequest,
};
pub(super) use passive::serve;
use requests::Requests;
use serde::{Deserialize, Serialize};

use super::passive::{Ask, Learned, Spots};
use super::{Active, Engine, Offers};
use crate::lines::Lines;
use crate::{Load, Pieces, Samples};

/// As long as a key of the original.
const NOTIFICATION: &[u8] = b"4a1d9f5c-7d9e-4d0b-9f2b-0d2a4f6f8a11";

/// What the active side needs to know of the passive one.
#[derive(Serialize, Deserialize)]
struct Prepared {
    /// Each peer's agent: its metadata, as NIXL wrote it.
    agents: Vec<Vec<u8>>,
    /// The source, which all of them offer.
    spots: Spots,
}

/// The active side.
pub(super) struct Bare {
    // Dropped in this order: what points into the agent, the agent, the memory.
    ready: Option<Ready>,
    /// What the passive side said of itself; `ready` is made of it.
    prepared: Option<Prepared>,
    load: Load,
    options: OptArgs,
    _backend: Backend,
    agent: Agent,
    targets: Vec<Pieces>,
    passive: Lines,
    engine: Engine,
    burst: usize,
}

/// What the operations of one load share.
struct Ready {
    /// One for each peer.
    requests: Vec<Requests>,
    peers: Vec<String>,
    _registrations: Vec<RegistrationHandle>,
}

/// A request that is under way: of which slot, since when, and itself unless it is kept.
struct Moving(usize, Instant, Option<XferRequest>);

impl Bare {
    pub(super) fn start(engine: Engine) -> Result<Self> {
        let passive = super::passive::start(engine)?;
        let (agent, backend) = agent("bare-active")?;
        let mut options = OptArgs::new()?;
        options.add_backend(&backend)?;
        options.set_has_notification(true)?;
        options.set_notification_message(NOTIFICATION)?;
        Ok(Self {
            ready: None,
            prepared: None,
            load: Load::PAGE,
            options,
            _backend: backend,
            agent,
            targets: Vec::new(),
            passive,
            engine,
            burst: 0,
        })
    }

    /// Registers the targets, and gets to know the peers.
    fn connect(&mut self) -> Result<()> {
        let prepared = self.prepared.take().context("prepared")?;
        let registrations = self.targets.iter_mut().map(|target| register(&self.agent, target));
        let registrations = registrations.collect::<Result<_>>()?;
        let locals: Vec<Spots> = self.targets.iter_mut().map(Pieces::spots).collect();
        let (mut requests, mut peers) = (Vec::new(), Vec::new());
        for metadata in &prepared.agents {
            let peer = self.agent.load_remote_md(metadata)?;
            requests.push(Requests::new(
                self.engine,
                &self.agent,
                &self.options,
                &locals,
                &prepared.spots,
                &peer,
            )?);
            peers.push(peer);
        }
        self.ready = Some(Ready { requests, peers, _registrations: registrations });
        Ok(())
    }
}

impl Active for Bare {
    fn prepare(&mut self, load: &Load) -> Result<()> {
        ensure!(load.strangers == 0, "nobody would read a stranger's notifications");
        self.load = *load;
        self.passive.send(&Ask::Prepare(*load))?;
        self.prepared = Some(self.passive.receive()?);
        self.targets = (0..load.in_flight).map(|_| Pieces::target(load.size, load.descriptors)).collect();
        // A cold read pays for its connection and its registration, as this library's does.
        if load.cold { Ok(()) } else { self.connect() }
    }

    fn offer(&mut self) -> Result<Offers> {
        self.burst += 1;
        let peer = self.burst % self.load.peers;
        self.passive.send(&Ask::Offer { count: self.load.in_flight, peer })?;
        self.passive.receive()
    }

    fn burst(&mut self, reads: &mut Samples) -> Result<()> {
        let cold = self.ready.is_none().then(Instant::now);
        if cold.is_some() {
            self.connect()?;
        }
        let ready = self.ready.as_ref().context("connected")?;
        let requests = &ready.requests[self.burst % self.load.peers];
        let mut moving = Vec::with_capacity(self.load.in_flight);
        for slot in 0..self.load.in_flight {
            let begun = cold.unwrap_or_else(Instant::now);
            let fresh = requests.fresh(&self.agent, &self.options, slot)?;
            let request = fresh.as_ref().unwrap_or_else(|| requests.kept(slot));
            if self.agent.post_xfer_req(request, Some(&self.options))? {
                moving.push(Moving(slot, begun, fresh));
            } else {
                drop(fresh);
                reads.push(begun.elapsed());
            }
        }
        while !moving.is_empty() {
            let mut at = 0;
            while let Some(Moving(slot, begun, fresh)) = moving.get(at) {
                let request = fresh.as_ref().unwrap_or_else(|| requests.kept(*slot));
                if self.agent.get_xfer_status(request)?.is_success() {
                    let begun = *begun;
                    drop(moving.swap_remove(at));
                    reads.push(begun.elapsed());
                } else {
                    at += 1;
                }
            }
            // Never spinning: on the core that the passive side needs, that kept it from answering for 300 us.
            thread::yield_now();
        }
        Ok(())
    }

    fn learned(&mut self) -> Result<Option<Duration>> {
        let Learned(at) = self.passive.receive()?;
        Ok(Some(at))
    }

    fn targets(&mut self) -> &mut [Pieces] {
        &mut self.targets
    }

    fn release(&mut self) -> Result<()> {
        let ready = self.ready.take().context("connected")?;
        for peer in &ready.peers {
            // Regions of the next load may overlap these, and NIXL would look into the wrong ones.
            self.agent.invalidate_remote_md(peer)?;
        }
        drop(ready);
        self.targets = Vec::new();
        self.passive.send(&Ask::Release)?;
        self.passive.receive::<()>()
    }

    fn passive(&self) -> Option<u32> {
        Some(self.passive.pid())
    }
}

/// An agent that drives itself, and its UCX. Its name is this process's alone.
pub(super) fn agent(name: &str) -> Result<(Agent, Backend)> {
    nixl::load(None)?;
    let config = AgentConfig { enable_prog_thread: false, ..AgentConfig::default() };
    let agent = Agent::new_configured(&format!("{name}-{}", std::process::id()), &config)?;
    let (_, params) = agent.get_plugin_params("UCX")?;
    let backend = agent.create_backend("UCX", &params)?;
    Ok((agent, backend))
}

/// Registers a whole buffer. The buffer outlives the handle: both are dropped in that order, here and on the
/// passive side.
fn register(agent: &Agent, memory: &mut Pieces) -> Result<RegistrationHandle> {
    let (addr, len) = memory.whole();
    Ok(agent.register_memory(&Range { addr, len }, None)?)
}

/// A range of this process' memory, as nixl-sys wants to see it.
#[derive(Debug)]
struct Range {
    addr: usize,
    len: usize,
}

impl MemoryRegion for Range {
    unsafe fn as_ptr(&self) -> *const u8 {
        self.addr as *const u8
    }

    fn size(&self) -> usize {
        self.len
    }
}

impl NixlDescriptor for Range {
    fn mem_type(&self) -> MemType {
        MemType::Dram
    }

    fn device_id(&self) -> u64 {
        0
    }
}
