//! This library as it is used: one connector on each side, metadata as JSON over a pipe.

mod passive;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
#[cfg(feature = "nixl")]
use connect_core::Polling;
#[cfg(feature = "nixl")]
use connect_core::transport::nixl::{NixlConfig, NixlProgress};
use connect_core::{Connector, Deadline, RdmaMetadata, Received};
pub(super) use passive::serve;
use tokio::runtime::Runtime;

use super::passive::{Ask, Learned};
use super::{Active, Engine, Offers, Waiting};
use crate::lines::Lines;
use crate::{Load, Pieces, Samples};

/// A connector over the transport of `engine`. New settings of [`Connector::builder`] that are to be compared
/// become an [`Engine`] each, and are made here.
pub(super) fn connector(engine: Engine) -> Result<Connector> {
    // Longer than any round, so that offers that are held open do not expire within it.
    let builder = Connector::builder().default_deadline(Deadline::after(Duration::from_secs(600)));
    let builder = match engine {
        #[cfg(feature = "nixl")]
        Engine::Nixl
        | Engine::NixlAsync
        | Engine::NixlTcp
        | Engine::NixlBlocks
        | Engine::NixlTcpBlocks
        | Engine::NixlPush
        | Engine::NixlTcpPush => builder.nixl(NixlConfig::default()),
        #[cfg(feature = "nixl")]
        Engine::NixlThread => {
            builder.nixl(NixlConfig::default().progress(NixlProgress::Thread(Duration::from_millis(10))))
        }
        #[cfg(feature = "nixl")]
        Engine::NixlLatency => builder.nixl(NixlConfig::default()).polling(Polling::Latency),
        #[cfg(feature = "nixl")]
        Engine::NixlEfficient => builder.nixl(NixlConfig::default()).polling(Polling::Efficient),
        #[cfg(feature = "nixl")]
        Engine::NixlNoFailures => {
            builder.nixl(NixlConfig::default().param("ucx_error_handling_mode", "none"))
        }
        Engine::Local | Engine::LocalAsync | Engine::LocalBlocks | Engine::LocalPush => builder,
        _ => anyhow::bail!("{} is not this library, or it was built without NIXL", engine.label()),
    };
    Ok(builder.build()?)
}

/// The active side.
pub(super) struct Ours {
    connector: Connector,
    passive: Lines,
    /// For callers that await; they run on this thread, as a program's main task does.
    runtime: Option<Runtime>,
    load: Load,
    burst: usize,
    metadata: Vec<RdmaMetadata>,
    targets: Vec<Pieces>,
}

impl Ours {
    pub(super) fn start(engine: Engine, waiting: Waiting) -> Result<Self> {
        let runtime = match waiting {
            Waiting::Blocking => None,
            Waiting::Async => Some(tokio::runtime::Builder::new_current_thread().build()?),
        };
        Ok(Self {
            connector: connector(engine)?,
            passive: super::passive::start(engine)?,
            runtime,
            load: Load::PAGE,
            burst: 0,
            metadata: Vec::new(),
            targets: Vec::new(),
        })
    }

    fn ask_for_offers(&mut self, count: usize, peer: usize) -> Result<Offers> {
        self.passive.send(&Ask::Offer { count, peer })?;
        let offers: Offers = self.passive.receive()?;
        self.metadata.clear();
        for document in &offers.documents {
            self.metadata.push(RdmaMetadata::from_json(document)?);
        }
        Ok(offers)
    }

    /// Sends the passive side's agent what it never asked for.
    #[cfg(feature = "nixl")]
    fn annoy(&mut self) -> Result<()> {
        self.ask_for_offers(1, 0)?;
        let blob = self.metadata.first().context("an offer")?.decode_blob()?;
        super::stranger::notify(&blob, self.load.strangers)?;
        self.burst(&mut Samples::default())?;
        self.learned().map(drop)
    }

    #[cfg(not(feature = "nixl"))]
    fn annoy(&mut self) -> Result<()> {
        anyhow::bail!("only NIXL has strangers")
    }
}

impl Active for Ours {
    fn prepare(&mut self, load: &Load) -> Result<()> {
        self.load = *load;
        self.targets = (0..load.in_flight).map(|_| Pieces::target(load.size, load.descriptors)).collect();
        self.passive.send(&Ask::Prepare(*load))?;
        self.passive.receive::<()>()?;
        if load.strangers > 0 { self.annoy() } else { Ok(()) }
    }

    fn offer(&mut self) -> Result<Offers> {
        self.burst += 1;
        self.ask_for_offers(self.load.in_flight, self.burst % self.load.peers)
    }

    fn burst(&mut self, reads: &mut Samples) -> Result<()> {
        let mut begun = Vec::with_capacity(self.metadata.len());
        for (metadata, target) in self.metadata.iter().zip(self.targets.drain(..)) {
            let at = Instant::now();
            begun.push((at, self.connector.begin_read(metadata, target)));
        }
        let mut ended = |at: Instant, received: Received<Pieces>| {
            reads.push(at.elapsed());
            self.targets.push(received.memory);
        };
        match &self.runtime {
            None => {
                for (at, read) in begun {
                    ended(at, read.wait()?.wait_for_completion().wait()?);
                }
                Ok(())
            }
            Some(runtime) => runtime.block_on(async {
                for (at, read) in begun {
                    ended(at, read.await?.await?);
                }
                Ok(())
            }),
        }
    }

    fn learned(&mut self) -> Result<Option<Duration>> {
        let Learned(at) = self.passive.receive().context("the passive side did not learn of the read")?;
        Ok(Some(at))
    }

    fn targets(&mut self) -> &mut [Pieces] {
        &mut self.targets
    }

    fn release(&mut self) -> Result<()> {
        self.targets = Vec::new();
        self.passive.send(&Ask::Release)?;
        self.passive.receive::<()>()
    }

    fn passive(&self) -> Option<u32> {
        Some(self.passive.pid())
    }
}
