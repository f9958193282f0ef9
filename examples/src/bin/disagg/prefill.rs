//! The prefill process: runs prompts, and hands their caches off.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use connect_core::blocks::BlockLease;
use connect_core::kv::{Ended, PoolCard, PushTicket, Streaming};

use crate::drill::Step;
use crate::engine::{CHUNK_TOKENS, Engine, Serve};
use crate::http::{self, Refused};
use crate::metrics::Exporter;
use crate::offers;
use crate::wire::{Meet, Mode, Prefill, Prefilled, Status};

/// Runs it until it is killed.
pub(crate) async fn run(serve: &Serve) -> Result<()> {
    let exporter = Exporter::install()?;
    let engine = Engine::start("prefill", &serve.setup)?;
    let watched = Arc::clone(&engine);
    let router = Router::new()
        .route("/health", get(|| async { "ok" }))
        .route("/status", get(status))
        .route("/meet", post(meet))
        .route("/prefill", post(prefill))
        .with_state(Arc::clone(&engine))
        .merge(offers::routes(&engine, Duration::from_millis(serve.setup.lease_ms)))
        .merge(exporter.route(move || watched.handoff.publish_metrics()));
    http::serve(router, serve.port).await
}

pub(crate) async fn status(State(engine): State<Arc<Engine>>) -> Json<Status> {
    Json(engine.status())
}

/// Learns of a peer's pool, and tells of this one.
pub(crate) async fn meet(
    State(engine): State<Arc<Engine>>,
    Json(peer): Json<Meet>,
) -> Result<Json<Meet>, Refused> {
    let refused = |error: connect_core::kv::KvError| Refused(StatusCode::CONFLICT, error.into());
    let card = PoolCard::from_json(&peer.card).map_err(refused)?;
    engine.handoff.meet(&card).map_err(refused)?;
    let card = engine.pool().card().await?.to_json();
    Ok(Json(Meet { card }))
}

async fn prefill(
    State(engine): State<Arc<Engine>>,
    Json(ask): Json<Prefill>,
) -> Result<Json<Prefilled>, Refused> {
    let drill = ask.drill;
    Step::PrefillAsked.reached(drill);
    check(&engine, &ask.prompt)?;
    let prefilled = match ask.mode {
        Mode::Pull => pull(engine, ask).await?,
        Mode::Push => push(engine, ask).await?,
        Mode::Chunked | Mode::Layerwise => stream(engine, ask).await?,
    };
    Step::PrefillAnswered.soon(drill);
    Ok(Json(prefilled))
}

/// Whether the model can run a prompt.
pub(crate) fn check(engine: &Engine, prompt: &[u32]) -> Result<(), Refused> {
    let refused = |reason: String| Err(Refused(StatusCode::BAD_REQUEST, anyhow::anyhow!(reason)));
    let vocabulary = engine.model.config.vocabulary;
    let room = engine.layout().blocks as usize * engine.layout().block_tokens as usize;
    if prompt.len() > room {
        return refused(format!("a prompt of {} tokens; the pool has room for {room}", prompt.len()));
    }
    match prompt.iter().find(|token| **token as usize >= vocabulary) {
        Some(token) => refused(format!("{token} is none of the model's {vocabulary} tokens")),
        None if prompt.is_empty() => refused("the prompt is empty".to_owned()),
        None => Ok(()),
    }
}

/// Computes, and then offers all of it.
async fn pull(engine: Arc<Engine>, ask: Prefill) -> Result<Prefilled> {
    let tokens = ask.prompt.len();
    let lease = engine.allocate(tokens).await?;
    let (lease, first, computed) = engine.compute(move |engine| whole(engine, &ask.prompt, lease)).await?;
    Step::PrefillComputed.reached(ask.drill);
    let offer = engine.handoff.offer(&ask.request, lease, tokens as u32, Some(first)).await?;
    let ticket = offer.ticket().to_json();
    Step::PrefillOffered.reached(ask.drill);
    log_end(ask.request, offer.ended());
    Ok(Prefilled { ticket: Some(ticket), first_token: Some(first), computed })
}

/// Computes, and then writes all of it into the blocks that decode handed out.
///
/// Without room it refuses at once: decode holds blocks while it waits for the answer, and those whose caches are to be
/// pulled hold blocks here until decode has some. If both waited, they would wait for each other.
async fn push(engine: Arc<Engine>, ask: Prefill) -> Result<Prefilled, Refused> {
    let ticket = PushTicket::from_json(ask.push.as_deref().context("a ticket to push by")?)?;
    let Ok(lease) = engine.pool().allocate(ask.prompt.len()) else {
        return Err(Refused(StatusCode::SERVICE_UNAVAILABLE, http::Busy.into()));
    };
    let (lease, first, computed) = engine.compute(move |engine| whole(engine, &ask.prompt, lease)).await?;
    Step::PrefillComputed.reached(ask.drill);
    engine.handoff.push(&ticket, 0, lease).await?;
    Step::PrefillOffered.reached(ask.drill);
    Ok(Prefilled { ticket: None, first_token: Some(first), computed })
}

/// The cache of a whole prompt in blocks, and the first token.
pub(crate) fn whole(
    engine: &Engine,
    prompt: &[u32],
    mut lease: BlockLease,
) -> Result<(BlockLease, u32, Duration)> {
    let started = Instant::now();
    let mut cache = engine.model.cache();
    let logits = engine.model.forward(prompt, &mut cache, |_, _| Ok(()))?;
    let computed = started.elapsed();
    engine.export(&cache, &mut lease, 0..prompt.len())?;
    Ok((lease, logits.best(), computed))
}

/// Answers at once, and hands off what there is while it computes.
async fn stream(engine: Arc<Engine>, ask: Prefill) -> Result<Prefilled> {
    let tokens = ask.prompt.len();
    let lease = engine.allocate(tokens).await?;
    let blocks = engine.layout().blocks_for(tokens);
    let streaming = engine.handoff.stream(&ask.request, blocks, tokens as u32).await?;
    let ticket = streaming.ticket().to_json();
    tokio::spawn(async move {
        let request = ask.request.clone();
        let computed = engine
            .compute(move |engine| match ask.mode {
                Mode::Chunked => by_chunks(engine, &ask, lease, streaming),
                _ => by_layers(engine, &ask, lease, streaming),
            })
            .await;
        match computed {
            Ok(ended) => log_end(request, ended),
            Err(error) => tracing::warn!(request, "{error:#}"),
        }
    });
    Ok(Prefilled { ticket: Some(ticket), first_token: None, computed: Duration::ZERO })
}

fn by_chunks(engine: &Engine, ask: &Prefill, mut rest: BlockLease, streaming: Streaming) -> Result<Ended> {
    let prompt = &ask.prompt;
    let mut cache = engine.model.cache();
    let (mut done, mut at) = (0, 0);
    let mut streaming = ControlFlow::Continue(streaming);
    for chunk in prompt.chunks(CHUNK_TOKENS) {
        let ControlFlow::Continue(open) = streaming else { break };
        let logits = engine.model.forward(chunk, &mut cache, |_, _| Ok(()))?;
        let blocks = engine.layout().blocks_for(chunk.len());
        let (mut ready, later) = rest.split_blocks(blocks as usize);
        engine.export(&cache, &mut ready, done..done + chunk.len())?;
        done += chunk.len();
        rest = later;
        streaming = if done == prompt.len() {
            let ended = open.finish(ready, at, Some(logits.best())).wait()?;
            Step::PrefillOffered.reached(ask.drill);
            ControlFlow::Break(ended)
        } else {
            open.send(ready, at).wait()?;
            if at == 0 {
                Step::PrefillComputed.reached(ask.drill);
            }
            ControlFlow::Continue(open)
        };
        at += blocks;
    }
    match streaming {
        ControlFlow::Break(ended) => Ok(ended),
        ControlFlow::Continue(_) => anyhow::bail!("the prompt is empty"),
    }
}

fn by_layers(engine: &Engine, ask: &Prefill, lease: BlockLease, streaming: Streaming) -> Result<Ended> {
    let prompt = &ask.prompt;
    let mut rest = Some(lease);
    let last = engine.layout().layers - 1;
    let mut cache = engine.model.cache();
    let logits = engine.model.forward(prompt, &mut cache, |layer, (k, v)| {
        let layer = layer as u32;
        let Some(mut ready) = rest.take() else { return Ok(()) };
        if layer < last {
            let (now, later) = ready.split_parts(2 * layer + 2);
            (ready, rest) = (now, Some(later));
        }
        connect_candle::kv::export_layer(&mut ready, engine.layout(), layer, k, v, 0..prompt.len())?;
        if layer < last {
            streaming.send(ready, 0).wait()?;
            if layer == 0 {
                Step::PrefillComputed.reached(ask.drill);
            }
        } else {
            rest = Some(ready);
        }
        Ok(())
    })?;
    let ready = rest.context("the last layer")?;
    let ended = streaming.finish(ready, 0, Some(logits.best())).wait()?;
    Step::PrefillOffered.reached(ask.drill);
    Ok(ended)
}

/// Says how a hand-off ended, once it has.
fn log_end(request: String, ended: Ended) {
    tokio::spawn(async move {
        match ended.await {
            Ok(outcome) => tracing::info!(request, ?outcome, "a hand-off ended"),
            Err(error) => tracing::warn!(request, %error, "a hand-off ended"),
        }
    });
}
