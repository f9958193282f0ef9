//! What handing a KV cache off while it is computed saves: a prompt of 1,024 tokens of Llama 3.1 8B, 134 MB of cache,
//! whose prefill is played by a pause of as long as a fast GPU takes. Prefill and decode are two processes.
//!
//! `cargo run --release -p connect-benches --features nixl --bin kv-streaming`

use std::env;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use connect_benches::lines::{Lines, answer, questions};
use connect_core::blocks::SharedBlocks;
use connect_core::kv::{Ended, HandOff, HandOffConfig, KvIdentity, KvLayout, KvPool, KvTicket, PoolCard};
use connect_core::{Connector, DType};
use serde::{Deserialize, Serialize};

const LAYERS: u32 = 32;
const TOKENS: usize = 1024;
const BLOCK_TOKENS: u32 = 16;

#[derive(Parser)]
#[command(about = "What streaming a KV cache saves against shipping it at the end")]
struct Arguments {
    /// How long prefill computes, in milliseconds: nothing but a pause
    #[arg(long, default_value_t = 200)]
    compute_ms: u64,
    /// Hand-offs of each kind over each transport
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Runs as prefill
    #[arg(long, hide = true)]
    prefill: Option<Transport>,
    /// Runs as decode
    #[arg(long, hide = true)]
    decode: Option<Transport>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Transport {
    Local,
    #[cfg(feature = "nixl")]
    Nixl,
    #[cfg(feature = "nixl")]
    NixlTcp,
}

/// When what is ready is handed off.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum How {
    AtTheEnd,
    /// So many, each as soon as its tokens are computed.
    Chunks(u32),
    /// Each as soon as it is computed, for all tokens.
    Layers,
}

#[derive(Serialize, Deserialize)]
struct Ask {
    how: How,
    compute: Duration,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match (arguments.prefill, arguments.decode) {
        (Some(transport), _) => prefill(transport),
        (_, Some(transport)) => decode(&arguments, transport),
        _ => all(&arguments),
    }
}

/// A row of the table: what was handed off how, and the times.
type Row = [String; 3];

/// Each transport in processes of its own, whose environment says how UCX moves bytes.
fn all(arguments: &Arguments) -> Result<()> {
    let mut table = Table::new();
    let header =
        ["transport", "handed off", "until decode has it, ms", "of that after prefill, ms (least to most)"];
    table.load_preset(ASCII_MARKDOWN).set_header(header);
    for transport in Transport::value_variants() {
        let name = transport.to_possible_value().context("a name")?.get_name().to_owned();
        let mut command = Command::new(env::current_exe()?);
        command.args(["--decode", &name, "--compute-ms", &arguments.compute_ms.to_string()]);
        command.args(["--rounds", &arguments.rounds.to_string()]);
        if name == "nixl-tcp" {
            command.env("UCX_TLS", "tcp");
        }
        for row in Lines::start(&mut command)?.receive::<Vec<Row>>()? {
            table.add_row([&[name.clone()][..], &row].concat());
        }
    }
    println!("{table}");
    Ok(())
}

fn engine(transport: Transport) -> Result<HandOff> {
    let connector = match transport {
        Transport::Local => Connector::local()?,
        #[cfg(feature = "nixl")]
        Transport::Nixl | Transport::NixlTcp => {
            Connector::builder().nixl(connect_core::transport::nixl::NixlConfig::default()).build()?
        }
    };
    let layout = KvLayout::new(LAYERS, 2 * TOKENS as u32 / BLOCK_TOKENS, BLOCK_TOKENS, 8, 128, DType::BF16);
    let pool = KvPool::new(&connector, KvIdentity::new("llama-3.1-8b", "none"), layout).wait()?;
    Ok(HandOff::start(pool, HandOffConfig::default())?)
}

fn prefill(transport: Transport) -> Result<()> {
    let handoff = engine(transport)?;
    let mut lease = handoff.pool().allocate(TOKENS)?;
    for at in 0..lease.blocks().len() {
        for part in lease.parts() {
            lease.part_mut(at, part).context("a part")?.fill(value(at, part));
        }
    }
    let blocks = lease.into_shared();
    answer(&handoff.pool().card().wait()?.to_json())?;
    let mut questions = questions::<serde_json::Value>();
    let card: String = serde_json::from_value(questions.next().context("a card")??)?;
    handoff.meet(&PoolCard::from_json(&card)?)?;
    for ask in questions {
        let Ask { how, compute } = serde_json::from_value(ask?)?;
        hand_off(&handoff, &blocks, how, compute)?.wait()?;
    }
    Ok(())
}

/// A block's part has another value than its neighbours.
fn value(at: usize, part: u32) -> u8 {
    ((at * 31 + part as usize * 7) % 251) as u8
}

/// Computes and hands off; its ticket goes out as early as can be.
fn hand_off(handoff: &HandOff, blocks: &SharedBlocks, how: How, compute: Duration) -> Result<Ended> {
    let count = blocks.blocks().len() as u32;
    if let How::AtTheEnd = how {
        sleep(compute);
        let offer = handoff.offer("r", blocks.clone(), TOKENS as u32, Some(1)).wait()?;
        answer(&offer.ticket().to_json())?;
        return Ok(offer.ended());
    }
    let streaming = handoff.stream("r", count, TOKENS as u32).wait()?;
    answer(&streaming.ticket().to_json())?;
    let steps = if let How::Chunks(chunks) = how { chunks } else { LAYERS };
    for step in 0..steps {
        sleep(compute / steps);
        let (ready, at) = match how {
            How::Layers => (blocks.select_parts(2 * step..2 * step + 2), 0),
            _ => {
                let each = count / steps;
                let end = if step + 1 == steps { count } else { (step + 1) * each };
                (blocks.select_blocks((step * each) as usize..end as usize), step * each)
            }
        };
        let ready = ready.context("a part of the blocks")?;
        if step + 1 == steps {
            return Ok(streaming.finish(ready, at, Some(1)).wait()?);
        }
        streaming.send(ready, at).wait()?;
    }
    anyhow::bail!("no steps")
}

fn decode(arguments: &Arguments, transport: Transport) -> Result<()> {
    let compute = Duration::from_millis(arguments.compute_ms);
    let name = transport.to_possible_value().context("a name")?.get_name().to_owned();
    let mut peer = Lines::start(Command::new(env::current_exe()?).args(["--prefill", &name]))?;
    let handoff = engine(transport)?;
    let card: String = peer.receive()?;
    handoff.meet(&PoolCard::from_json(&card)?)?;
    peer.send(&handoff.pool().card().wait()?.to_json())?;
    let mut rows: Vec<Row> = Vec::new();
    for how in [How::AtTheEnd, How::Chunks(4), How::Chunks(16), How::Layers] {
        // The first connects.
        fetch(&mut peer, &handoff, how, compute)?;
        let mut took = (0..arguments.rounds.max(1))
            .map(|_| fetch(&mut peer, &handoff, how, compute))
            .collect::<Result<Vec<_>>>()?;
        took.sort_unstable();
        let ms = |took: Duration| format!("{:.1}", took.as_secs_f64() * 1e3);
        let after = |took: Duration| ms(took.saturating_sub(compute));
        let (least, median, most) = (took[0], took[took.len() / 2], took[took.len() - 1]);
        let after = format!("{} ({} to {})", after(median), after(least), after(most));
        rows.push([format!("{how:?}"), ms(median), after]);
    }
    answer(&rows)
}

/// From asking prefill until the cache may be used.
fn fetch(peer: &mut Lines, handoff: &HandOff, how: How, compute: Duration) -> Result<Duration> {
    let lease = handoff.pool().allocate(TOKENS)?;
    let began = Instant::now();
    peer.send(&Ask { how, compute })?;
    let ticket: String = peer.receive()?;
    let fetched = handoff.track(KvTicket::from_json(&ticket)?)?.fetch(lease).wait()?;
    let took = began.elapsed();
    for (at, part) in [(0, 0), (17, 5), (fetched.lease.blocks().len() - 1, 2 * LAYERS - 1)] {
        let bytes = fetched.lease.part(at, part).context("a part")?;
        ensure!(bytes.iter().all(|byte| *byte == value(at, part)), "{how:?}: block {at}, part {part}");
    }
    Ok(took)
}
