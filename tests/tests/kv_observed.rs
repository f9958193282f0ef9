//! What hand-offs tell whoever watches: each metric moves for what it stands for and for nothing else, spans say who
//! moved what for whom, and one line sums it up.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connect_core::blocks::BlockLease;
use connect_core::kv::{
    HandOff, HandOffConfig, KvError, KvIdentity, KvLayout, KvPool, KvTicket, Outcome, PushPlan, metrics,
};
use connect_core::transport::TransportError;
use connect_core::transport::fault::{Call, Hold, Plan};
use connect_core::{Connector, DType};
use connect_tests::lab::PATIENCE;
use connect_tests::process::eventually;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

const BLOCKS: u32 = 32;
const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(80);

// --- who watches ----------------------------------------------------------------------------------------

/// A program has one recorder and one subscriber, so the tests take turns.
struct Watch {
    snapshots: &'static Snapshotter,
    counters: BTreeMap<String, u64>,
    gauges: BTreeMap<String, f64>,
    histograms: BTreeMap<String, Vec<f64>>,
    /// Metrics with a unit and a description.
    described: usize,
    _turn: MutexGuard<'static, ()>,
}

impl Watch {
    fn begin() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        static RECORDER: OnceLock<Snapshotter> = OnceLock::new();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshots = RECORDER.get_or_init(|| {
            let recorder = DebuggingRecorder::new();
            let snapshots = recorder.snapshotter();
            recorder.install().expect("the first recorder");
            tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Log))
                .expect("the first subscriber");
            snapshots
        });
        // What others left.
        drop(snapshots.snapshot());
        log().clear();
        let (counters, gauges, histograms) = Default::default();
        Self { snapshots, counters, gauges, histograms, described: 0, _turn: turn }
    }

    /// Adds up what has come since the last look.
    fn look(&mut self) {
        self.described = 0;
        for (key, unit, description, value) in self.snapshots.snapshot().into_vec() {
            self.described += usize::from(unit.is_some() && description.is_some());
            let (_, key) = key.into_parts();
            let labels = key.labels().filter(|label| label.key() != "engine");
            let name = labels.fold(key.name().to_owned(), |name, label| format!("{name} {}", label.value()));
            match value {
                DebugValue::Counter(count) => *self.counters.entry(name).or_default() += count,
                DebugValue::Gauge(value) => *self.gauges.entry(name).or_default() = value.0,
                DebugValue::Histogram(values) => {
                    self.histograms.entry(name).or_default().extend(values.iter().map(|value| value.0));
                }
            }
        }
    }

    /// Gauges of this engine, all others being gone.
    fn levels(&mut self, engine: &HandOff) -> [f64; 5] {
        self.look();
        self.gauges.clear();
        engine.publish_metrics();
        for (key, _, _, value) in self.snapshots.snapshot().into_vec() {
            let (_, key) = key.into_parts();
            let is_its = key.labels().any(|label| label.value() == engine.engine());
            if let (true, DebugValue::Gauge(value)) = (is_its, value) {
                let state = key.labels().find(|label| label.key() == "state").map(|label| label.value());
                self.gauges.insert(format!("{} {}", key.name(), state.unwrap_or_default()), value.0);
            }
        }
        [
            "kv_leases_active ",
            "kv_blocks free",
            "kv_blocks leased",
            "kv_blocks in_flight",
            "kv_blocks quarantined",
        ]
        .map(|name| self.gauges.get(name).copied().unwrap_or(f64::NAN))
    }

    /// Waits until they are these: leases, and blocks free, leased, in flight and quarantined.
    fn levels_come_to(&mut self, engine: &HandOff, levels: [f64; 5]) -> Result<()> {
        ensure!(eventually(PATIENCE, || self.levels(engine) == levels), "{levels:?}: {:?}", self.gauges);
        Ok(())
    }

    fn counter(&mut self, name: &str) -> u64 {
        self.look();
        self.counters.get(name).copied().unwrap_or_default()
    }

    /// Waits until a counter has come to this.
    fn comes_to(&mut self, name: &str, count: u64) -> Result<()> {
        ensure!(eventually(PATIENCE, || self.counter(name) == count), "{name}: {:?}", self.counters);
        Ok(())
    }

    /// Failures by kind, of those that there are.
    fn failures(&mut self) -> Vec<(String, u64)> {
        self.look();
        let failures =
            self.counters.iter().filter(|(name, count)| name.starts_with("kv_failures") && **count > 0);
        failures.map(|(name, count)| (name["kv_failures_total ".len()..].to_owned(), *count)).collect()
    }

    fn histogram(&mut self, name: &str) -> Vec<f64> {
        self.look();
        self.histograms.get(name).cloned().unwrap_or_default()
    }
}

/// Spans and lines of this crate, as text: `parent > span{field=value ...}`, and `INFO message`.
fn log() -> MutexGuard<'static, Vec<String>> {
    static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Log;

#[derive(Default)]
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push_str(&format!(" {}={value:?}", field.name()));
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: LayerContext<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: LayerContext<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_close(&self, id: Id, context: LayerContext<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let parent = span.parent().map(|parent| format!("{} > ", parent.name())).unwrap_or_default();
        let fields = span.extensions().get::<Fields>().map(|fields| fields.0.clone()).unwrap_or_default();
        log().push(format!("{parent}{}{{{}}}", span.name(), fields.trim()));
    }

    fn on_event(&self, event: &tracing::Event<'_>, _: LayerContext<'_, S>) {
        if *event.metadata().level() == tracing::Level::INFO {
            let mut fields = Fields::default();
            event.record(&mut fields);
            log().push(format!("INFO{}", fields.0));
        }
    }
}

fn logged(what: impl Fn(&str) -> bool) -> bool {
    let found = eventually(PATIENCE, || log().iter().any(|line| what(line)));
    if !found {
        log().iter().for_each(|line| eprintln!("{line}"));
    }
    found
}

// --- engines --------------------------------------------------------------------------------------------

fn over(connector: &Connector, lease: Duration) -> Result<HandOff> {
    let layout = KvLayout::new(2, BLOCKS, 4, 2, 8, DType::F32);
    let pool = KvPool::new(connector, KvIdentity::new("m", "w"), layout).wait()?;
    Ok(HandOff::start(pool, HandOffConfig::default().lease(lease).deadline(PATIENCE))?)
}

fn engine(lease: Duration) -> Result<HandOff> {
    over(&Connector::local()?, lease)
}

fn faulty(plan: Plan) -> Result<(HandOff, Connector)> {
    let connector = Connector::builder().transport(plan.over_local().0).default_deadline(PATIENCE).build()?;
    Ok((over(&connector, LONG)?, connector))
}

fn meet(a: &HandOff, b: &HandOff) -> Result<()> {
    a.meet(&b.pool().card().wait()?)?;
    Ok(b.meet(&a.pool().card().wait()?)?)
}

fn blocks(engine: &HandOff, count: u32) -> Result<BlockLease> {
    Ok(engine.pool().blocks().take(count)?)
}

fn sent(ticket: &KvTicket) -> Result<KvTicket> {
    Ok(KvTicket::from_json(&ticket.to_json())?)
}

// --- metrics --------------------------------------------------------------------------------------------

#[test]
fn a_good_hand_off_moves_what_it_should_and_no_failure() -> Result<()> {
    let mut watch = Watch::begin();
    let (p, d) = (engine(LONG)?, engine(LONG)?);
    meet(&p, &d)?;
    ensure!(
        eventually(PATIENCE, || watch.histogram(metrics::HANDSHAKE_SECONDS).len() == 2),
        "both connected"
    );
    assert!(watch.counters.values().all(|count| *count == 0), "{:?}", watch.counters);

    let offer = p.offer("r", blocks(&p, 5)?, 18, Some(42)).wait()?;
    watch.levels_come_to(&p, [1.0, 27.0, 0.0, 5.0, 0.0])?;
    let fetched = d.track(sent(offer.ticket())?)?.fetch(blocks(&d, 5)?).wait()?;
    watch.levels_come_to(&d, [0.0, 27.0, 5.0, 0.0, 0.0])?;
    assert_eq!(offer.ended().wait()?, Outcome::Delivered);
    let report = fetched.reports.first().context("one chunk")?.clone();
    watch.comes_to("kv_bytes_total out", report.bytes)?;
    assert_eq!(watch.counter("kv_bytes_total in"), report.bytes);
    assert_eq!(watch.histogram(metrics::TRANSFER_SECONDS), [report.transfer.as_secs_f64()]);
    assert_eq!(watch.histogram(metrics::POST_SECONDS), [report.posting.as_secs_f64()]);
    assert_eq!(watch.histogram(metrics::QUEUE_SECONDS), [report.queued.as_secs_f64()]);
    assert_eq!(watch.histogram(metrics::DESCRIPTORS), [report.descriptors as f64]);
    drop(fetched);
    for engine in [&p, &d] {
        watch.levels_come_to(engine, [0.0, f64::from(BLOCKS), 0.0, 0.0, 0.0])?;
    }
    assert_eq!(watch.failures(), []);
    assert_eq!((watch.counter(metrics::LEASES_EXPIRED), watch.counter(metrics::LATE_NOTIFICATIONS)), (0, 0));
    assert!(watch.described >= 18, "every series has a unit and a description: {}", watch.described);
    Ok(())
}

#[test]
fn a_push_is_measured_by_who_pushes_and_its_bytes_are_counted_on_both_sides() -> Result<()> {
    let mut watch = Watch::begin();
    let (p, d) = (engine(LONG)?, engine(LONG)?);
    meet(&p, &d)?;
    let expected = d.expect(&p.engine(), "r", blocks(&d, 4)?, PushPlan::Whole).wait()?;
    let report = p.push(expected.ticket(), 0, blocks(&p, 4)?).wait()?;
    expected.fetched().wait()?;
    watch.comes_to("kv_bytes_total in", report.bytes)?;
    watch.comes_to("kv_bytes_total out", report.bytes)?;
    assert_eq!(watch.histogram(metrics::TRANSFER_SECONDS), [report.transfer.as_secs_f64()]);
    assert_eq!((p.summary().transfers, d.summary().transfers), (1, 0));
    assert_eq!(watch.failures(), []);
    Ok(())
}

#[test]
fn a_transfer_that_fails_is_a_failure_of_its_taker_and_a_cancel_of_its_owner() -> Result<()> {
    let mut watch = Watch::begin();
    let lost = TransportError::PeerLost("as planned".to_owned());
    let (p, (d, _)) = (engine(LONG)?, faulty(Plan::new().fail(Call::Begin, 1, lost))?);
    meet(&p, &d)?;
    let offer = p.offer("r", blocks(&p, 2)?, 8, None).wait()?;
    let failed =
        d.track(sent(offer.ticket())?)?.fetch(blocks(&d, 2)?).wait().err().context("it was to fail")?;
    assert!(matches!(failed.error, KvError::Transfer(_)), "{failed}");
    assert!(matches!(offer.ended().wait()?, Outcome::Aborted | Outcome::Failed));
    ensure!(eventually(PATIENCE, || watch.failures().iter().map(|(_, count)| count).sum::<u64>() == 2));
    let failures = watch.failures();
    assert!(failures.iter().any(|(kind, count)| kind == "transfer" && *count >= 1), "{failures:?}");
    assert!(watch.histogram(metrics::TRANSFER_SECONDS).is_empty());
    assert_eq!(watch.counter("kv_bytes_total in"), 0);
    assert_eq!(d.summary().failed, 1);
    Ok(())
}

#[test]
fn an_expired_lease_and_who_comes_after_it_are_counted() -> Result<()> {
    let mut watch = Watch::begin();
    let (p, d) = (engine(SHORT)?, engine(SHORT)?);
    meet(&p, &d)?;
    let offer = p.offer("r", blocks(&p, 2)?, 8, None).wait()?;
    let ticket = sent(offer.ticket())?;
    assert_eq!(offer.ended().wait()?, Outcome::Expired);
    watch.comes_to(metrics::LEASES_EXPIRED, 1)?;
    assert_eq!(watch.failures(), [("lease".to_owned(), 1)]);
    assert_eq!(watch.counter(metrics::LATE_NOTIFICATIONS), 0);

    let tracked = d.track(ticket)?;
    ensure!(
        eventually(PATIENCE, || watch.counter(metrics::LATE_NOTIFICATIONS) >= 1),
        "its first beat is late"
    );
    let failed = tracked.fetch(blocks(&d, 2)?).wait().err().context("it is gone")?;
    ensure!(
        watch.failures().iter().map(|(_, count)| count).sum::<u64>() == 2,
        "{failed}: {:?}",
        watch.failures()
    );
    assert_eq!(watch.counter(metrics::LEASES_EXPIRED), 1, "the owner's, and only once");
    assert_eq!((p.summary().expired, d.summary().expired), (1, 0));
    assert!(p.summary().late >= 1);
    Ok(())
}

#[test]
fn blocks_that_are_not_quiet_yet_show_as_quarantined() -> Result<()> {
    let mut watch = Watch::begin();
    let hours = Hold::For(Duration::from_secs(3600));
    let (d, connector) = faulty(Plan::new().stall(1, hours).busy(1, Hold::For(Duration::from_millis(1500))))?;
    let p = engine(LONG)?;
    meet(&p, &d)?;
    let offer = p.offer("r", blocks(&p, 3)?, 12, None).wait()?;
    let mut fetching = d.track(sent(offer.ticket())?)?.fetch(blocks(&d, 3)?);
    // Polled until the read is under way, and then dropped.
    let under_way = eventually(PATIENCE, || {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let polled = std::pin::Pin::new(&mut fetching).poll(&mut context);
        polled.is_pending() && connector.stats().open == 1
    });
    ensure!(under_way);
    watch.levels_come_to(&d, [0.0, 29.0, 0.0, 3.0, 0.0])?;
    drop(fetching);
    watch.levels_come_to(&d, [0.0, 29.0, 0.0, 0.0, 3.0])?;
    watch.levels_come_to(&d, [0.0, 32.0, 0.0, 0.0, 0.0])?;
    Ok(())
}

#[test]
fn peers_that_do_not_fit_or_are_gone_are_failed_handshakes_and_messages() -> Result<()> {
    let mut watch = Watch::begin();
    let d = engine(LONG)?;
    let layout = KvLayout::new(3, BLOCKS, 4, 2, 8, DType::F32);
    let other = KvPool::new(&Connector::local()?, KvIdentity::new("m", "w"), layout).wait()?;
    assert!(matches!(d.meet(&other.card().wait()?), Err(KvError::Incompatible { .. })));
    assert_eq!(watch.failures(), [("handshake".to_owned(), 1)]);

    let (p, connector) = {
        let connector = Connector::local()?;
        (over(&connector, LONG)?, connector)
    };
    meet(&p, &d)?;
    let offer = p.offer("r", blocks(&p, 2)?, 8, None).wait()?;
    let (ticket, card) = (sent(offer.ticket())?, p.pool().card().wait()?);
    connector.shutdown(PATIENCE).wait()?;
    drop((offer, p));
    // Its connector is gone: nobody answers a connection or a message.
    let tracked = d.track(ticket)?;
    ensure!(eventually(PATIENCE, || watch.counter("kv_failures_total notify") >= 1), "{:?}", watch.counters);
    d.meet(&card)?;
    watch.comes_to("kv_failures_total handshake", 2)?;
    drop(tracked);
    Ok(())
}

// --- spans, and the line --------------------------------------------------------------------------------

#[test]
fn spans_say_who_moved_what_for_whom_and_operations_are_inside_of_them() -> Result<()> {
    let _watch = Watch::begin();
    let (p, d) = (engine(LONG)?, engine(LONG)?);
    meet(&p, &d)?;
    let offer = p.offer("request-7", blocks(&p, 5)?, 18, None).wait()?;
    let fetched = d.track(sent(offer.ticket())?)?.fetch(blocks(&d, 5)?).wait()?;
    assert_eq!(offer.ended().wait()?, Outcome::Delivered);
    let bytes = fetched.reports.iter().map(|report| report.bytes).sum::<u64>();
    let descriptors = fetched.reports.iter().map(|report| report.descriptors).sum::<usize>();
    let transfer = format!(
        "kv.transfer{{request=\"request-7\" peer=\"{}\" mode=\"pull\" transport=\"local\" bytes={bytes} \
         descriptors={descriptors}}}",
        p.engine()
    );
    ensure!(logged(|line| line == transfer), "{transfer}");
    ensure!(logged(|line| line.starts_with("kv.transfer > connect{operation=read")));
    ensure!(logged(|line| line == "kv.offer{request=\"request-7\" blocks=5 tokens=18}"));
    ensure!(logged(|line| line.starts_with("kv.offer > connect{operation=readable")));
    ensure!(logged(|line| line == format!("kv.handshake{{peer=\"{}\"}}", p.engine())));
    ensure!(logged(|line| line.starts_with("kv.handshake > connect{operation=connect")));

    let expected = d.expect(&p.engine(), "request-8", blocks(&d, 4)?, PushPlan::Whole).wait()?;
    p.push(expected.ticket(), 0, blocks(&p, 4)?).wait()?;
    expected.fetched().wait()?;
    for (peer, operation) in [(&d, "write"), (&p, "writable")] {
        let of = format!("kv.transfer{{request=\"request-8\" peer=\"{}\" mode=\"push\"", peer.engine());
        ensure!(logged(|line| line.starts_with(&of) && line.contains(" bytes=")), "{of}");
        ensure!(logged(|line| line.starts_with(&format!("kv.transfer > connect{{operation={operation} "))));
    }
    Ok(())
}

#[test]
fn one_line_for_each_interval_with_transfers_and_none_for_others() -> Result<()> {
    let _watch = Watch::begin();
    let often = HandOffConfig::default().deadline(PATIENCE).summary_every(Duration::from_millis(100));
    let d = HandOff::start(engine(LONG)?.pool().clone(), often)?;
    let p = engine(LONG)?;
    meet(&p, &d)?;
    let lines =
        || log().iter().filter(|line| line.starts_with("INFO") && line.contains("KV transfers")).count();
    for round in 1..=2 {
        let offer = p.offer("r", blocks(&p, 2)?, 8, None).wait()?;
        d.track(sent(offer.ticket())?)?.fetch(blocks(&d, 2)?).wait()?;
        ensure!(logged(|line| line.starts_with("INFO message=KV transfers: 1 transfers in ")));
        ensure!(eventually(PATIENCE, || lines() == round), "one line each");
        // Three intervals in which there is nothing to say.
        std::thread::sleep(Duration::from_millis(300));
        ensure!(lines() == round, "and no other");
    }
    let (summary, began) = (d.summary(), Instant::now());
    assert_eq!((summary.transfers, summary.failed, summary.late), (2, 0, 0));
    assert!(summary.speeds.per_transfer > 0.0 && summary.speeds.aggregate > 0.0, "{summary}");
    assert!(summary.to_string().contains("GB/s per transfer") && began.elapsed() < PATIENCE);
    Ok(())
}
