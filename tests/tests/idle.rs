//! Idle costs next to nothing: no busy progress thread, and few threads.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connect_core::{Connector, RdmaMetadata};
use connect_tests::child::Worker;
use connect_tests::lab::{Lab, Transport};
use connect_tests::process;
use serde_json::json;

/// How long idleness is watched at a time.
const WATCHED: Duration = Duration::from_secs(2);

/// The share of a core that an idle process may use. The original uses all of it.
const ALLOWED: f64 = 0.05;

/// What the worker is busy with, as it were.
#[derive(Debug, Clone, Copy)]
enum Scene {
    /// Just started.
    Fresh,
    /// With an offer that nobody takes.
    Open,
    /// Open, after transfers over a connection that is still there.
    Served,
    /// Open, and memory of an expired offer that may be parked until the open one has ended.
    Expired,
}

fn prepare(scene: Scene, worker: &mut Worker, connector: &Connector) -> Result<()> {
    if matches!(scene, Scene::Fresh) {
        return Ok(());
    }
    if matches!(scene, Scene::Served) {
        for seed in 0..5 {
            let (id, metadata) = worker.offer("readable", &[100_000], seed)?;
            let metadata = RdmaMetadata::from_json(&metadata)?;
            connector.begin_read(&metadata, vec![0u8; 100_000]).wait()?.wait_for_completion().wait()?;
            worker.completed(id)?;
        }
    }
    worker.offer("writable", &[100_000], 1)?;
    if matches!(scene, Scene::Expired) {
        let tensors = json!([{"dtype": "uint8", "shape": [1000]}]);
        let id = worker.send(json!({"do": "readable", "timeout": 0.05, "tensors": tensors}))?;
        worker.expect(id, "metadata")?;
        worker.expect(id, "error")?;
    }
    Ok(())
}

#[test]
fn an_idle_process_uses_less_than_a_twentieth_of_a_core() -> Result<()> {
    let mut idle = Vec::new();
    for transport in Transport::available() {
        let lab = Lab::new(transport, env!("CARGO_BIN_EXE_worker"));
        let connector = lab.connector()?;
        for scene in [Scene::Fresh, Scene::Open, Scene::Served, Scene::Expired] {
            let mut worker = lab.worker()?;
            prepare(scene, &mut worker, &connector).with_context(|| format!("{transport}, {scene:?}"))?;
            idle.push((transport, scene, worker, connector.clone()));
        }
    }
    // Whatever an operation leaves to be done is done now.
    std::thread::sleep(Duration::from_millis(500));
    let used = || -> Result<Vec<Duration>> {
        idle.iter().map(|(_, _, worker, _)| process::cpu_time(worker.pid())).collect()
    };
    // The quietest of three times counts: a process that is busy is busy in each, and what else runs on the machine
    // makes each look at the clock dearer.
    let mut least = vec![f64::MAX; idle.len()];
    for _ in 0..3 {
        let (before, started) = (used()?, Instant::now());
        std::thread::sleep(WATCHED);
        let (after, watched) = (used()?, started.elapsed());
        for (least, (before, after)) in least.iter_mut().zip(before.into_iter().zip(after)) {
            *least = least.min((after - before).as_secs_f64() / watched.as_secs_f64());
        }
    }
    for ((transport, scene, ..), share) in idle.iter().zip(least) {
        eprintln!("{transport:>12} {scene:?}: {:.1} % of a core", share * 100.0);
        ensure!(share <= ALLOWED, "{transport}, {scene:?}: {:.1} % of a core", share * 100.0);
    }
    Ok(())
}

#[test]
fn a_connector_has_few_threads_and_they_end_with_it() -> Result<()> {
    for transport in Transport::available() {
        let lab = Lab::new(transport, env!("CARGO_BIN_EXE_worker"));
        let mut worker = lab.worker()?;
        let connectors: Vec<_> =
            (0..4).map(|_| lab.builder().worker_id("counted").build()).collect::<Result<_, _>>()?;
        for connector in &connectors {
            let (id, metadata) = worker.offer("readable", &[1000], 1)?;
            let metadata = RdmaMetadata::from_json(&metadata)?;
            connector.begin_read(&metadata, vec![0u8; 1000]).wait()?.wait_for_completion().wait()?;
            worker.completed(id)?;
        }
        let count = || -> Result<usize> {
            let mut count = 0;
            for task in fs::read_dir("/proc/self/task")? {
                let name = fs::read_to_string(task?.path().join("comm")).unwrap_or_default();
                count += usize::from(name.trim() == "connect-counted");
            }
            Ok(count)
        };
        // Over NIXL the engine's progress thread inherits the name of the driver that starts it.
        let each = if lab.is_nixl() { 2 } else { 1 };
        ensure!((4..=4 * each).contains(&count()?), "{transport}: {} threads for 4 connectors", count()?);
        drop(connectors);
        let ended =
            process::eventually(connect_tests::lab::PATIENCE, || count().is_ok_and(|count| count == 0));
        ensure!(ended, "{transport}: {} drivers are left", count()?);
    }
    Ok(())
}

#[test]
fn a_local_connector_has_three_threads_at_most() -> Result<()> {
    // In a process of its own, where nothing else runs.
    let lab = Lab::new(Transport::Local, env!("CARGO_BIN_EXE_worker"));
    let mut worker = lab.worker()?;
    prepare(Scene::Served, &mut worker, &lab.connector()?)?;
    // Its main thread, and one that waits for the open offer.
    // Each command of the test has a thread that ends a little after its answer.
    let few = || process::threads(worker.pid()).is_ok_and(|threads| (3..=5).contains(&threads));
    ensure!(
        process::eventually(connect_tests::lab::PATIENCE, few),
        "{} threads",
        process::threads(worker.pid())?
    );
    Ok(())
}
