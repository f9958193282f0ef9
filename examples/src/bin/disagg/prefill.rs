//! The prefill process: runs prompts, and hands their caches off.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use connect_core::kv::{Ended, PoolCard, PushTicket, Streaming};

use crate::engine::{CHUNK_TOKENS, Engine, Setup};
use crate::http::{self, Refused};
use crate::offers;
use crate::wire::{Drill, Meet, Mode, Prefill, Prefilled, Status};

/// Runs it until it is killed.
pub(crate) async fn run(setup: &Setup) -> Result<()> {
    let engine = Engine::start("prefill", setup)?;
    let router = Router::new()
        .route("/health", get(|| async { "ok" }))
        .route("/status", get(status))
        .route("/meet", post(meet))
        .route("/prefill", post(prefill))
        .with_state(Arc::clone(&engine))
        .merge(offers::routes(&engine, Duration::from_millis(setup.lease_ms)));
    http::serve(router).await
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
    if ask.drill == Some(Drill::DiePrefill) {
        std::process::abort();
    }
    check(&engine, &ask.prompt)?;
    Ok(Json(match ask.mode {
        Mode::Pull => pull(engine, ask).await?,
        Mode::Push => push(engine, ask).await?,
        Mode::Chunked | Mode::Layerwise => stream(engine, ask).await?,
    }))
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
    let (lease, first, computed) = engine.compute(move |engine| whole(engine, &ask.prompt)).await?;
    let offer = engine.handoff.offer(&ask.request, lease, tokens as u32, Some(first)).await?;
    let ticket = offer.ticket().to_json();
    log_end(ask.request, offer.ended());
    Ok(Prefilled { ticket: Some(ticket), first_token: Some(first), computed })
}

/// Computes, and then writes all of it into the blocks that decode handed out.
async fn push(engine: Arc<Engine>, ask: Prefill) -> Result<Prefilled> {
    let ticket = PushTicket::from_json(ask.push.as_deref().context("a ticket to push by")?)?;
    let (lease, first, computed) = engine.compute(move |engine| whole(engine, &ask.prompt)).await?;
    engine.handoff.push(&ticket, 0, lease).await?;
    Ok(Prefilled { ticket: None, first_token: Some(first), computed })
}

/// The cache of a whole prompt in blocks, and the first token.
pub(crate) fn whole(
    engine: &Engine,
    prompt: &[u32],
) -> Result<(connect_core::blocks::BlockLease, u32, Duration)> {
    let started = Instant::now();
    let mut cache = engine.model.cache();
    let logits = engine.model.forward(prompt, &mut cache, |_, _| Ok(()))?;
    let computed = started.elapsed();
    let mut lease = engine.pool().allocate(prompt.len())?;
    engine.export(&cache, &mut lease, 0..prompt.len())?;
    Ok((lease, logits.best(), computed))
}

/// Answers at once, and hands off what there is while it computes.
async fn stream(engine: Arc<Engine>, ask: Prefill) -> Result<Prefilled> {
    let tokens = ask.prompt.len();
    let blocks = engine.layout().blocks_for(tokens);
    let streaming = engine.handoff.stream(&ask.request, blocks, tokens as u32).await?;
    let ticket = streaming.ticket().to_json();
    tokio::spawn(async move {
        let request = ask.request.clone();
        let computed = engine
            .compute(move |engine| match ask.mode {
                Mode::Chunked => by_chunks(engine, &ask.prompt, streaming),
                _ => by_layers(engine, &ask.prompt, streaming),
            })
            .await;
        match computed {
            Ok(ended) => log_end(request, ended),
            Err(error) => tracing_line(&request, &format!("{error:#}")),
        }
    });
    Ok(Prefilled { ticket: Some(ticket), first_token: None, computed: Duration::ZERO })
}

fn by_chunks(engine: &Engine, prompt: &[u32], streaming: Streaming) -> Result<Ended> {
    let mut rest = engine.pool().allocate(prompt.len())?;
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
            ControlFlow::Break(open.finish(ready, at, Some(logits.best())).wait()?)
        } else {
            open.send(ready, at).wait()?;
            ControlFlow::Continue(open)
        };
        at += blocks;
    }
    match streaming {
        ControlFlow::Break(ended) => Ok(ended),
        ControlFlow::Continue(_) => anyhow::bail!("the prompt is empty"),
    }
}

fn by_layers(engine: &Engine, prompt: &[u32], streaming: Streaming) -> Result<Ended> {
    let mut rest = Some(engine.pool().allocate(prompt.len())?);
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
        } else {
            rest = Some(ready);
        }
        Ok(())
    })?;
    let ready = rest.context("the last layer")?;
    Ok(streaming.finish(ready, 0, Some(logits.best())).wait()?)
}

/// Says how a hand-off ended, once it has.
fn log_end(request: String, ended: Ended) {
    tokio::spawn(async move {
        match ended.await {
            Ok(outcome) => tracing_line(&request, &format!("{outcome:?}")),
            Err(error) => tracing_line(&request, &error.to_string()),
        }
    });
}

/// Standard output is for the process that started this one.
fn tracing_line(request: &str, what: &str) {
    eprintln!("prefill: {request}: {what}");
}
