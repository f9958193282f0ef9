//! The processes of a run: started, asked, and killed with this value.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Answer, eventually};
use crate::drill::Drill;
use crate::engine::Setup;
use crate::wire::{Done, Failure, Mode, Status};

/// Prefill, decode and router.
pub(crate) struct Fleet {
    pub(crate) prefill: Process,
    pub(crate) decode: Process,
    router: Process,
    client: Client,
}

/// A process of this program, killed with this value.
pub(crate) struct Process {
    child: Child,
    /// Its role and arguments, if it is of this program.
    started_as: Option<(String, Vec<String>)>,
    pub(crate) url: String,
}

/// Asks the router.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    router: String,
}

impl Process {
    /// Starts this program in another role, and waits until it listens.
    pub(crate) fn start(role: &str, arguments: &[String]) -> Result<Self> {
        let mut program = Command::new(std::env::current_exe()?);
        // Sums in one order: then logits are equal to the bit.
        let mut started = Self::of(role, program.arg(role).args(arguments).env("RAYON_NUM_THREADS", "1"))?;
        started.started_as = Some((role.to_owned(), arguments.to_vec()));
        Ok(started)
    }

    /// The same for any program that says where it listens.
    pub(crate) fn of(role: &str, program: &mut Command) -> Result<Self> {
        let mut child = program
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {role}"))?;
        let stdout = child.stdout.take().context("a pipe")?;
        let mut line = String::new();
        let mut lines = BufReader::new(stdout);
        // A library may print before it.
        while !line.starts_with("listening on ") {
            line.clear();
            ensure!(lines.read_line(&mut line)? > 0, "{role} ended before it listened: {}", child.wait()?);
        }
        // What else it prints is of no interest, but must have somewhere to go.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        let url = line["listening on ".len()..].trim().to_owned();
        Ok(Self { child, started_as: None, url })
    }

    /// Kills it, and starts it again at the same address.
    pub(crate) fn restarted(&mut self) -> Result<Self> {
        self.kill();
        let (_, port) = self.url.rsplit_once(':').context("a port")?;
        let (role, mut arguments) = self.started_as.clone().context("another program")?;
        arguments.extend(["--port".to_owned(), port.to_owned()]);
        // Somebody else may have been given the port for a moment.
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match Self::start(&role, &arguments) {
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(100)),
                started => return started,
            }
        }
    }

    /// Kills it at once, as the kernel would.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Whether it is stopped, by a signal.
    pub(crate) fn is_stopped(&self) -> Result<bool> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        Ok(stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into()?);
        Ok(nix::sys::signal::kill(pid, signal)?)
    }

    /// Waits until it has ended by itself; false if it does not in time.
    pub(crate) async fn ends_within(&mut self, time: Duration) -> Result<bool> {
        let until = Instant::now() + time;
        while !self.has_ended()? && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.has_ended()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Fleet {
    /// Starts all three.
    pub(crate) async fn start(setup: &Setup, policy: &str) -> Result<Self> {
        Self::with(setup, setup, policy).await
    }

    /// The same with a decode process that is set up in another way.
    pub(crate) async fn with(setup: &Setup, decode: &Setup, policy: &str) -> Result<Self> {
        let prefill = Process::start("prefill", &setup.arguments())?;
        let mut arguments = decode.arguments();
        arguments.extend(["--on-failure".to_owned(), policy.to_owned()]);
        let decode = Process::start("decode", &arguments)?;
        Self::routed(setup, prefill, decode)
    }

    /// With a decode process that was started in another way.
    pub(crate) fn beside(setup: &Setup, decode: Process) -> Result<Self> {
        Self::routed(setup, Process::start("prefill", &setup.arguments())?, decode)
    }

    fn routed(setup: &Setup, prefill: Process, decode: Process) -> Result<Self> {
        let mut arguments = ["--prefill", &prefill.url, "--decode", &decode.url].map(str::to_owned).to_vec();
        if let Some(model) = &setup.model {
            arguments.extend(["--model".to_owned(), model.display().to_string()]);
        }
        let router = Process::start("router", &arguments)?;
        let client = Client { http: reqwest::Client::new(), router: router.url.clone() };
        Ok(Self { prefill, decode, router, client })
    }

    pub(crate) fn router(&self) -> &str {
        &self.router.url
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// What the engines say of themselves; those that are gone say nothing.
    pub(crate) async fn statuses(&self) -> Result<Vec<Status>> {
        let live: Value =
            self.client.http.get(format!("{}/live", self.router.url)).send().await?.json().await?;
        Ok(serde_json::from_value(live["engines"].clone())?)
    }

    /// Waits until every block of every engine is free, and no lease is open.
    pub(crate) async fn all_free(&self) -> Result<()> {
        let free = || async {
            let statuses = self.statuses().await?;
            Ok(!statuses.is_empty() && statuses.iter().all(|it| it.free == it.blocks && it.leases == 0))
        };
        let waited = eventually("all blocks come back", free).await;
        waited.with_context(|| "some block is still in use")
    }
}

impl Client {
    /// One completion: what came of it, or why it failed.
    ///
    /// # Errors
    /// The router does not answer.
    pub(crate) async fn complete(
        &self,
        prompt: &[u32],
        max_tokens: usize,
        mode: Mode,
        drill: Option<Drill>,
    ) -> Result<Answer> {
        let ask = json!({ "prompt": prompt, "max_tokens": max_tokens, "kv_mode": mode, "drill": drill });
        let url = format!("{}/v1/completions", self.router);
        let answer: Value = self.http.post(url).json(&ask).send().await?.json().await?;
        if let Some(error) = answer.get("error") {
            return Ok(Err(serde_json::from_value::<Failure>(error.clone())?));
        }
        Ok(Ok(serde_json::from_value::<Done>(answer["connect"].clone())?))
    }
}
