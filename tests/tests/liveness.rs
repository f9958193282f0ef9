//! Who offers memory hears early, and not by its deadline, that whoever took the offer died or gave up; and the
//! memory comes back.
//!
//! docs/reliability.md says what is noticed when. Here the peer is a process of this library; what is noticed of
//! the Python original is in `interop_python.rs`.

use std::collections::HashSet;
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connect_core::transport::TransportError;
use connect_core::{Connector, Error, RdmaMetadata, Received};
use connect_tests::child::Worker;
use connect_tests::lab::{Lab, PATIENCE, Transport};
use connect_tests::pattern;
use connect_tests::process::{eventually, memory, signal};

connect_tests::for_each_transport!(
    p2_an_offer_hears_that_its_reader_died,
    p2_an_offer_hears_that_its_writer_died,
    p2_an_offer_does_not_wait_for_a_reader_that_is_stopped,
    p2_an_offer_hears_that_its_reader_gave_up,
    p2_an_offer_hears_that_its_writer_gave_up,
    p4_a_restarted_peer_of_the_same_name_is_a_new_peer,
);

/// Long enough on its way to be met in the middle.
const LARGE: usize = 1 << 30;
/// The deadline of an offer here. Whoever hears of something a good deal earlier did not hear it from that.
const DEADLINE: Duration = Duration::from_secs(60);
/// What "early" means at most: five seconds of silence over NIXL, and what a busy machine adds.
const EARLY: Duration = Duration::from_secs(20);

/// One test at a time: they are about moments.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until the process that receives has received some.
fn under_way(pid: u32, before: u64) -> Result<()> {
    let has_begun = || memory(pid, "VmRSS").is_ok_and(|now| now > before + (32 << 20));
    let deadline = Instant::now() + PATIENCE;
    while !has_begun() {
        ensure!(Instant::now() < deadline, "the transfer does not get under way");
        thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// In the middle of its transfer a worker over NIXL is given the time to say that it is there: its first sign comes
/// with the first slice after 100 ms, and two more are waited for in the process that receives.
fn has_said_that_it_is_there(lab: &Lab, worker: &Worker, receives: u32) -> Result<()> {
    if lab.is_nixl() {
        signal(worker.pid(), "STOP")?;
        thread::sleep(Duration::from_millis(150));
        let before = memory(receives, "VmRSS")?;
        signal(worker.pid(), "CONT")?;
        under_way(receives, before)?;
    }
    Ok(())
}

/// Lets a worker's deadline pass in the middle of its transfer.
fn delay(worker: &Worker) -> Result<()> {
    signal(worker.pid(), "STOP")?;
    thread::sleep(Duration::from_millis(400));
    signal(worker.pid(), "CONT")
}

/// The transport's word on an operation that ended early, and that its memory is back or will be.
fn ended_early(connector: &Connector, error: &Error, began: Instant) -> Result<TransportError> {
    ensure!(began.elapsed() < EARLY, "it took {:?}", began.elapsed());
    ensure!(error.is_retryable(), "{error}: another peer may take a new offer");
    ensure!(
        eventually(PATIENCE, || connector.stats().parked_bytes == 0),
        "the memory is not back: {:?}",
        connector.stats()
    );
    match error {
        Error::Transport { source, .. } => Ok(source.clone()),
        other => anyhow::bail!("{other:?}"),
    }
}

/// The connector serves the next peer.
fn serves_on(lab: &Lab, connector: &Connector) -> Result<()> {
    let mut next = lab.worker()?;
    let offer = connector.create_readable(pattern::bytes(5000, 9)).wait()?;
    let id = next.begin("read", &offer.metadata().to_json(), &[5000], 9)?;
    next.completed(id)?;
    offer.wait_for_completion().wait()?;
    Ok(())
}

fn p2_an_offer_hears_that_its_reader_died(lab: &Lab) -> Result<()> {
    let _alone = alone();
    let connector = lab.builder().default_deadline(DEADLINE).build()?;
    let mut reader = lab.worker()?;
    let offer = connector.create_readable(pattern::bytes(LARGE, 1)).wait()?;
    let before = memory(reader.pid(), "VmRSS")?;
    reader.begin("read", &offer.metadata().to_json(), &[LARGE], 1)?;
    under_way(reader.pid(), before)?;
    has_said_that_it_is_there(lab, &reader, reader.pid())?;
    reader.kill();
    let killed = Instant::now();
    let error = offer.wait_for_completion().wait().err().context("its reader was killed")?;
    println!("{}: a killed reader was noticed after {:?}", lab.transport(), killed.elapsed());
    let source = ended_early(&connector, &error, killed)?;
    assert!(matches!(source, TransportError::PeerLost(_)), "{source:?}");
    serves_on(lab, &connector)
}

fn p2_an_offer_hears_that_its_writer_died(lab: &Lab) -> Result<()> {
    let _alone = alone();
    let connector = lab.builder().default_deadline(DEADLINE).build()?;
    let mut writer = lab.worker()?;
    let offer = connector.create_writable(vec![0u8; LARGE]).wait()?;
    let before = memory(process::id(), "VmRSS")?;
    writer.begin("write", &offer.metadata().to_json(), &[LARGE], 1)?;
    under_way(process::id(), before)?;
    has_said_that_it_is_there(lab, &writer, process::id())?;
    writer.kill();
    let killed = Instant::now();
    let failed = offer.wait_for_completion().wait().err().context("its writer was killed")?;
    println!("{}: a killed writer was noticed after {:?}", lab.transport(), killed.elapsed());
    drop(failed.memory);
    let source = ended_early(&connector, &failed.error, killed)?;
    assert!(matches!(source, TransportError::PeerLost(_)), "{source:?}");
    serves_on(lab, &connector)
}

fn p2_an_offer_does_not_wait_for_a_reader_that_is_stopped(lab: &Lab) -> Result<()> {
    let _alone = alone();
    // Over `local` a stopped process is as good as a slow one, and only the deadline helps.
    let deadline = if lab.is_nixl() { DEADLINE } else { Duration::from_secs(3) };
    let connector = lab.builder().default_deadline(deadline).build()?;
    let mut reader = lab.worker()?;
    let offer = connector.create_readable(pattern::bytes(LARGE, 1)).wait()?;
    let before = memory(reader.pid(), "VmRSS")?;
    reader.begin("read", &offer.metadata().to_json(), &[LARGE], 1)?;
    under_way(reader.pid(), before)?;
    has_said_that_it_is_there(lab, &reader, reader.pid())?;
    signal(reader.pid(), "STOP")?;
    let stopped = Instant::now();
    let error = offer.wait_for_completion().wait().err().context("its reader was stopped")?;
    println!("{}: a stopped reader was waited for {:?}", lab.transport(), stopped.elapsed());
    ensure!(stopped.elapsed() < EARLY, "it took {:?}", stopped.elapsed());
    match &error {
        Error::Transport { source: TransportError::PeerLost(_), .. } => assert!(lab.is_nixl(), "{error}"),
        Error::DeadlineExceeded { .. } => assert!(!lab.is_nixl(), "{error}"),
        other => anyhow::bail!("{other:?}"),
    }
    reader.kill();
    ensure!(eventually(PATIENCE, || connector.stats().parked_bytes == 0), "{:?}", connector.stats());
    serves_on(lab, &connector)
}

fn p2_an_offer_hears_that_its_reader_gave_up(lab: &Lab) -> Result<()> {
    let _alone = alone();
    let connector = lab.builder().default_deadline(DEADLINE).build()?;
    let mut reader = lab.worker()?;
    let offer = connector.create_readable(pattern::bytes(LARGE, 1)).wait()?;
    let before = memory(reader.pid(), "VmRSS")?;
    let id = begin_with_timeout(&mut reader, "read", offer.metadata())?;
    under_way(reader.pid(), before)?;
    delay(&reader)?;
    let gave_up = Instant::now();
    let error = offer.wait_for_completion().wait().err().context("its reader gave up")?;
    let source = ended_early(&connector, &error, gave_up)?;
    assert!(matches!(source, TransportError::LetGo(_)), "{source:?}");
    assert_eq!(reader.answer(id)?["kind"], "deadline");
    serves_on(lab, &connector)
}

fn p2_an_offer_hears_that_its_writer_gave_up(lab: &Lab) -> Result<()> {
    if lab.transport() == Transport::Local {
        // The side that offers copies on while the writer is stopped; `local/tests/withdrawal.rs` gives up at
        // chosen moments.
        return Ok(());
    }
    let _alone = alone();
    let connector = lab.builder().default_deadline(DEADLINE).build()?;
    let mut writer = lab.worker()?;
    let target = vec![0u8; LARGE];
    let address = target.as_ptr();
    let offer = connector.create_writable(target).wait()?;
    let before = memory(process::id(), "VmRSS")?;
    let id = begin_with_timeout(&mut writer, "write", offer.metadata())?;
    under_way(process::id(), before)?;
    delay(&writer)?;
    let gave_up = Instant::now();
    let failed = offer.wait_for_completion().wait().err().context("its writer gave up")?;
    let memory = failed.memory.returned().context("the writer said that it is quiet")?;
    assert_eq!(memory.as_ptr(), address);
    let source = ended_early(&connector, &failed.error, gave_up)?;
    assert!(matches!(source, TransportError::LetGo(_)), "{source:?}");
    assert_eq!(writer.answer(id)?["kind"], "deadline");
    serves_on(lab, &connector)
}

fn begin_with_timeout(worker: &mut Worker, what: &str, metadata: &RdmaMetadata) -> Result<u64> {
    let metadata: serde_json::Value = serde_json::from_str(&metadata.to_json())?;
    let tensors = serde_json::json!([{"dtype": "uint8", "shape": [LARGE], "seed": 1}]);
    worker.send(serde_json::json!({"do": what, "metadata": metadata, "tensors": tensors, "timeout": 0.3}))
}

/// P4: documents of the dead one fail, documents of its successor work, in either order and however often.
fn p4_a_restarted_peer_of_the_same_name_is_a_new_peer(lab: &Lab) -> Result<()> {
    let _alone = alone();
    let connector = lab.connector()?;
    let hasty = connector.with_deadline(Duration::from_secs(20));
    let (mut old, mut names) = (Vec::<String>::new(), HashSet::new());
    for round in 0..3 {
        let mut worker = lab.worker_with(&["--worker-id", "prefill"])?;
        let (_, stale) = worker.offer("readable", &[5000], 100 + round)?;
        for dead in &old {
            let failed = hasty.begin_read(&RdmaMetadata::from_json(dead)?, vec![0u8; 5000]).wait();
            let failed = failed.and_then(|operation| operation.wait_for_completion().wait());
            let error = failed.err().context("a dead peer's document was served by its successor")?.error;
            ensure!(!matches!(error, Error::DeadlineExceeded { .. }), "{error}");
        }
        let (id, fresh) = worker.offer("readable", &[5000], round)?;
        let read = connector.begin_read(&RdmaMetadata::from_json(&fresh)?, vec![0u8; 5000]).wait()?;
        let Received { memory, report } = read.wait_for_completion().wait()?;
        pattern::check(&memory, round);
        let name = report.peer.context("a report names the peer")?;
        ensure!(names.insert(name.clone()), "{name} is called like its predecessor");
        worker.completed(id)?;
        worker.kill();
        old.push(stale);
    }
    Ok(())
}
