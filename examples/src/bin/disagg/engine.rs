//! What prefill and decode have in common: a model, a pool, and hand-offs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use candle_core::Tensor;
use connect_candle::kv::{export_layer, import_layer};
use connect_core::blocks::BlockLease;
use connect_core::kv::{HandOff, HandOffConfig, KvIdentity, KvLayout, KvPool};
use connect_core::{Connector, DType};
use tokio::sync::Semaphore;

use crate::model::{self, Cache, Config, Model, Weights};
use crate::wire::Status;

/// Tokens in a block.
pub(crate) const BLOCK_TOKENS: u32 = 16;
/// Tokens in a chunk of prefill: some blocks.
pub(crate) const CHUNK_TOKENS: usize = 4 * BLOCK_TOKENS as usize;

/// How long a request waits for blocks.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The small model that `cargo xtask train-fixture` made.
pub(crate) const TRAINED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/tiny-llama");

/// How an engine is set up; the same for both sides, so that they fit.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Setup {
    /// The transport between the two
    #[arg(long, default_value = "local", value_parser = ["local", "nixl"])]
    pub(crate) transport: String,
    /// A Llama, Qwen2 or Qwen3: a folder with config.json and safetensors. Unless given, the small one that was trained
    /// on this repository's own text
    #[arg(long)]
    pub(crate) model: Option<PathBuf>,
    /// Weights are drawn from this instead: no words come out, and every wrong bit shows at once
    #[arg(long, conflicts_with = "model")]
    pub(crate) seed: Option<u64>,
    /// Blocks in each pool
    #[arg(long, default_value_t = 256)]
    pub(crate) blocks: u32,
    /// How long prefill holds a cache for a decode process it does not hear of, in milliseconds
    #[arg(long, default_value_t = 10_000)]
    pub(crate) lease_ms: u64,
    /// Tokens in a block; another number than the peer's is refused
    #[arg(long, default_value_t = BLOCK_TOKENS)]
    pub(crate) block_tokens: u32,
}

/// What a process serves, and where.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) setup: Setup,
    /// Where to listen on this host; 0 for a port that the system chooses
    #[arg(long, default_value_t = 0, overrides_with = "port")]
    pub(crate) port: u16,
}

impl Setup {
    /// As arguments of another process.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let Self { transport, model, seed, blocks, lease_ms, block_tokens } = self;
        [
            ("--transport", Some(transport.clone())),
            ("--model", model.as_ref().map(|folder| folder.display().to_string())),
            ("--seed", seed.map(|seed| seed.to_string())),
            ("--blocks", Some(blocks.to_string())),
            ("--lease-ms", Some(lease_ms.to_string())),
            ("--block-tokens", Some(block_tokens.to_string())),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some([name.to_owned(), value?]))
        .flatten()
        .collect()
    }

    /// The model that was asked for.
    ///
    /// # Errors
    /// It can't be read, or is not supported.
    pub(crate) fn load(&self) -> Result<Model> {
        match self.seed {
            Some(seed) => Model::new(Config::SEEDED, Weights::seeded(&Config::SEEDED, seed)?),
            None => model::load(self.folder()),
        }
    }

    /// Its shape.
    pub(crate) fn config(&self) -> Result<Config> {
        match self.seed {
            Some(_) => Ok(Config::SEEDED),
            None => model::config(self.folder()),
        }
    }

    /// Where it is, unless it is drawn from a seed.
    pub(crate) fn folder(&self) -> &Path {
        self.model.as_deref().unwrap_or(Path::new(TRAINED))
    }

    pub(crate) fn layout(&self, config: &Config) -> KvLayout {
        let Config { layers, kv_heads, head_dim, .. } = *config;
        let (layers, kv_heads, head_dim) = (layers as u32, kv_heads as u32, head_dim as u32);
        KvLayout::new(layers, self.blocks, self.block_tokens, kv_heads, head_dim, DType::F32)
    }
}

/// One engine.
pub(crate) struct Engine {
    pub(crate) role: &'static str,
    pub(crate) model: Model,
    pub(crate) handoff: HandOff,
    connector: Connector,
    /// One computation at a time: each uses all cores that this process has.
    compute: Semaphore,
}

impl Engine {
    pub(crate) fn start(role: &'static str, setup: &Setup) -> Result<Arc<Self>> {
        let model = setup.load()?;
        let connector = connector(&setup.transport)?;
        let identity = identity(&model);
        let pool = KvPool::new(&connector, identity, setup.layout(&model.config)).wait()?;
        let config = HandOffConfig::default().lease(Duration::from_millis(setup.lease_ms));
        let handoff = HandOff::start(pool, config)?;
        Ok(Arc::new(Self { role, model, handoff, connector, compute: Semaphore::new(1) }))
    }

    pub(crate) fn connector(&self) -> &Connector {
        &self.connector
    }

    pub(crate) fn pool(&self) -> &KvPool {
        self.handoff.pool()
    }

    pub(crate) fn layout(&self) -> &KvLayout {
        self.pool().layout()
    }

    /// Computes on a thread that may block.
    pub(crate) async fn compute<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let _turn = self.compute.acquire().await?;
        let engine = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&engine)).await?
    }

    /// Copies some tokens of all layers of a cache into blocks, the first of them into the first.
    pub(crate) fn export(
        &self,
        cache: &Cache,
        lease: &mut BlockLease,
        tokens: std::ops::Range<usize>,
    ) -> Result<()> {
        for (layer, kept) in (0..).zip(cache) {
            let (k, v) = kept.as_ref().context("every layer has a cache")?;
            export_layer(lease, self.layout(), layer, k, v, tokens.clone())?;
        }
        Ok(())
    }

    /// The cache of so many tokens, out of blocks: those of the first lease, and then those of the next.
    pub(crate) fn import(&self, leases: &[BlockLease], tokens: usize) -> Result<Cache> {
        let layer = |layer| {
            let (mut keys, mut values, mut left) = (Vec::new(), Vec::new(), tokens);
            for lease in leases {
                let some = left.min(lease.blocks().len() * self.layout().block_tokens as usize);
                let (k, v) = import_layer(lease, self.layout(), layer, some)?;
                keys.push(k);
                values.push(v);
                left -= some;
            }
            Ok(Some((Tensor::cat(&keys, 1)?, Tensor::cat(&values, 1)?)))
        };
        (0..self.layout().layers).map(layer).collect()
    }

    /// Blocks for so many tokens, once there are.
    pub(crate) async fn allocate(&self, tokens: usize) -> Result<BlockLease> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.pool().allocate(tokens) {
                Err(error) if error.is_retryable() && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                other => return Ok(other?),
            }
        }
    }

    pub(crate) fn status(&self) -> Status {
        let (stats, core, counts) = (self.handoff.stats(), self.connector.stats(), self.pool().counts());
        Status {
            role: self.role.to_owned(),
            engine: self.handoff.engine(),
            blocks: self.layout().blocks,
            free: counts.free,
            leases: stats.leases,
            delivered: stats.delivered,
            aborted: stats.aborted,
            expired: stats.expired,
            failed: stats.failed,
            fetched: stats.fetched,
            lost: stats.lost,
            bytes_in: stats.bytes_taken,
            bytes_out: stats.bytes_given,
            parked_bytes: core.parked_bytes,
            states: Some(counts.into()),
            moved: Some(self.handoff.summary().into()),
        }
    }
}

/// What must be equal for one engine's caches to be of use to another, beside their layout.
fn identity(model: &Model) -> KvIdentity {
    let rope = model.config.rope;
    let identity = KvIdentity::new(model.config.name(), model.digest()).with("rope_theta", rope.theta);
    match rope.scaling {
        Some(scaling) => identity.with("rope_scaling", format!("{scaling:?}")),
        None => identity,
    }
}

fn connector(transport: &str) -> Result<Connector> {
    match transport {
        #[cfg(feature = "nixl")]
        "nixl" => {
            let config = connect_core::transport::nixl::NixlConfig::default();
            Ok(Connector::builder().nixl(config).build()?)
        }
        #[cfg(not(feature = "nixl"))]
        "nixl" => anyhow::bail!("built without NIXL; run `cargo xtask demo --nixl`"),
        _ => Ok(Connector::local()?),
    }
}
