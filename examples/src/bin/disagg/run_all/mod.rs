//! Starts all processes, sends requests, checks every token, and reports.

mod comparison;
mod drills;
mod fleet;
mod python;
mod report;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use tokio::sync::Semaphore;

use crate::drill::Drill;
use crate::engine::Setup;
use crate::oneshot::{self, Ask};
use crate::wire::{Done, Failure, Mode};
pub(crate) use fleet::Fleet;
use report::Report;

/// What `run-all` does.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) setup: Setup,
    /// Only this way, instead of all four
    #[arg(long)]
    pub(crate) mode: Option<Mode>,
    /// Requests in all
    #[arg(long, default_value_t = 64)]
    pub(crate) requests: usize,
    /// Requests at once
    #[arg(long, default_value_t = 4)]
    pub(crate) concurrency: usize,
    /// Bytes of a prompt, give or take a third
    #[arg(long, default_value_t = 200)]
    pub(crate) prompt_len: usize,
    /// Tokens to be made of each prompt
    #[arg(long, default_value_t = 24)]
    pub(crate) max_tokens: usize,
    /// Of a hundred requests, so many go wrong on purpose: given up, expired, slow
    #[arg(long, default_value_t = 0)]
    pub(crate) disturbed: usize,
    /// Without the drills at the end
    #[arg(long)]
    pub(crate) no_drills: bool,
    /// Only this drill at the end; several can be named
    #[arg(long)]
    pub(crate) drill: Vec<drills::Name>,
    /// Also with a decode process in Python that uses the original, `dynamo.nixl_connect`; with `--transport nixl`
    #[arg(long)]
    pub(crate) python: bool,
    /// Leaves the processes running after the checks, for a look at the page
    #[arg(long)]
    pub(crate) stay: bool,
    /// Tokens that the model knows.
    #[arg(skip = 256u32)]
    vocabulary: u32,
}

impl Options {
    fn modes(&self) -> Vec<Mode> {
        self.mode.map_or(Mode::ALL.to_vec(), |mode| vec![mode])
    }
}

/// One request, and what must come of it.
#[derive(Debug, Clone)]
struct Request {
    prompt: Vec<u32>,
    mode: Mode,
    drill: Option<Drill>,
}

/// What came of it.
type Answer = Result<Done, Failure>;

/// Runs everything; an error if anything is not as it should be.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let began = Instant::now();
    let vocabulary = options.setup.config()?.vocabulary as u32;
    let options = &Options { vocabulary, ..options.clone() };
    ensure!(!options.python || options.setup.transport == "nixl", "--python needs --transport nixl");
    println!("Starting prefill, decode and router ({} transport) ...", options.setup.transport);
    let fleet = Fleet::start(&options.setup, "fail").await?;
    println!("The router's page, while this runs: {}", fleet.router());
    let requests = requests(options);
    let expected = baseline(options, &requests)?;
    let answers = send(&fleet, options, &requests).await?;

    let mut report = Report::default();
    for (request, (answer, expected)) in requests.iter().zip(answers.iter().zip(&expected)) {
        report.judge(request, answer, expected)?;
    }
    fleet.all_free().await?;
    report.control(control(&fleet, options).await?)?;
    fleet.all_free().await?;
    report.print(&fleet.statuses().await?, options, began.elapsed());
    sample(&fleet, options).await?;
    if options.stay {
        println!("Staying. Look at {}, and end with Ctrl-C.", fleet.router());
        tokio::signal::ctrl_c().await?;
    }
    drop(fleet);
    if options.python {
        python::run(options).await?;
    }
    if !options.no_drills {
        drills::run(options).await?;
    }
    println!("All of it is as it should be ({:.1} s).", began.elapsed().as_secs_f64());
    Ok(())
}

/// Prompts from the README, of different lengths; each way in turn.
fn requests(options: &Options) -> Vec<Request> {
    let mut random = fastrand::Rng::with_seed(options.setup.seed.unwrap_or(1));
    let text = include_str!("../../../../../README.md").as_bytes();
    let modes = options.modes();
    let mut order: Vec<usize> = (0..options.requests).collect();
    random.shuffle(&mut order);
    let disturbed = &order[..options.requests * options.disturbed.min(100) / 100];
    let mut all = Vec::with_capacity(options.requests);
    for number in 0..options.requests {
        let third = options.prompt_len / 3;
        let len = (options.prompt_len - third + random.usize(0..=2 * third)).clamp(1, text.len() - 1);
        let from = random.usize(0..text.len() - len);
        let prompt =
            text[from..from + len].iter().map(|byte| u32::from(*byte) % options.vocabulary).collect();
        let mode = modes[number % modes.len()];
        let is_disturbed = disturbed.contains(&number);
        let drills = [Drill::Abort, Drill::Expire, Drill::Slow];
        let drill = is_disturbed.then(|| drills[random.usize(0..drills.len())]);
        // A push has no lease that could expire, and nothing to give up before it is there.
        let drill = if mode == Mode::Push { drill.map(|_| Drill::Slow) } else { drill };
        all.push(Request { prompt, mode, drill });
    }
    all
}

/// What one process makes of the same prompts.
fn baseline(options: &Options, requests: &[Request]) -> Result<Vec<Done>> {
    Ok(oneshot(options, requests, false)?.into_iter().map(|answer| answer.done).collect())
}

/// The same, with the logits of each step if `steps`.
fn oneshot(options: &Options, requests: &[Request], steps: bool) -> Result<Vec<oneshot::Answer>> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("oneshot")
        .args(options.setup.arguments())
        .env("RAYON_NUM_THREADS", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    let asks: Vec<Ask> = requests
        .iter()
        .map(|request| Ask {
            prompt: request.prompt.clone(),
            max_tokens: options.max_tokens,
            chunked: request.mode == Mode::Chunked,
            steps,
        })
        .collect();
    let writer = std::thread::spawn(move || -> Result<()> {
        for ask in asks {
            writeln!(stdin, "{}", serde_json::to_string(&ask)?)?;
        }
        Ok(())
    });
    let output = child.wait_with_output()?;
    writer.join().expect("no panic")?;
    ensure!(output.status.success(), "oneshot ended with {}", output.status);
    let lines = String::from_utf8(output.stdout)?;
    let all: Vec<oneshot::Answer> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(all.len() == requests.len(), "oneshot answered {} of {}", all.len(), requests.len());
    Ok(all)
}

/// All requests, so many at once, in their order.
async fn send(fleet: &Fleet, options: &Options, requests: &[Request]) -> Result<Vec<Answer>> {
    let bar = ProgressBar::new(requests.len() as u64);
    let turns = Arc::new(Semaphore::new(options.concurrency.max(1)));
    let mut running = Vec::new();
    for request in requests {
        let turn = Arc::clone(&turns).acquire_owned().await?;
        let (client, bar) = (fleet.client(), bar.clone());
        let (request, max_tokens) = (request.clone(), options.max_tokens);
        running.push(tokio::spawn(async move {
            let answer = client.complete(&request.prompt, max_tokens, request.mode, request.drill).await;
            bar.inc(1);
            drop(turn);
            answer
        }));
    }
    let mut answers = Vec::with_capacity(running.len());
    for task in running {
        answers.push(task.await??);
    }
    bar.finish_and_clear();
    Ok(answers)
}

/// The negative control: with a damaged cache the check must fail, or it shows nothing.
async fn control(fleet: &Fleet, options: &Options) -> Result<BTreeMap<Mode, usize>> {
    let mut diverged = BTreeMap::new();
    for mode in options.modes() {
        let request = Request { mode, drill: Some(Drill::Corrupt), ..requests(options).swap_remove(0) };
        let expected = baseline(options, std::slice::from_ref(&request))?.swap_remove(0);
        let answer =
            fleet.client().complete(&request.prompt, options.max_tokens, mode, request.drill).await?;
        let damaged = answer.map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
        ensure!(damaged.logits != expected.logits, "{mode:?}: a damaged cache made the same logits");
        let at = damaged.tokens.iter().zip(&expected.tokens).position(|(a, b)| a != b);
        diverged.insert(mode, at.unwrap_or(options.max_tokens));
    }
    Ok(diverged)
}

/// What the model has to say. Weights that were drawn from a seed have nothing.
async fn sample(fleet: &Fleet, options: &Options) -> Result<()> {
    if options.setup.seed.is_some() {
        return Ok(());
    }
    let url = format!("{}/v1/completions", fleet.router());
    let prompt = "A decode process ";
    let ask = serde_json::json!({ "prompt": prompt, "max_tokens": 160, "temperature": 0.5 });
    let answer: serde_json::Value = reqwest::Client::new().post(url).json(&ask).send().await?.json().await?;
    match answer["choices"][0]["text"].as_str() {
        Some(text) => println!("sample     {:?}", format!("{prompt}{text}")),
        None => {
            let error = answer["error"].to_string();
            ensure!(error.contains("tokenizer.json"), "a sample: {error}");
            println!("sample     none: {error}");
        }
    }
    Ok(())
}

/// Waits for something that takes a moment.
async fn eventually<F: Future<Output = Result<bool>>>(
    what: &str,
    mut is_so: impl FnMut() -> F,
) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    while !is_so().await? {
        ensure!(Instant::now() < until, "{what}: not within a minute");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
