//! Caches for decode processes that know nothing of this library: a readable operation of `dynamo.nixl_connect` for each
//! request, and a commit.
//!
//! The peer asks for a cache (`POST /offer`), reads its blocks by the operation's metadata, and asks whether it may use
//! what it read (`POST /commit`). It may if it had read all of it while this process held the blocks for it, which
//! the notification at the end of its read says. An offer that nobody reads ends with its lease, and its
//! blocks come back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use connect_core::RdmaMetadata;
use connect_core::kv::KvLayout;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::engine::Engine;
use crate::http::Refused;
use crate::prefill;

/// How long after its end an offer can be asked about: a peer asks again when an answer was lost.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Offers that are open or remembered. What is open has blocks; this bounds the rest.
const MOST: usize = 4096;

/// Asks for the cache of a prompt.
#[derive(Debug, Deserialize)]
struct Ask {
    request: String,
    prompt: Vec<u32>,
}

/// A cache to be read: whole blocks, in the order of the prompt.
#[derive(Debug, Serialize)]
struct Offered {
    request: String,
    /// As `dynamo.nixl_connect` has it; each descriptor is one or more blocks side by side.
    metadata: RdmaMetadata,
    tokens: usize,
    first_token: u32,
    lease_ms: u64,
    model: String,
    weights: String,
    layout: KvLayout,
    computed: Duration,
}

#[derive(Debug, Deserialize)]
struct Commit {
    request: String,
}

/// How an offer ended.
#[derive(Debug, Clone)]
enum Ended {
    /// Everything was read while it was held.
    Read { bytes: u64 },
    /// It was not, and why.
    Lost(String),
}

/// What the reader of an offer may wait for.
type Verdict = watch::Receiver<Option<Ended>>;

struct Offers {
    engine: Arc<Engine>,
    lease: Duration,
    known: Mutex<HashMap<String, Verdict>>,
}

/// The two questions.
pub(crate) fn routes(engine: &Arc<Engine>, lease: Duration) -> Router {
    let offers = Offers { engine: Arc::clone(engine), lease, known: Mutex::default() };
    Router::new().route("/offer", post(offer)).route("/commit", post(commit)).with_state(Arc::new(offers))
}

async fn offer(State(offers): State<Arc<Offers>>, Json(ask): Json<Ask>) -> Result<Json<Offered>, Refused> {
    let Ask { request, prompt } = ask;
    prefill::check(&offers.engine, &prompt)?;
    let transport = offers.engine.connector().transport();
    if transport != "nixl" {
        let reason = anyhow!("dynamo.nixl_connect can't read over {transport}: start prefill with NIXL");
        return Err(Refused(StatusCode::CONFLICT, reason));
    }
    let (say, verdict) = watch::channel(None);
    offers.remember(&request, verdict)?;
    // A task of its own: who asks may go away in the middle, and what was begun here has to be ended here.
    let made = tokio::spawn(async move {
        let made = offers.make(&request, prompt, say).await;
        if made.is_err() {
            offers.known().remove(&request);
        }
        made
    });
    Ok(Json(made.await??))
}

async fn commit(
    State(offers): State<Arc<Offers>>,
    Json(Commit { request }): Json<Commit>,
) -> Result<Json<serde_json::Value>, Refused> {
    let verdict = offers.known().get(&request).cloned();
    let unknown = || Refused(StatusCode::NOT_FOUND, anyhow!("there is no offer {request:?}"));
    let mut verdict = verdict.ok_or_else(unknown)?;
    // The notification may be later than this question; the lease ends the wait.
    let ended = verdict.wait_for(Option::is_some).await.map_err(|_| unknown())?.clone();
    match ended.ok_or_else(unknown)? {
        Ended::Read { bytes } => Ok(Json(serde_json::json!({ "committed": true, "bytes": bytes }))),
        Ended::Lost(reason) => Err(Refused(StatusCode::GONE, anyhow!("{request}: {reason}"))),
    }
}

impl Offers {
    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, Verdict>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, request: &str, verdict: Verdict) -> Result<(), Refused> {
        let mut known = self.known();
        if known.len() >= MOST {
            return Err(Refused(StatusCode::SERVICE_UNAVAILABLE, anyhow!("{MOST} offers are known already")));
        }
        if known.contains_key(request) {
            return Err(Refused(StatusCode::CONFLICT, anyhow!("there is an offer {request:?} already")));
        }
        known.insert(request.to_owned(), verdict);
        Ok(())
    }

    /// Computes the cache, and offers it for as long as the lease.
    async fn make(
        self: &Arc<Self>,
        request: &str,
        prompt: Vec<u32>,
        say: watch::Sender<Option<Ended>>,
    ) -> Result<Offered> {
        let tokens = prompt.len();
        let lease = self.engine.allocate(tokens).await?;
        let (lease, first_token, computed) =
            self.engine.compute(move |engine| prefill::whole(engine, &prompt, lease)).await?;
        let until = Instant::now() + self.lease;
        let connector = self.engine.connector().with_deadline(connect_core::Deadline::at(until));
        let offer = connector.create_readable(lease).await.context("offering the blocks")?;
        let model = &self.engine.model;
        let offered = Offered {
            request: request.to_owned(),
            metadata: offer.metadata().clone(),
            tokens,
            first_token,
            lease_ms: self.lease.as_millis() as u64,
            model: model.config.name(),
            weights: model.digest().to_owned(),
            layout: *self.engine.layout(),
            computed,
        };
        let (offers, request) = (Arc::clone(self), request.to_owned());
        tokio::spawn(async move {
            let ended = match offer.wait_for_completion().await {
                Ok(report) => Ended::Read { bytes: report.bytes },
                Err(error) => Ended::Lost(format!("it was not read in time: {error}")),
            };
            tracing::info!(request, ?ended, "an offer to a process in Python ended");
            let _ = say.send(Some(ended));
            tokio::time::sleep(REMEMBERED).await;
            offers.known().remove(&request);
        });
        Ok(offered)
    }
}
