//! The decode process: takes caches, and goes on from them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use connect_core::blocks::{BlockError, BlockLease, CardId};
use connect_core::kv::{Fetched, KvError, KvFailed, KvTicket, PoolCard, PushPlan};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::drill::{Drill, Step};
use crate::engine::{Engine, PATIENCE, Serve};
use crate::http;
use crate::metrics::Exporter;
use crate::model::{Cache, Logits};
use crate::prefill;
use crate::wire::{Done, Failure, Generate, Line, Meet, Mode, Prefill, Prefilled, Timings};

/// How often a request is made again with another card.
const MOST_CARDS: usize = 8;

/// What is done when a cache can't be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Policy {
    /// Tell the client
    Fail,
    /// Run the prompt here
    Recompute,
}

struct Decode {
    engine: Arc<Engine>,
    client: reqwest::Client,
    policy: Policy,
    /// The card of this engine that each prefill process was told of.
    told: Mutex<HashMap<String, CardId>>,
}

/// Runs it until it is killed.
pub(crate) async fn run(serve: &Serve, policy: Policy) -> Result<()> {
    let exporter = Exporter::install()?;
    let engine = Engine::start("decode", &serve.setup)?;
    let watched = Arc::clone(&engine);
    let decode = Decode {
        engine: Arc::clone(&engine),
        client: reqwest::Client::new(),
        policy,
        told: Mutex::default(),
    };
    let router = Router::new()
        .route("/generate", post(generate))
        .with_state(Arc::new(decode))
        .merge(
            Router::new()
                .route("/health", get(|| async { "ok" }))
                .route("/status", get(prefill::status))
                .route("/meet", post(prefill::meet))
                .with_state(engine),
        )
        .merge(exporter.route(move || watched.handoff.publish_metrics()));
    http::serve(router, serve.port).await
}

/// Answers line by line, as tokens come.
async fn generate(State(decode): State<Arc<Decode>>, Json(ask): Json<Generate>) -> Response {
    let (lines, received) = mpsc::channel::<Line>(64);
    tokio::spawn(async move {
        let last = match decode.complete(&ask, &lines).await {
            Ok(done) => Line::Done(done),
            Err(error) => Line::Failed(failure(&error)),
        };
        // A client that went away misses nothing.
        let _ = lines.send(last).await;
    });
    let text = ReceiverStream::new(received).map(|line| {
        let mut text = serde_json::to_string(&line).expect("a line is plain data");
        text.push('\n');
        Ok::<_, Infallible>(Bytes::from(text))
    });
    Response::new(Body::from_stream(text))
}

/// A cache in blocks, and what it took to get it.
struct Cached {
    leases: Vec<BlockLease>,
    first: u32,
    timings: Timings,
    bytes: u64,
    descriptors: usize,
}

impl Decode {
    async fn complete(&self, ask: &Generate, lines: &mpsc::Sender<Line>) -> Result<Done> {
        let started = Instant::now();
        let (cached, cache, recomputed) = match self.fetch(ask).await {
            Ok(mut cached) => {
                let mut leases = std::mem::take(&mut cached.leases);
                if ask.drill == Some(Drill::Corrupt) {
                    let block = leases.first_mut().and_then(|lease| lease.part_mut(0, 0));
                    block.context("a block")?.iter_mut().step_by(7).for_each(|byte| *byte ^= 0x40);
                }
                if ask.drill == Some(Drill::Slow) {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                let tokens = ask.prompt.len();
                let began = Instant::now();
                let cache = self.engine.compute(move |engine| engine.import(&leases, tokens)).await?;
                cached.timings.first_step = began.elapsed();
                (cached, cache, false)
            }
            Err(error) if self.policy == Policy::Recompute && ask.drill != Some(Drill::Abort) => {
                tracing::warn!(request = ask.request, "computing the prompt here: {error:#}");
                let prompt = ask.prompt.clone();
                let (first, cache) = self.engine.compute(move |engine| run_prompt(engine, &prompt)).await?;
                let timings = Timings::default();
                (Cached { leases: Vec::new(), first, timings, bytes: 0, descriptors: 0 }, cache, true)
            }
            Err(error) => return Err(error),
        };
        let Cached { first, mut timings, bytes, descriptors, .. } = cached;
        let (mut tokens, mut cache) = (vec![first], cache);
        let (mut digest, mut random) = (blake3::Hasher::new(), fastrand::Rng::with_seed(0));
        let _ = lines.send(Line::Token(first)).await;
        while tokens.len() < ask.max_tokens {
            let (last, began) = (tokens[tokens.len() - 1], Instant::now());
            let (logits, kept) = self.engine.compute(move |engine| step(engine, last, cache)).await?;
            cache = kept;
            if tokens.len() == 1 {
                timings.first_step += began.elapsed();
                timings.ttft = started.elapsed();
            }
            logits.0.iter().for_each(|value| {
                digest.update(&value.to_le_bytes());
            });
            let token = logits.draw(ask.temperature, &mut random);
            tokens.push(token);
            if tokens.len() == 3 {
                Step::DecodeDecoding.reached(ask.drill);
            }
            if lines.send(Line::Token(token)).await.is_err() {
                return Err(anyhow!("the client is gone"));
            }
        }
        let logits = digest.finalize().to_hex().to_string();
        Ok(Done { tokens, logits, timings, bytes, descriptors, recomputed })
    }

    /// Gets the cache of a prompt from prefill. A stale card is replaced, and the request made once more, some times.
    async fn fetch(&self, ask: &Generate) -> Result<Cached> {
        // Prefill answers to where this engine's card says: over NIXL that is another one from time to time.
        let card = self.engine.pool().blocks().card().await?.id();
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).get(&ask.prefill).copied();
        if told != Some(card) {
            self.meet(&ask.prefill).await?;
        }
        let is_stale = |error: &anyhow::Error| {
            let kv = error.downcast_ref::<KvFailed>().map(|failed| &failed.error);
            let kv = kv.or_else(|| error.downcast_ref::<KvError>());
            matches!(kv, Some(KvError::Blocks(BlockError::StaleCard { .. }) | KvError::UnknownEngine { .. }))
        };
        // Over NIXL each lease of somebody else's that expires makes the card stale, also in the middle of a stream.
        for _ in 0..MOST_CARDS {
            match self.fetch_some(ask).await {
                Err(error) if is_stale(&error) => self.meet(&ask.prefill).await?,
                other => return other,
            }
        }
        self.fetch_some(ask).await
    }

    /// Fetches what is not here yet. This demo keeps no prefixes; the drill makes one.
    async fn fetch_some(&self, ask: &Generate) -> Result<Cached> {
        if ask.drill != Some(Drill::Warm) {
            return self.fetch_once(ask, None).await;
        }
        let mut all = self.fetch_once(ask, None).await?;
        let lease = all.leases.pop().context("the blocks")?;
        let half = lease.blocks().len() / 2;
        let (kept, rest) = lease.split_blocks(half);
        drop(rest);
        self.fetch_once(ask, (half > 0).then_some(kept)).await
    }

    async fn meet(&self, prefill: &str) -> Result<()> {
        let card = self.engine.pool().card().await?.to_json();
        let peer: Meet = http::ask(&self.client, &format!("{prefill}/meet"), &Meet { card }).await?;
        self.engine.handoff.meet(&PoolCard::from_json(&peer.card)?)?;
        let card = self.engine.pool().blocks().card().await?.id();
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(prefill.to_owned(), card);
        Ok(())
    }

    /// Fetches all blocks, or those after the ones that are kept.
    async fn fetch_once(&self, ask: &Generate, kept: Option<BlockLease>) -> Result<Cached> {
        let started = Instant::now();
        let mut timings = Timings::default();
        let Generate { request, prompt, mode, prefill, drill, .. } = ask;
        let mut question = Prefill {
            request: request.clone(),
            prompt: prompt.clone(),
            mode: *mode,
            push: None,
            drill: *drill,
        };
        let url = format!("{prefill}/prefill");
        let (fetched, first, began) = if *mode == Mode::Push {
            let engine = self.engine_of(prefill).await?;
            let (expected, asked, answer) = loop {
                let lease = self.engine.allocate(prompt.len()).await?;
                let expected = self.engine.handoff.expect(&engine, request, lease, PushPlan::Whole).await?;
                question.push = Some(expected.ticket().to_json());
                let asked = Instant::now();
                Step::DecodeAsked.soon(*drill);
                match http::ask::<Prefilled>(&self.client, &url, &question).await {
                    // Without blocks in its hands: those who have prefill's may be waiting for these.
                    Err(error) if error.is::<http::Busy>() && started.elapsed() < PATIENCE => {
                        drop(expected);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    answer => break (expected, asked, answer?),
                }
            };
            timings.queue = asked - started;
            timings.prefill = answer.computed;
            timings.ticket = asked.elapsed().saturating_sub(answer.computed);
            let began = Instant::now();
            Step::DecodeFetching.reached(*drill);
            (expected.fetched().await?, answer.first_token, began)
        } else {
            let asked = Instant::now();
            Step::DecodeAsked.soon(*drill);
            let answer: Prefilled = http::ask(&self.client, &url, &question).await?;
            timings.prefill = answer.computed;
            timings.ticket = asked.elapsed().saturating_sub(answer.computed);
            let ticket = KvTicket::from_json(&answer.ticket.context("a ticket")?)?;
            Step::DecodeQueued.reached(*drill);
            Step::PrefillAnswered.elsewhere(*drill).await;
            if *drill == Some(Drill::Expire) {
                tokio::time::sleep(ticket.lease() * 2).await;
            }
            let tracked = self.engine.handoff.track(ticket)?;
            Step::DecodeTracked.reached(*drill);
            if *drill == Some(Drill::Abort) {
                tracked.abort().await?;
                return Err(KvError::Aborted { request: request.clone() }.into());
            }
            let queued = Instant::now();
            let cached = kept.as_ref().map_or(0, |lease| lease.blocks().len());
            let rest = prompt.len() - cached * self.engine.layout().block_tokens as usize;
            let lease = self.engine.allocate(rest).await?;
            timings.queue = queued.elapsed();
            let began = Instant::now();
            let fetching = tracked.fetch_after(lease, cached as u32);
            Step::DecodeFetching.reached(*drill);
            (fetching.await?, answer.first_token, began)
        };
        Step::DecodeFetched.reached(*drill);
        let Fetched { lease, first_token, reports, commit, .. } = fetched;
        timings.commit = commit;
        timings.transfer = began.elapsed().saturating_sub(commit);
        let first = first_token.or(first).context("the first token")?;
        let bytes = reports.iter().map(|report| report.bytes).sum();
        let descriptors = reports.iter().map(|report| report.descriptors).sum();
        Ok(Cached { leases: kept.into_iter().chain([lease]).collect(), first, timings, bytes, descriptors })
    }

    /// The engine of a prefill process.
    async fn engine_of(&self, prefill: &str) -> Result<String> {
        let status: crate::wire::Status =
            self.client.get(format!("{prefill}/status")).send().await?.json().await?;
        Ok(status.engine)
    }
}

/// A prompt's first token and its cache.
fn run_prompt(engine: &Engine, prompt: &[u32]) -> Result<(u32, Cache)> {
    let mut cache = engine.model.cache();
    let logits = engine.model.forward(prompt, &mut cache, |_, _| Ok(()))?;
    Ok((logits.best(), cache))
}

/// One token more.
fn step(engine: &Engine, token: u32, mut cache: Cache) -> Result<(Logits, Cache)> {
    let logits = engine.model.forward(&[token], &mut cache, |_, _| Ok(()))?;
    Ok((logits, cache))
}

fn failure(error: &anyhow::Error) -> Failure {
    let kv = error.downcast_ref::<KvFailed>().map(|failed| &failed.error);
    let kv = kv.or_else(|| error.downcast_ref::<KvError>());
    let kind = match kv {
        Some(KvError::Incompatible { .. }) => "incompatible",
        Some(KvError::LeaseExpired { .. }) => "lease_expired",
        Some(KvError::Aborted { .. }) => "aborted",
        Some(KvError::DeadlineExceeded { .. }) => "deadline_exceeded",
        Some(KvError::UnknownEngine { .. }) => "unknown_engine",
        Some(KvError::Blocks(_)) => "blocks",
        Some(KvError::Malformed(_)) => "malformed",
        Some(KvError::Transfer(_)) => "transfer",
        Some(_) => "kv",
        None => "prefill",
    };
    let retryable = kv.is_none_or(KvError::is_retryable);
    Failure { kind: kind.to_owned(), message: format!("{error:#}"), retryable }
}
