//! [`Hosts`]: two hosts on one machine, as network namespaces with a cable between them that can be slow, lossy
//! and cut.

use std::env;
use std::ffi::OsStr;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::child::Worker;
use crate::process::eventually;

/// Two hosts, gone when this is dropped.
#[derive(Debug)]
pub struct Hosts {
    /// Tells the hosts of this process, and of each test in it, from others.
    id: String,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// The first.
    A,
    /// The second.
    B,
}

impl Host {
    fn letter(self) -> &'static str {
        if self == Self::A { "a" } else { "b" }
    }
}

impl Hosts {
    /// Two hosts with a perfect cable; `None`, and a note on stderr, where that takes more rights or tools than
    /// there are.
    ///
    /// # Panics
    /// They can't be had, and `CONNECT_REQUIRE_NETWORK` is set.
    pub fn connect() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let hosts = Self { id: format!("{}x{number}", process::id() % 1_000_000) };
        match hosts.build() {
            Ok(()) => Some(hosts),
            Err(error) => {
                let required = env::var_os("CONNECT_REQUIRE_NETWORK").is_some();
                assert!(!required, "CONNECT_REQUIRE_NETWORK is set, but there are no namespaces: {error:#}");
                eprintln!("skipped: no network namespaces ({error:#}); it takes root and iproute2");
                None
            }
        }
    }

    fn build(&self) -> Result<()> {
        let (a, b) = (self.namespace(Host::A), self.namespace(Host::B));
        let (cable_a, cable_b) = (self.cable(Host::A), self.cable(Host::B));
        ip(["netns", "add", &a])?;
        ip(["netns", "add", &b])?;
        ip(["link", "add", &cable_a, "netns", &a, "type", "veth", "peer", "name", &cable_b, "netns", &b])?;
        for (host, address) in [(Host::A, "10.213.77.1/24"), (Host::B, "10.213.77.2/24")] {
            let (namespace, cable) = (self.namespace(host), self.cable(host));
            ip(["-n", &namespace, "address", "add", address, "dev", &cable])?;
            ip(["-n", &namespace, "link", "set", "lo", "up"])?;
            ip(["-n", &namespace, "link", "set", &cable, "up"])?;
        }
        self.settle()
    }

    /// Waits until both ends have noticed that the cable is plugged in; UCX uses no interface before.
    fn settle(&self) -> Result<()> {
        let is_up = |host| {
            let (namespace, cable) = (self.namespace(host), self.cable(host));
            let shown = Command::new("ip").args(["-n", &namespace, "link", "show", "dev", &cable]).output();
            shown.is_ok_and(|shown| String::from_utf8_lossy(&shown.stdout).contains("state UP"))
        };
        let settled = eventually(Duration::from_secs(10), || is_up(Host::A) && is_up(Host::B));
        ensure!(settled, "the two ends of a cable do not find each other");
        Ok(())
    }

    /// A worker process on a host, over NIXL and TCP. `worker` is what a test knows as
    /// `env!("CARGO_BIN_EXE_worker")`.
    ///
    /// # Errors
    /// It does not start.
    pub fn worker(&self, host: Host, worker: &str) -> Result<Worker> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host), worker, "--transport", "nixl"]);
        command.envs([("UCX_TLS", "tcp"), ("UCX_NET_DEVICES", &self.cable(host))]);
        Worker::ready(command)
    }

    /// Makes the cable slow: so many megabits per second, through a short queue that drops what it can't hold.
    ///
    /// # Errors
    /// The kernel has no token bucket.
    pub fn throttle(&self, megabits: u32) -> Result<()> {
        for host in [Host::A, Host::B] {
            let rate = format!("{megabits}mbit");
            self.discipline(host, &["tbf", "rate", &rate, "burst", "64kb", "limit", "256kb"])?;
        }
        Ok(())
    }

    /// Lets packets take milliseconds, and some get lost. Says how: kernels without `netem` delay and drop by a
    /// queue that is too short for what TCP sends.
    ///
    /// # Errors
    /// The kernel has neither.
    pub fn worsen(&self) -> Result<&'static str> {
        let netem = ["netem", "delay", "5ms", "1ms", "loss", "1%", "limit", "10000"];
        if self.discipline(Host::A, &netem).is_ok() {
            self.discipline(Host::B, &netem)?;
            return Ok("netem: 5 ms, 1 % lost");
        }
        for host in [Host::A, Host::B] {
            // At this rate the queue holds 5 ms.
            self.discipline(host, &["tbf", "rate", "100mbit", "burst", "16kb", "limit", "64kb"])?;
        }
        Ok("no netem in this kernel; a token bucket with a queue of 5 ms that overflows")
    }

    /// Packets that the cable has dropped on their way out of a host.
    ///
    /// # Errors
    /// `tc` does not tell.
    pub fn dropped(&self, host: Host) -> Result<u64> {
        let shown = Command::new("tc").args(["-s", "-n", &self.namespace(host), "qdisc", "show"]).output()?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let counts = shown.split("(dropped ").skip(1).filter_map(|rest| rest.split(',').next());
        Ok(counts.filter_map(|count| count.parse::<u64>().ok()).sum())
    }

    fn discipline(&self, host: Host, rule: &[&str]) -> Result<()> {
        let (namespace, cable) = (self.namespace(host), self.cable(host));
        let place = ["-n", &namespace, "qdisc", "replace", "dev", &cable, "root"];
        run("tc", place.iter().chain(rule))
    }

    /// Unplugs the cable.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn cut(&self) -> Result<()> {
        ip(["-n", &self.namespace(Host::A), "link", "set", &self.cable(Host::A), "down"])
    }

    /// Plugs it in again.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn heal(&self) -> Result<()> {
        ip(["-n", &self.namespace(Host::A), "link", "set", &self.cable(Host::A), "up"])?;
        self.settle()
    }

    fn namespace(&self, host: Host) -> String {
        format!("connect-{}-{}", self.id, host.letter())
    }

    /// The interface's name, which may have 15 bytes.
    fn cable(&self, host: Host) -> String {
        format!("cn{}{}", self.id, host.letter())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in [Host::A, Host::B] {
            // The cable goes with either end.
            let _ = ip(["netns", "delete", &self.namespace(host)]);
        }
    }
}

fn ip<const N: usize>(arguments: [&str; N]) -> Result<()> {
    run("ip", arguments)
}

fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = command.output().with_context(|| format!("there is no `{program}`"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(())
}
