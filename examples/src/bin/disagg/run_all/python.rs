//! The same prefill process, and a decode process in Python that uses the original, `dynamo.nixl_connect`.
//!
//! What may differ from one process of this program, and where, is in [`Comparison`].

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use candle_core::DType;
use serde_json::{Value, json};

use super::comparison::Comparison;
use super::drills::EXPIRED;
use super::fleet::{Fleet, Process};
use super::{Options, Request, oneshot, requests};
use crate::drill::{Drill, Step};
use crate::engine::Setup;
use crate::model::{self, Config, Weights};
use crate::oneshot::Answer;
use crate::wire::{Failure, Mode};

/// A lease short enough to wait for, and long enough for Python to connect on a busy machine.
const LEASE_MS: u64 = 3000;

/// Runs and checks it all.
pub(super) async fn run(options: &Options) -> Result<()> {
    let options = Options { mode: Some(Mode::Pull), disturbed: 0, ..options.clone() };
    let peer = Peer::of(&options.setup)?;
    // Nothing of it is killed, so its lease may be long enough for a machine that is busy.
    let fleet = Fleet::beside(&options.setup, peer.start()?)?;
    let comparison = compare(&fleet, &options).await?;
    through_the_router(&fleet, &options).await?;
    damaged(&fleet, &options).await?;
    fleet.all_free().await?;
    comparison.print();
    if !options.no_drills {
        drills(&options, &peer).await?;
    }
    Ok(())
}

/// What the Python process is started with.
struct Peer {
    model: PathBuf,
    weights: String,
    /// Keeps a model that was written for it.
    _folder: Option<tempfile::TempDir>,
}

impl Peer {
    /// Of the same model. Numbers drawn from a seed are no other language's, so these are written to files.
    fn of(setup: &Setup) -> Result<Self> {
        let Some(seed) = setup.seed else {
            let weights = setup.load()?.digest().to_owned();
            return Ok(Self { model: setup.folder().to_owned(), weights, _folder: None });
        };
        let folder = tempfile::tempdir()?;
        let config = Config::SEEDED;
        let weights = model::save(folder.path(), &config, &Weights::seeded(&config, seed)?, DType::F32)?;
        Ok(Self { model: folder.path().to_owned(), weights, _folder: Some(folder) })
    }

    fn start(&self) -> Result<Process> {
        let python = connect_examples::python().context("there is no Python; run `cargo xtask setup`")?;
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/decode.py");
        let mut command = Command::new(python);
        Process::of("Python's decode", command.arg(program).arg(&self.model).arg(&self.weights))
    }
}

/// Asks Python itself, which then says its logits.
async fn ask(
    fleet: &Fleet,
    options: &Options,
    name: &str,
    request: &Request,
) -> Result<Result<Answer, Failure>> {
    let question = json!({
        "request": name,
        "prompt": request.prompt,
        "max_tokens": options.max_tokens,
        "mode": request.mode,
        "prefill": fleet.prefill.url,
        "drill": request.drill,
        "steps": true,
    });
    let url = format!("{}/generate", fleet.decode.url);
    let text = reqwest::Client::new().post(url).json(&question).send().await?.text().await?;
    let last: Value = serde_json::from_str(text.lines().last().context("an answer")?)?;
    if let Some(failure) = last.get("failed") {
        return Ok(Err(serde_json::from_value(failure.clone())?));
    }
    Ok(Ok(serde_json::from_value(last["done"].clone())?))
}

/// All requests, step by step.
async fn compare(fleet: &Fleet, options: &Options) -> Result<Comparison> {
    let requests = requests(options);
    let expected = oneshot(options, &requests, true)?;
    let mut comparison = Comparison::default();
    for (number, (request, expected)) in requests.iter().zip(&expected).enumerate() {
        let name = format!("python-{number}");
        let answer = ask(fleet, options, &name, request).await?;
        let answer = answer.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        comparison.add(&answer, expected).with_context(|| name)?;
    }
    Ok(comparison)
}

/// The router needs not know in which language a decode process is written.
async fn through_the_router(fleet: &Fleet, options: &Options) -> Result<()> {
    let request = requests(options).swap_remove(0);
    let expected = oneshot(options, std::slice::from_ref(&request), false)?.swap_remove(0);
    let answer = fleet.client().complete(&request.prompt, options.max_tokens, Mode::Pull, None).await?;
    let done = answer.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    // What follows may differ after a near tie, which `compare` looked into.
    ensure!(done.tokens[0] == expected.done.tokens[0], "through the router: another token");
    ensure!(done.tokens.len() == options.max_tokens, "through the router: {} tokens", done.tokens.len());
    let refused = fleet.client().complete(&request.prompt, 8, Mode::Push, None).await?;
    let message = refused.err().map(|failure| failure.message).unwrap_or_default();
    ensure!(message.contains("only pulls"), "a push into Python: {message:?}");
    Ok(())
}

/// The negative control: with a damaged cache the comparison must fail, or it shows nothing.
async fn damaged(fleet: &Fleet, options: &Options) -> Result<()> {
    let request = Request { drill: Some(Drill::Corrupt), ..requests(options).swap_remove(0) };
    let expected = oneshot(options, std::slice::from_ref(&request), true)?.swap_remove(0);
    let answer = ask(fleet, options, "python-damaged", &request).await?;
    let answer = answer.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    let judged = Comparison::default().add(&answer, &expected);
    let error = judged.err().context("a damaged cache went unnoticed")?;
    println!("control    python: a damaged block shows: {error}");
    Ok(())
}

/// What goes wrong on purpose.
async fn drills(options: &Options, peer: &Peer) -> Result<()> {
    let setup = Setup { lease_ms: LEASE_MS, ..options.setup.clone() };
    let mut fleet = Fleet::beside(&setup, peer.start()?)?;
    let mut request = requests(options).swap_remove(0);

    request.drill = Some(Drill::Expire);
    let (answer, unread) = tokio::join!(ask(&fleet, options, "late", &request), unread(&fleet, &request));
    unread?;
    let failure = answer?.err().context("it was read after its lease")?;
    ensure!(EXPIRED.contains(&&*failure.kind), "{failure:?}");
    fleet.all_free().await?;
    request.drill = None;
    let again = ask(&fleet, options, "in-time", &request).await?;
    ensure!(again.is_ok(), "after a lease that expired: {again:?}");
    commits_of_strangers(&fleet).await?;

    request.drill = Some(Drill::Kill(Step::DecodeQueued));
    ensure!(ask(&fleet, options, "killed", &request).await.is_err(), "it was to die");
    ensure!(fleet.decode.ends_within(Duration::from_secs(20)).await?, "Python's decode is to be gone");
    fleet.all_free().await?;

    let other = Peer { model: peer.model.clone(), weights: "blake3:others".to_owned(), _folder: None };
    let fleet = Fleet::beside(&setup, other.start()?)?;
    request.drill = None;
    let failure = ask(&fleet, options, "others", &request).await?.err().context("other weights")?;
    ensure!(failure.kind == "incompatible" && failure.message.contains("weights"), "{failure:?}");
    fleet.all_free().await?;
    println!(
        "drill      python: leases that expire, commits of what was not read, a process that dies with an offer, other \
         weights: typed errors, blocks back, the next request is right"
    );
    Ok(())
}

/// Asks prefill itself.
async fn ask_prefill(fleet: &Fleet, path: &str, question: &Value) -> Result<u16> {
    let url = format!("{}/{path}", fleet.prefill.url);
    Ok(reqwest::Client::new().post(url).json(question).send().await?.status().as_u16())
}

/// Who commits without having read is told that it has not, once nobody can read any more.
async fn unread(fleet: &Fleet, request: &Request) -> Result<()> {
    let offer = json!({ "request": "unread", "prompt": request.prompt });
    let status = ask_prefill(fleet, "offer", &offer).await?;
    ensure!(status == 200, "an offer: {status}");
    let status = ask_prefill(fleet, "commit", &json!({ "request": "unread" })).await?;
    ensure!(status == 410, "a commit of what was not read: {status}");
    Ok(())
}

/// Questions that have no good answer.
async fn commits_of_strangers(fleet: &Fleet) -> Result<()> {
    for (path, question, status) in [
        ("commit", json!({ "request": "never-offered" }), 404),
        ("commit", json!({ "request": "late" }), 410),
        ("commit", json!({ "request": "in-time" }), 200),
        ("offer", json!({ "request": "in-time", "prompt": [1] }), 409),
        ("offer", json!({ "request": "empty", "prompt": [] }), 400),
        ("offer", json!({ "request": "no-token", "prompt": [u32::MAX] }), 400),
        ("offer", json!({ "request": "too-long", "prompt": vec![1; 100_000] }), 400),
    ] {
        let answer = ask_prefill(fleet, path, &question).await?;
        ensure!(answer == status, "{path} {}: {answer}", question["request"]);
    }
    Ok(())
}
