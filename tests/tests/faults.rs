//! Operations over a transport that fails on purpose: each ends as it should, and loses no memory by it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connect_core::transport::TransportError;
use connect_core::transport::fault::{Call, Control, Hold, Plan};
use connect_core::transport::local::{DataPath, LocalConfig};
use connect_core::{Cancellation, Connector, Error, ErrorCategory, Recovered};
use connect_tests::lab::PATIENCE;
use connect_tests::process::eventually;

/// Long enough to be noticed, short enough for a test.
const SOON: Duration = Duration::from_secs(1);
/// Longer than any test takes.
const HOURS: Hold = Hold::For(Duration::from_secs(10_000));

fn healthy() -> Result<Connector> {
    Ok(Connector::builder().default_deadline(PATIENCE).build()?)
}

fn faulty(plan: Plan) -> Result<(Connector, Control)> {
    let (transport, control) = plan.over_local();
    Ok((Connector::builder().default_deadline(PATIENCE).transport(transport).build()?, control))
}

fn at_rest(connector: &Connector) -> Result<()> {
    let calm = eventually(PATIENCE, || {
        let stats = connector.stats();
        (stats.open, stats.parked, stats.parked_bytes) == (0, 0, 0)
    });
    ensure!(calm, "{:?}", connector.stats());
    Ok(())
}

#[test]
fn p6_the_planned_failure_of_each_call_reaches_its_caller() -> Result<()> {
    let lost = || TransportError::PeerLost("as planned".to_owned());
    let sender = healthy()?;
    for call in [Call::Connect, Call::Begin, Call::Poll] {
        let (receiver, _) = faulty(Plan::new().fail(call, 1, lost()))?;
        let offer = sender.create_readable(vec![3u8; 100]).wait()?;
        let failed = match receiver.begin_read(offer.metadata(), vec![0u8; 100]).wait() {
            Ok(reading) => reading.wait_for_completion().wait().err().context("it was to fail")?,
            Err(failed) => failed,
        };
        let Error::Transport { source, .. } = &failed.error else { panic!("{call:?}: {failed}") };
        assert_eq!((source, failed.error.is_retryable()), (&lost(), true));
        assert!(matches!(failed.memory, Recovered::Returned(_)), "{call:?}: {failed:?}");
        // The plan is over. The offer may have heard that its taker gave up; the next one is served.
        let offer = sender.create_readable(vec![3u8; 100]).wait()?;
        let reading = receiver.begin_read(offer.metadata(), vec![0u8; 100]).wait()?;
        assert_eq!(reading.wait_for_completion().wait()?.memory, [3; 100]);
        offer.wait_for_completion().wait()?;
    }
    let (offering, _) = faulty(Plan::new().fail(Call::Offer, 1, lost()))?;
    let error = offering.create_readable(vec![0u8; 8]).wait().err().context("it was to fail")?;
    assert_eq!(error.category(), ErrorCategory::Peer);
    Ok(())
}

#[test]
fn p2_a_stalled_transfer_ends_with_its_deadline_and_can_be_cancelled() -> Result<()> {
    let (sender, (receiver, _)) = (healthy()?, faulty(Plan::new().stall(1, HOURS).stall(2, HOURS))?);
    let offer = sender.create_readable(vec![3u8; 100]).wait()?;
    let started = Instant::now();
    let hasty = receiver.with_deadline(SOON);
    let reading = hasty.begin_read(offer.metadata(), vec![0u8; 100]).wait()?;
    let failed = reading.wait_for_completion().wait().err().context("it was to fail")?;
    assert!(matches!(failed.error, Error::DeadlineExceeded { .. }), "{failed}");
    assert!(started.elapsed() < Duration::from_secs(10));

    let offer = sender.create_readable(vec![3u8; 100]).wait()?;
    let reading = receiver.begin_read(offer.metadata(), vec![0u8; 100]).wait()?;
    let cancelled = reading.cancel().wait();
    assert_eq!(Cancellation::of(&cancelled), Cancellation::Drained);
    at_rest(&receiver)
}

#[test]
fn p2_a_call_that_blocks_keeps_nobody_waiting_beyond_the_deadline() -> Result<()> {
    let plan = Plan::new().stall(1, Hold::Times(1)).block(Call::Poll, 2, Duration::from_secs(8));
    let (sender, (receiver, _)) = (healthy()?, faulty(plan)?);
    let offer = sender.create_readable(vec![3u8; 100]).wait()?;
    let started = Instant::now();
    let reading = receiver.with_deadline(SOON).begin_read(offer.metadata(), vec![0u8; 100]).wait()?;
    let failed = reading.wait_for_completion().wait().err().context("it was to fail")?;
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    assert!(matches!(failed.error, Error::DeadlineExceeded { .. }) && failed.memory.is_parked(), "{failed}");
    at_rest(&receiver)
}

#[test]
fn p1_memory_called_busy_is_parked_counted_and_limited() -> Result<()> {
    let sender = healthy()?;
    let (transport, control) = Plan::new().stall(1, HOURS).busy(1, HOURS).over_local();
    let receiver =
        Connector::builder().default_deadline(PATIENCE).parked_limit(1000).transport(transport).build()?;
    let offer = sender.create_readable(vec![3u8; 600]).wait()?;
    let reading = receiver.begin_read(offer.metadata(), vec![0u8; 600]).wait()?;
    let cancelled = reading.cancel().wait();
    assert_eq!(Cancellation::of(&cancelled), Cancellation::Parked);
    assert_eq!(receiver.stats().parked_bytes, 600);

    let failed = receiver.begin_read(offer.metadata(), vec![0u8; 600]).wait().err().context("too much")?;
    assert!(matches!(failed.error, Error::ParkedLimit { parked: 600, limit: 1000, .. }), "{failed}");
    assert!(failed.error.is_retryable() && matches!(failed.memory, Recovered::Returned(_)));

    control.heal();
    at_rest(&receiver)?;
    let offer = sender.create_readable(vec![3u8; 600]).wait()?;
    let reading = receiver.begin_read(offer.metadata(), vec![0u8; 600]).wait()?;
    assert_eq!(reading.wait_for_completion().wait()?.memory, [3; 600]);
    Ok(())
}

#[test]
fn p7_a_lost_notification_fails_its_own_offer_only() -> Result<()> {
    let ((sender, _), receiver) = (faulty(Plan::new().lose(1))?, healthy()?);
    let hasty = sender.with_deadline(SOON);
    let (lost, kept) =
        (hasty.create_readable(vec![1u8; 8]).wait()?, sender.create_readable(vec![2u8; 8]).wait()?);
    for (offer, byte) in [(&lost, 1), (&kept, 2)] {
        let reading = receiver.begin_read(offer.metadata(), vec![0u8; 8]).wait()?;
        assert_eq!(reading.wait_for_completion().wait()?.memory, [byte; 8]);
    }
    assert!(matches!(lost.wait_for_completion().wait(), Err(Error::DeadlineExceeded { .. })));
    assert_eq!(kept.wait_for_completion().wait()?.bytes, 8);
    at_rest(&sender)
}

#[test]
fn p7_notifications_doubled_late_and_overtaken_complete_their_offers_once() -> Result<()> {
    let plan = Plan::new().duplicate(1).reorder(2).delay(4, SOON);
    let ((sender, control), receiver) = (faulty(plan)?, healthy()?);
    let offers =
        (0..4).map(|_| sender.create_readable(vec![1u8; 8]).wait()).collect::<Result<Vec<_>, _>>()?;
    for offer in &offers {
        receiver.begin_read(offer.metadata(), vec![0u8; 8]).wait()?.wait_for_completion().wait()?;
    }
    for offer in offers {
        offer.wait_for_completion().wait()?;
    }
    assert!(eventually(PATIENCE, || sender.stats().unmatched_notifications == 1), "{:?}", sender.stats());

    // Strays are counted; a lie about an open offer is not even delivered.
    let open = sender.create_writable(vec![0u8; 8]).wait()?;
    control.inject("liar", open.metadata().notification_key());
    control.inject("stranger", "hello");
    assert!(eventually(PATIENCE, || sender.stats().unmatched_notifications == 2), "{:?}", sender.stats());
    assert!(!open.status().is_final());
    receiver.begin_write(vec![9u8; 8], open.metadata()).wait()?.wait_for_completion().wait()?;
    assert_eq!(open.wait_for_completion().wait()?.memory, [9; 8]);
    assert_eq!(sender.stats().completed, 5);
    at_rest(&sender)
}

#[test]
fn p2_p6_when_peers_vanish_transfers_fail_as_lost_and_work_again_when_they_are_back() -> Result<()> {
    let (sender, (receiver, control)) = (healthy()?, faulty(Plan::new().stall(1, HOURS))?);
    let offer = sender.create_readable(vec![3u8; 100]).wait()?;
    let reading = receiver.begin_read(offer.metadata(), vec![0u8; 100]).wait()?;
    control.vanish();
    let failed = reading.wait_for_completion().wait().err().context("it was to fail")?;
    assert_eq!((failed.error.category(), failed.error.is_retryable()), (ErrorCategory::Peer, true));
    let failed = receiver.begin_read(offer.metadata(), vec![0u8; 100]).wait().err().context("still gone")?;
    assert_eq!(failed.error.category(), ErrorCategory::Peer);
    control.heal();
    let offer = sender.create_readable(vec![3u8; 100]).wait()?;
    let reading = receiver.begin_read(offer.metadata(), vec![0u8; 100]).wait()?;
    assert_eq!(reading.wait_for_completion().wait()?.memory, [3; 100]);
    at_rest(&receiver)
}

/// Two connectors, both faulty in ways that a seed decides, over both ways that bytes take: every operation
/// ends, what is complete is right, and nothing is left behind.
#[test]
fn p1_p2_p3_hold_whatever_a_seed_lets_go_wrong() -> Result<()> {
    let seeds = match std::env::var("CONNECT_SEED") {
        Ok(seed) => vec![seed.parse()?],
        Err(_) => (1..=10).collect(),
    };
    for seed in seeds {
        for path in [DataPath::Auto, DataPath::Stream] {
            disturbed(seed, path).with_context(|| format!("CONNECT_SEED={seed}, {path:?}"))?;
        }
    }
    Ok(())
}

fn disturbed(seed: u64, path: DataPath) -> Result<()> {
    const LEN: usize = 50_000;
    let connector = |seed| -> Result<_> {
        let (transport, control) = Plan::random(seed).over(LocalConfig::default().data_path(path).factory());
        let builder = Connector::builder().default_deadline(Duration::from_millis(200));
        Ok((builder.transport(transport).build()?, control))
    };
    let ((a, of_a), (b, of_b)) = (connector(seed)?, connector(!seed)?);
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    let (mut reading, mut writing) = (Vec::new(), Vec::new());
    for byte in 1..=8 {
        if let Ok(offer) = a.create_readable(vec![byte; LEN]).wait() {
            reading.push((byte, b.begin_read(offer.metadata(), vec![0u8; LEN])));
            readable.push(offer);
        }
        if let Ok(offer) = a.create_writable(vec![0; LEN]).wait() {
            writing.push(b.begin_write(vec![byte; LEN], offer.metadata()));
            writable.push((byte, offer));
        }
    }
    for (byte, begun) in reading {
        if let Ok(operation) = begun.wait()
            && let Ok(received) = operation.wait_for_completion().wait()
        {
            ensure!(received.memory == vec![byte; LEN], "read {byte} is wrong");
        }
    }
    for begun in writing {
        let written = begun.wait().and_then(|operation| operation.wait_for_completion().wait());
        ensure!(!matches!(written, Err(Error::ShutDown)), "{written:?}");
    }
    for (byte, operation) in writable {
        if let Ok(received) = operation.wait_for_completion().wait() {
            ensure!(received.memory == vec![byte; LEN], "write {byte} is wrong");
        }
    }
    for operation in readable {
        let ended = operation.wait_for_completion().wait();
        ensure!(!matches!(ended, Err(Error::ShutDown)), "{ended:?}");
    }
    of_a.heal();
    of_b.heal();
    for connector in [&a, &b] {
        at_rest(connector)?;
        let stats = connector.stats();
        ensure!(stats.completed + stats.failed + stats.cancelled == stats.started, "{stats:?}");
    }
    a.shutdown(PATIENCE).wait()?;
    b.shutdown(PATIENCE).wait()?;
    Ok(())
}
