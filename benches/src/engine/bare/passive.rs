//! The passive side of nixl-sys alone: it looks for notifications without end.

use std::sync::mpsc::{self, TryRecvError};
use std::thread;

use anyhow::Result;
use nixl_sys::{Agent, Backend, NotificationMap, RegistrationHandle};

use super::super::Offers;
use super::super::passive::{Ask, Learned};
use super::{Prepared, agent, register};
use crate::clock;
use crate::lines::{answer, questions};
use crate::{Load, Pieces};

/// The size of what is only there to be in the way.
const PAGE: usize = 4096;

/// Runs it until the active side is gone.
pub(in crate::engine) fn serve() -> Result<()> {
    let (sender, asks) = mpsc::channel();
    thread::spawn(move || questions().try_for_each(|ask| sender.send(ask)));
    let mut passive = Passive { registrations: Vec::new(), agents: Vec::new(), peers: 1, memory: Vec::new() };
    passive.grow(1)?;
    // Notifications that are still to come of what was offered.
    let mut missing = 0;
    loop {
        match asks.try_recv() {
            Ok(ask) => match ask? {
                Ask::Prepare(load) => answer(&passive.prepare(&load)?)?,
                Ask::Offer { count, .. } => {
                    missing = count;
                    answer(&Offers::default())?;
                }
                Ask::Release => answer(&passive.release())?,
            },
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
        let arrived = passive.look()?;
        if arrived > 0 {
            missing -= arrived.min(missing);
            if missing == 0 {
                answer(&Learned(clock::now()?))?;
            }
        }
        thread::yield_now();
    }
}

struct Passive {
    // Dropped first: they point into agents.
    registrations: Vec<RegistrationHandle>,
    /// One for each peer that the active side knows. They stay, because their names can't be used again.
    agents: Vec<(Agent, Backend, NotificationMap)>,
    /// How many of them take part.
    peers: usize,
    /// The source, and what is only there to be registered.
    memory: Vec<Pieces>,
}

impl Passive {
    fn grow(&mut self, peers: usize) -> Result<()> {
        while self.agents.len() < peers {
            let (agent, backend) = agent(&format!("bare-passive-{}", self.agents.len()))?;
            self.agents.push((agent, backend, NotificationMap::new()?));
        }
        Ok(())
    }

    fn prepare(&mut self, load: &Load) -> Result<Prepared> {
        self.grow(load.peers)?;
        self.peers = load.peers;
        self.memory.push(Pieces::source(load.size, load.descriptors));
        self.memory.extend((0..load.regions).map(|_| Pieces::source(PAGE, 1)));
        let mut metadata = Vec::new();
        for (agent, ..) in &self.agents[..self.peers] {
            for memory in &mut self.memory {
                self.registrations.push(register(agent, memory)?);
            }
            metadata.push(agent.get_local_md()?);
        }
        Ok(Prepared { agents: metadata, spots: self.memory[0].spots() })
    }

    /// Drives all agents, and counts the notifications that arrived.
    fn look(&mut self) -> Result<usize> {
        let mut arrived = 0;
        for (agent, _, notifications) in &mut self.agents[..self.peers] {
            agent.get_notifications(notifications, None)?;
            if !notifications.is_empty()? {
                arrived += notifications.take_notifs()?.values().map(Vec::len).sum::<usize>();
            }
        }
        Ok(arrived)
    }

    fn release(&mut self) {
        self.registrations.clear();
        self.memory.clear();
    }
}
