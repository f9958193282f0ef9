//! The router: what clients talk to. It spreads requests over prefill and decode processes in turn.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::drill::Drill;
use crate::engine::TRAINED;
use crate::http::{self, Refused};
use crate::metrics::{self, Active, Exporter};
use crate::model::Text;
use crate::wire::{Done, Failure, Generate, Line, Mode, Status};

/// Requests that the page shows.
const SHOWN: usize = 200;

/// What a client asks, as OpenAI's completions have it, and what this demo adds.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Completion {
    pub(crate) prompt: Prompt,
    #[serde(default = "sixteen")]
    pub(crate) max_tokens: usize,
    /// 0 unless given, for the most likely token. The same draws in each request otherwise.
    #[serde(default)]
    pub(crate) temperature: f32,
    #[serde(default)]
    pub(crate) stream: bool,
    /// How the cache gets to decode.
    pub(crate) kv_mode: Option<Mode>,
    /// What goes wrong on purpose.
    pub(crate) drill: Option<Drill>,
}

/// Text, or its tokens as numbers.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

const fn sixteen() -> usize {
    16
}

impl Prompt {
    fn tokens(&self, text: &Text) -> Result<Vec<u32>> {
        match self {
            Self::Text(prompt) => text.encode(prompt),
            Self::Tokens(tokens) => Ok(tokens.clone()),
        }
    }
}

struct Shared {
    client: reqwest::Client,
    prefills: Vec<String>,
    decodes: Vec<String>,
    mode: Mode,
    next: AtomicUsize,
    text: Arc<Text>,
    shown: Mutex<VecDeque<Shown>>,
}

/// A request as the page shows it.
#[derive(Debug, Clone, Serialize)]
struct Shown {
    id: String,
    mode: Mode,
    prompt_tokens: usize,
    tokens: usize,
    state: String,
    bytes: u64,
    began: SystemTime,
    timings: crate::wire::Timings,
}

/// Runs it until it is killed.
pub(crate) async fn run(
    prefills: Vec<String>,
    decodes: Vec<String>,
    mode: Mode,
    model: Option<PathBuf>,
    port: u16,
) -> Result<()> {
    let exporter = Exporter::install()?;
    metrics::describe_router();
    let shared = Shared {
        client: reqwest::Client::new(),
        prefills,
        decodes,
        mode,
        next: AtomicUsize::new(0),
        text: Arc::new(Text::of(&model.unwrap_or_else(|| TRAINED.into()))?),
        shown: Mutex::default(),
    };
    let router = Router::new()
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .route("/health", get(|| async { "ok" }))
        .route("/live", get(live))
        .route("/v1/completions", post(completions))
        .with_state(Arc::new(shared))
        .merge(exporter.route(|| {}));
    http::serve(router, port).await
}

async fn completions(State(shared): State<Arc<Shared>>, Json(ask): Json<Completion>) -> Response {
    let number = shared.next.fetch_add(1, Ordering::Relaxed);
    let id = format!("cmpl-{number}");
    let text = Arc::clone(&shared.text);
    let prompt = match ask.prompt.tokens(&text) {
        Ok(tokens) => tokens,
        Err(error) => return Refused(StatusCode::BAD_REQUEST, error).into_response(),
    };
    let generate = Generate {
        request: id.clone(),
        prompt,
        max_tokens: ask.max_tokens.clamp(1, 4096),
        temperature: ask.temperature,
        mode: ask.kv_mode.unwrap_or(shared.mode),
        prefill: shared.prefills[number % shared.prefills.len()].clone(),
        drill: ask.drill,
    };
    if generate.prompt.is_empty() {
        return Refused(StatusCode::BAD_REQUEST, anyhow!("the prompt is empty")).into_response();
    }
    shared.show(&generate);
    let (lines, received) = mpsc::channel(64);
    let decode = shared.decodes[number % shared.decodes.len()].clone();
    let worker = Arc::clone(&shared);
    tokio::spawn(async move {
        let mut active = Active::begin();
        if let Err(error) = worker.pass_on(&decode, &generate, &lines, &mut active).await {
            let message = format!("{error:#}");
            let failure = Failure { kind: "decode".to_owned(), message, retryable: true };
            active.ended(&failure.kind);
            worker.change(&generate.request, |shown| shown.state.clone_from(&failure.kind));
            let _ = lines.send(Line::Failed(failure)).await;
        }
    });
    if ask.stream { streamed(id, text, received) } else { collected(id, &text, received).await }
}

impl Shared {
    /// Asks decode, and passes its lines on.
    async fn pass_on(
        &self,
        decode: &str,
        ask: &Generate,
        lines: &mpsc::Sender<Line>,
        active: &mut Active,
    ) -> Result<()> {
        let url = format!("{decode}/generate");
        let answer =
            self.client.post(&url).json(ask).send().await.with_context(|| format!("asking {url}"))?;
        let (mut bytes, mut rest) = (answer.bytes_stream(), Vec::new());
        let mut is_over = false;
        while let Some(some) = bytes.next().await {
            rest.extend_from_slice(&some?);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Line = serde_json::from_slice(&rest.drain(..=end).collect::<Vec<_>>())?;
                is_over |= !matches!(line, Line::Token(_));
                active.heard(&line);
                self.change(&ask.request, |shown| shown.heard(&line));
                // A client that went away ends the request: decode notices that nobody reads.
                lines.send(line).await.context("the client is gone")?;
            }
        }
        anyhow::ensure!(is_over, "{decode} ended in the middle of an answer");
        Ok(())
    }

    fn show(&self, ask: &Generate) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.len() >= SHOWN {
            shown.pop_front();
        }
        shown.push_back(Shown {
            id: ask.request.clone(),
            mode: ask.mode,
            prompt_tokens: ask.prompt.len(),
            tokens: 0,
            state: "waiting".to_owned(),
            bytes: 0,
            began: SystemTime::now(),
            timings: crate::wire::Timings::default(),
        });
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Shown)) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = shown.iter_mut().rev().find(|shown| shown.id == id) {
            change(shown);
        }
    }

    /// What all engines say of themselves.
    async fn statuses(&self) -> Vec<Status> {
        let mut all = Vec::new();
        for url in self.prefills.iter().chain(&self.decodes) {
            if let Ok(answer) = self.client.get(format!("{url}/status")).send().await
                && let Ok(status) = answer.json().await
            {
                all.push(status);
            }
        }
        all
    }
}

impl Shown {
    fn heard(&mut self, line: &Line) {
        match line {
            Line::Token(_) => {
                self.tokens += 1;
                self.state = "decoding".to_owned();
            }
            Line::Done(done) => {
                self.state = if done.recomputed { "recomputed" } else { "done" }.to_owned();
                (self.bytes, self.timings) = (done.bytes, done.timings);
            }
            Line::Failed(failure) => self.state.clone_from(&failure.kind),
        }
    }
}

/// All of it in one answer.
async fn collected(id: String, text: &Text, mut received: mpsc::Receiver<Line>) -> Response {
    while let Some(line) = received.recv().await {
        match line {
            Line::Token(_) => {}
            Line::Done(done) => return Json(answer(&id, text, &done.tokens, Some(&done))).into_response(),
            Line::Failed(failure) => return failed(&failure),
        }
    }
    failed(&Failure { kind: "decode".to_owned(), message: "it ended".to_owned(), retryable: true })
}

/// Each token as it comes.
fn streamed(id: String, text: Arc<Text>, received: mpsc::Receiver<Line>) -> Response {
    let end = tokio_stream::once(Ok::<_, axum::Error>(Event::default().data("[DONE]")));
    let events = ReceiverStream::new(received).map(move |line| {
        Event::default().json_data(match line {
            Line::Token(token) => answer(&id, &text, &[token], None),
            Line::Done(done) => answer(&id, &text, &[], Some(&done)),
            Line::Failed(failure) => json!({ "error": failure }),
        })
    });
    Sse::new(events.chain(end)).into_response()
}

fn failed(failure: &Failure) -> Response {
    (StatusCode::BAD_GATEWAY, Json(json!({ "error": failure }))).into_response()
}

/// As OpenAI's API has it, with what this demo measured beside it.
fn answer(id: &str, text: &Text, tokens: &[u32], done: Option<&Done>) -> Value {
    let finish = done.map(|_| "length");
    json!({
        "id": id,
        "object": "text_completion",
        "model": text.model(),
        "choices": [{ "index": 0, "text": text.decode(tokens), "finish_reason": finish }],
        "connect": done,
    })
}

async fn live(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let engines = shared.statuses().await;
    let requests: Vec<Shown> = {
        let shown = shared.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.iter().rev().cloned().collect()
    };
    Json(json!({ "engines": engines, "requests": requests }))
}
