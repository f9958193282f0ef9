//! P5: metadata is untrusted input. Whatever a document holds, the answer is a typed error or a correct
//! transfer, and both sides serve good peers afterwards.
#![expect(clippy::unwrap_used, reason = "what is here is called by tests only, which a macro makes")]

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use connect_core::transport::TransportError;
use connect_core::{Connector, Error, ErrorCategory, MetadataError, RdmaMetadata};
use connect_tests::child::Worker;
use connect_tests::lab::{Lab, PATIENCE};
use connect_tests::process::{eventually, signal};
use connect_tests::{memory, pattern};
use data_encoding::BASE64;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde_json::{Value, json};

connect_tests::for_each_transport!(
    p5_documents_that_are_none_are_refused_by_name,
    p5_descriptors_that_can_t_be_are_refused_by_name,
    p8_memory_that_was_not_offered_is_not_reached,
    p5_a_blob_with_flipped_bits_moves_nothing_wrong,
    p5_text_around_a_blob_that_is_damaged_is_refused,
    p5_bombs_and_giants_cost_little,
    p5_metadata_of_another_transport_is_refused_by_name,
    a_wrong_key_completes_nothing,
    a_peer_that_was_killed_before_is_a_typed_error,
    a_peer_that_is_killed_while_it_offers_never_hangs_its_reader,
    a_peer_that_is_killed_while_it_is_active_leaves_the_offer_usable_or_ended,
    a_peer_that_is_killed_afterwards_takes_nothing_with_it,
);

/// What a good document of the tests below offers.
const LEN: usize = 5000;

/// Long enough for a good transfer on a loaded machine, short enough to wait for it a hundred times.
const BRIEF: Duration = Duration::from_secs(3);

/// Beyond this an answer counts as a hang: deadlines are a few seconds, and no call may go on much longer.
const HANG: Duration = Duration::from_secs(20);

/// A connector that gets hostile documents, and the process whose good documents they are made of.
struct Arena {
    lab: Lab,
    connector: Connector,
    worker: Worker,
    seed: u64,
}

/// Makes a good document a bad one.
type Edit = fn(&mut Value);

/// What became of a document.
#[derive(Debug)]
enum Fate {
    Refused(MetadataError),
    Failed(Error),
    /// Every byte is right.
    Transferred,
}

impl Arena {
    fn new(lab: &Lab) -> Result<Self> {
        Ok(Self { lab: *lab, connector: lab.connector()?, worker: lab.worker()?, seed: 0 })
    }

    /// A fresh good document, to be read.
    fn good(&mut self) -> Result<Value> {
        self.seed += 1;
        let (_, metadata) = self.worker.offer("readable", &[LEN], self.seed)?;
        Ok(serde_json::from_str(&metadata)?)
    }

    /// Reads what a document offers, with memory that fits it. Fails on wrong bytes, and on hangs.
    fn read(&self, document: &str) -> Result<Fate> {
        let started = Instant::now();
        let fate = self.read_unhurried(document);
        ensure!(started.elapsed() < HANG, "{:?} for {}", started.elapsed(), shortened(document));
        fate
    }

    fn read_unhurried(&self, document: &str) -> Result<Fate> {
        let metadata = match RdmaMetadata::from_json(document) {
            Ok(metadata) => metadata,
            Err(error) => return Ok(Fate::Refused(error)),
        };
        // What claims to be larger than anything offered here is not worth the memory.
        let lengths: Vec<usize> =
            metadata.regions().iter().map(|region| region.len().min(1 << 20) as usize).collect();
        let hasty = self.connector.with_deadline(BRIEF);
        let result = hasty.begin_read(&metadata, memory::targets(&lengths)?).wait();
        match result.and_then(|operation| operation.wait_for_completion().wait()) {
            Ok(received) => {
                ensure!(lengths == [LEN], "{lengths:?} bytes were read of an offer of {LEN}");
                memory::check(received.memory, self.seed)?;
                Ok(Fate::Transferred)
            }
            Err(failed) => match failed.error {
                Error::Metadata(error) => Ok(Fate::Refused(error)),
                error => Ok(Fate::Failed(error)),
            },
        }
    }

    /// It must not move anything.
    fn refused(&self, what: &str, document: &str) -> Result<Fate> {
        match self.read(document).with_context(|| what.to_owned())? {
            Fate::Transferred => bail!("{what} was accepted"),
            fate => Ok(fate),
        }
    }

    /// Both sides still serve, in both directions.
    fn still_serves(&mut self) -> Result<()> {
        let connector = self.connector.with_deadline(PATIENCE);
        let document = self.good()?;
        let metadata = RdmaMetadata::from_json(&document.to_string())?;
        let received = connector.begin_read(&metadata, memory::targets(&[LEN])?).wait()?;
        memory::check(received.wait_for_completion().wait()?.memory, self.seed)?;
        let offer = connector.create_writable(memory::targets(&[LEN, 1])?).wait()?;
        let id = self.worker.begin("write", &offer.metadata().to_json(), &[LEN, 1], 7)?;
        memory::check(offer.wait_for_completion().wait()?.memory, 7)?;
        self.worker.completed(id)?;
        let calm = eventually(PATIENCE, || connector.stats().open == 0 && connector.stats().parked == 0);
        ensure!(calm, "{:?}", connector.stats());
        Ok(())
    }
}

fn shortened(document: &str) -> String {
    document.chars().take(300).collect()
}

fn decoded(document: &Value) -> Result<Vec<u8>> {
    Ok(RdmaMetadata::from_json(&document.to_string())?.decode_blob()?)
}

fn with_blob(document: &Value, blob: &[u8]) -> Result<String> {
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::new(6));
    zlib.write_all(blob)?;
    let mut document = document.clone();
    document["nixl_metadata"] = format!("b64:{}", BASE64.encode(&zlib.finish()?)).into();
    Ok(document.to_string())
}

// --- documents --------------------------------------------------------------------------------------------

fn p5_documents_that_are_none_are_refused_by_name(lab: &Lab) -> Result<()> {
    let mut arena = Arena::new(lab)?;
    let good = arena.good()?;
    let text = good.to_string();
    for end in (0..text.len()).step_by(text.len() / 60 + 1).chain([text.len() - 1]) {
        let fate = arena.refused("a document cut off", &text[..end])?;
        ensure!(matches!(fate, Fate::Refused(MetadataError::Json(_))), "cut at {end}: {fate:?}");
    }
    for text in ["", "null", "[]", "{}", "0", "\"b64:\"", "\u{feff}{}", "{\"descriptors\":", "\0\0\0"] {
        let fate = arena.refused(text, text)?;
        ensure!(matches!(fate, Fate::Refused(MetadataError::Json(_))), "{text}: {fate:?}");
    }
    let nested = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    arena.refused("deep nesting", &nested)?;
    arena.refused("deep nesting in a field", &text.replacen("\"cpu\"", &nested, 1))?;
    arena.refused("something behind it", &format!("{text}{text}"))?;

    let edits: &[(&str, Edit)] = &[
        ("an unknown field", |d| d["mystery"] = json!(1)),
        ("an unknown field in a descriptor", |d| d["descriptors"][0]["mystery"] = json!(1)),
        ("a missing key", |d| {
            d.as_object_mut().map(|fields| fields.remove("notification_key"));
        }),
        ("a missing blob", |d| {
            d.as_object_mut().map(|fields| fields.remove("nixl_metadata"));
        }),
        ("no descriptors", |d| d["descriptors"] = json!([])),
        ("descriptors as an object", |d| d["descriptors"] = json!({})),
        ("a descriptor as a list", |d| d["descriptors"] = json!([["cpu", 4096, 5000]])),
        ("an empty key", |d| d["notification_key"] = json!("")),
        ("a long key", |d| d["notification_key"] = json!("k".repeat(1 << 20))),
        ("kind 0", |d| d["operation_kind"] = json!(0)),
        ("kind 3", |d| d["operation_kind"] = json!(3)),
        ("kind -1", |d| d["operation_kind"] = json!(-1)),
        ("the other kind", |d| d["operation_kind"] = json!(2)),
        ("a kind that is text", |d| d["operation_kind"] = json!("1")),
        ("a blob that is a number", |d| d["nixl_metadata"] = json!(1)),
        ("an empty blob", |d| d["nixl_metadata"] = json!("")),
        ("null for a blob", |d| d["nixl_metadata"] = Value::Null),
    ];
    for &(what, edit) in edits {
        let mut document = good.clone();
        edit(&mut document);
        let fate = arena.refused(what, &document.to_string())?;
        ensure!(matches!(fate, Fate::Refused(_)), "{what}: {fate:?}");
    }
    arena.still_serves()
}

fn p5_descriptors_that_can_t_be_are_refused_by_name(lab: &Lab) -> Result<()> {
    let mut arena = Arena::new(lab)?;
    let good = arena.good()?;
    let fields = [
        ("ptr", json!(0)),
        ("ptr", json!(-1)),
        ("ptr", json!(u64::MAX)),
        ("ptr", json!(1.5)),
        ("ptr", json!("4096")),
        ("ptr", Value::Null),
        ("size", json!(0)),
        ("size", json!(-5000)),
        ("size", json!(u64::MAX)),
        ("size", json!(1e300)),
        ("device", json!("")),
        ("device", json!("tpu:0")),
        ("device", json!("cuda:-1")),
        ("device", json!("cuda:99999999999999999999")),
        ("device", json!(0)),
    ];
    for (field, value) in fields {
        let mut document = good.clone();
        document["descriptors"][0][field] = value.clone();
        let fate = arena.refused(&format!("{field} {value}"), &document.to_string())?;
        ensure!(matches!(fate, Fate::Refused(_)), "{field} {value}: {fate:?}");
    }
    // 2^53 is beyond what Python's floats hold; the number itself must still be read whole, or refused.
    let big = good.to_string().replacen(&format!("\"size\":{LEN}"), "\"size\":18446744073709551616", 1);
    assert!(matches!(arena.refused("a size of 2^64", &big)?, Fate::Refused(_)));
    // Each fits, but not all together.
    let mut document = good.clone();
    let half = json!({"device": "cpu", "ptr": 1, "size": u64::MAX / 2 + 1});
    document["descriptors"] = json!([half, half]);
    let fate = arena.refused("a sum of 2^64", &document.to_string())?;
    ensure!(matches!(fate, Fate::Refused(MetadataError::TotalOverflow)), "{fate:?}");
    // Two kinds of memory in one document: fine, if there were such memory.
    let mut document = good.clone();
    document["descriptors"] = json!([good["descriptors"][0], {"device": "cuda:0", "ptr": 4096, "size": 1}]);
    let fate = arena.refused("two kinds", &document.to_string())?;
    ensure!(matches!(&fate, Fate::Failed(error) if error.to_string().contains("descriptor 1")), "{fate:?}");
    arena.still_serves()
}

fn p8_memory_that_was_not_offered_is_not_reached(lab: &Lab) -> Result<()> {
    let mut arena = Arena::new(lab)?;
    let good = arena.good()?;
    let (ptr, device) = (good["descriptors"][0]["ptr"].as_u64().context("an address")?, json!("cpu"));
    let len = LEN as u64;
    // Before, after, across either end, larger, elsewhere; and twice the same, and more of them.
    let hostile = [
        (ptr - 1, len),
        (ptr + 1, len),
        (ptr - len, len),
        (ptr + len, len),
        (ptr, len + 1),
        (ptr, 1 << 20),
        (4096, len),
        (0x7fff_ffff_f000, len),
        (u64::MAX - len, len),
    ];
    for (ptr, size) in hostile {
        let mut document = good.clone();
        document["descriptors"][0] = json!({"device": device, "ptr": ptr, "size": size});
        let fate = arena.refused("memory beside the offer", &document.to_string())?;
        let Fate::Failed(error) = fate else { bail!("{ptr:#x}+{size}: {fate:?}") };
        let (category, wanted) = (error.category(), [ErrorCategory::Peer, ErrorCategory::Protocol]);
        ensure!(wanted.contains(&category) && !error.is_retryable(), "{ptr:#x}+{size}: {error}");
    }
    let mut document = good.clone();
    document["descriptors"] = json!([good["descriptors"][0], {"device": "cpu", "ptr": ptr + len, "size": 1}]);
    arena.refused("one descriptor more", &document.to_string())?;
    let mut document = good.clone();
    document["descriptors"][0]["device"] = json!("cuda:0");
    let fate = arena.refused("the same on another device", &document.to_string())?;
    ensure!(matches!(fate, Fate::Failed(_)), "{fate:?}");
    // Refused requests have not used the offer up.
    ensure!(matches!(arena.read(&good.to_string())?, Fate::Transferred));
    arena.still_serves()
}

// --- blobs ------------------------------------------------------------------------------------------------

fn p5_a_blob_with_flipped_bits_moves_nothing_wrong(lab: &Lab) -> Result<()> {
    let mut arena = Arena::new(lab)?;
    let good = arena.good()?;
    let len = decoded(&good)?.len();
    // A NIXL blob makes UCX dial the damaged address, which takes its time.
    let samples = if lab.is_nixl() { 60 } else { 120 };
    let (mut transferred, mut failed) = (0, 0);
    for sample in 0..samples.min(len) {
        // A fresh offer each time: one that completes is used up.
        let good = arena.good()?;
        let mut blob = decoded(&good)?;
        let at = sample * blob.len() / samples.min(len);
        blob[at] ^= 1 << (sample % 8);
        let fate = arena.read(&with_blob(&good, &blob)?).with_context(|| format!("byte {at} flipped"))?;
        match fate {
            Fate::Transferred => transferred += 1,
            Fate::Refused(_) | Fate::Failed(_) => failed += 1,
        }
        ensure!(arena.worker.is_alive(), "byte {at} killed the peer: {}", arena.worker.stderr());
    }
    ensure!(failed > 0, "{transferred} damaged blobs, and none was refused");
    arena.still_serves()
}

fn p5_text_around_a_blob_that_is_damaged_is_refused(lab: &Lab) -> Result<()> {
    let mut arena = Arena::new(lab)?;
    let good = arena.good()?;
    let text = good["nixl_metadata"].as_str().context("a blob")?.to_owned();
    for sample in 0..40 {
        let at = sample * text.len() / 40;
        let mut bytes = text.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let mut document = good.clone();
        document["nixl_metadata"] = String::from_utf8(bytes)?.into();
        // The bits that fill up a deflate stream's last byte mean nothing: then it is the same blob.
        let changed =
            RdmaMetadata::from_json(&document.to_string()).ok().and_then(|it| it.decode_blob().ok());
        if changed.is_some_and(|changed| Some(changed) == decoded(&good).ok()) {
            continue;
        }
        let fate = arena.refused("a changed character", &document.to_string())?;
        ensure!(matches!(fate, Fate::Refused(MetadataError::Encoding { .. })), "character {at}: {fate:?}");
    }
    for end in (4..text.len()).step_by(text.len() / 20 + 1) {
        let mut document = good.clone();
        document["nixl_metadata"] = text[..end].into();
        let fate = arena.refused("a blob cut off", &document.to_string())?;
        ensure!(matches!(fate, Fate::Refused(MetadataError::Encoding { .. })), "cut at {end}: {fate:?}");
    }
    let blob = decoded(&good)?;
    for end in (0..blob.len()).step_by(blob.len() / 25 + 1).chain([blob.len() - 1]) {
        let fate = arena.refused("blob bytes cut off", &with_blob(&good, &blob[..end])?)?;
        let Fate::Failed(Error::Transport { source: TransportError::Protocol(_), .. }) = &fate else {
            bail!("cut at {end}: {fate:?}");
        };
    }
    arena.refused("bytes behind the blob", &with_blob(&good, &[&blob[..], &[0]].concat())?)?;
    let mut state = 7u64;
    for len in [0, 1, 10, 300, 5000] {
        let random: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(len)
        .collect();
        arena.refused("random bytes", &with_blob(&good, &random)?)?;
        arena.refused("a marker and random bytes", &with_blob(&good, &[&blob[..11], &random].concat())?)?;
    }
    arena.still_serves()
}

fn p5_bombs_and_giants_cost_little(lab: &Lab) -> Result<()> {
    let mut arena = Arena::new(lab)?;
    let good = arena.good()?;
    let fate = arena.refused("a zip bomb", &with_blob(&good, &vec![0; 300 << 20])?)?;
    ensure!(matches!(fate, Fate::Refused(MetadataError::TooLarge { .. })), "{fate:?}");
    let mut document = good.clone();
    document["nixl_metadata"] = "b64:".to_owned().into();
    let long = document.to_string().replacen("b64:", &"A".repeat(64 << 20), 1);
    let fate = arena.refused("64 MiB", &long)?;
    ensure!(matches!(fate, Fate::Refused(MetadataError::TooLarge { .. })), "{fate:?}");
    let one = good["descriptors"][0].to_string();
    let many = good.to_string().replacen(&one, &vec![one.as_str(); 70_000].join(","), 1);
    let fate = arena.refused("70,000 descriptors", &many)?;
    ensure!(
        matches!(fate, Fate::Refused(MetadataError::TooManyDescriptors { count: 70_000, .. })),
        "{fate:?}"
    );
    arena.still_serves()
}

fn p5_metadata_of_another_transport_is_refused_by_name(lab: &Lab) -> Result<()> {
    let mut arena = Arena::new(lab)?;
    for transport in connect_tests::lab::Transport::available() {
        let other = Lab::new(transport, env!("CARGO_BIN_EXE_worker"));
        if other.is_nixl() == lab.is_nixl() {
            continue;
        }
        let connector = other.connector()?;
        let offer = connector.create_readable(vec![1u8; LEN]).wait()?;
        let fate = arena.refused("metadata of another transport", &offer.metadata().to_json())?;
        let Fate::Failed(error @ Error::Transport { source: TransportError::Protocol(_), .. }) = &fate else {
            bail!("{fate:?}");
        };
        let text = error.to_string().to_lowercase();
        ensure!(text.contains("`local`") && text.contains("nixl"), "{text}");
    }
    arena.still_serves()
}

fn a_wrong_key_completes_nothing(lab: &Lab) -> Result<()> {
    let mut arena = Arena::new(lab)?;
    let mut document = arena.good()?;
    let key = std::mem::replace(&mut document["notification_key"], json!("another key"));
    let fate = arena.read(&document.to_string())?;
    if arena.lab.is_nixl() {
        // The memory is reachable, the key is what completes the offer; nothing else does (P7).
        ensure!(matches!(fate, Fate::Transferred), "{fate:?}");
    } else {
        let Fate::Failed(Error::Transport { source: TransportError::Refused(_), .. }) = &fate else {
            bail!("{fate:?}");
        };
    }
    let stats = arena.worker.ask(json!({"do": "stats"}), "stats")?;
    ensure!(stats["completed"] == 0 && stats["open"] == 1, "{stats}");
    document["notification_key"] = key;
    ensure!(matches!(arena.read(&document.to_string())?, Fate::Transferred));
    arena.still_serves()
}

// --- peers that die ---------------------------------------------------------------------------------------

/// Moving this takes long enough to be killed meanwhile.
const LARGE: usize = 384 << 20;

#[track_caller]
fn is_loss(error: &Error) {
    assert!(matches!(error, Error::Transport { .. }), "{error:?}");
    let category = error.category();
    assert!([ErrorCategory::Peer, ErrorCategory::Transport].contains(&category), "{category}: {error}");
    assert!(error.is_retryable(), "{error}");
}

fn a_peer_that_was_killed_before_is_a_typed_error(lab: &Lab) -> Result<()> {
    let connector = lab.connector()?;
    for known in [false, true] {
        let mut worker = lab.worker()?;
        if known {
            let (id, metadata) = worker.offer("readable", &[10], 1)?;
            let metadata = RdmaMetadata::from_json(&metadata)?;
            connector.begin_read(&metadata, vec![0u8; 10]).wait()?.wait_for_completion().wait()?;
            worker.completed(id)?;
        }
        let readable = RdmaMetadata::from_json(&worker.offer("readable", &[LEN], 2)?.1)?;
        let writable = RdmaMetadata::from_json(&worker.offer("writable", &[LEN], 3)?.1)?;
        worker.kill();
        let started = Instant::now();
        let read = connector.begin_read(&readable, vec![0u8; LEN]).wait();
        let failed = read.and_then(|operation| operation.wait_for_completion().wait()).unwrap_err();
        is_loss(&failed.error);
        let written = connector.begin_write(vec![0u8; LEN], &writable).wait();
        is_loss(&written.and_then(|operation| operation.wait_for_completion().wait()).unwrap_err());
        ensure!(started.elapsed() < HANG, "known: {known}, {:?}", started.elapsed());
    }
    let calm = eventually(PATIENCE, || connector.stats().open == 0 && connector.stats().parked == 0);
    ensure!(calm, "{:?}", connector.stats());
    Arena { lab: *lab, connector, worker: lab.worker()?, seed: 0 }.still_serves()
}

fn a_peer_that_is_killed_while_it_offers_never_hangs_its_reader(lab: &Lab) -> Result<()> {
    let connector = lab.connector()?;
    let mut lost = 0;
    for delay in [0, 5, 15] {
        let mut worker = lab.worker()?;
        let small = RdmaMetadata::from_json(&worker.offer("readable", &[10], 1)?.1)?;
        connector.begin_read(&small, vec![0u8; 10]).wait()?.wait_for_completion().wait()?;
        let readable = RdmaMetadata::from_json(&worker.offer("readable", &[LARGE], 2)?.1)?;
        let writable = RdmaMetadata::from_json(&worker.offer("writable", &[LARGE], 3)?.1)?;
        let source = pattern::bytes(LARGE, 3);
        let reading = connector.begin_read(&readable, vec![0u8; LARGE]);
        let writing = connector.begin_write(source, &writable);
        std::thread::sleep(Duration::from_millis(delay));
        signal(worker.pid(), "KILL")?;
        let started = Instant::now();
        match reading.wait().and_then(|operation| operation.wait_for_completion().wait()) {
            Ok(received) => pattern::check(&received.memory, 2),
            Err(failed) => {
                is_loss(&failed.error);
                lost += 1;
            }
        }
        if let Err(error) = writing.wait().and_then(|operation| operation.wait_for_completion().wait()) {
            is_loss(&error);
            lost += 1;
        }
        ensure!(started.elapsed() < HANG, "{:?}", started.elapsed());
        let calm = eventually(PATIENCE, || connector.stats().open == 0 && connector.stats().parked == 0);
        ensure!(calm, "{:?}", connector.stats());
    }
    ensure!(lost > 0, "no peer was killed in time");
    Arena { lab: *lab, connector, worker: lab.worker()?, seed: 0 }.still_serves()
}

fn a_peer_that_is_killed_while_it_is_active_leaves_the_offer_usable_or_ended(lab: &Lab) -> Result<()> {
    let connector = lab.connector()?;
    let readable = connector.create_readable(pattern::bytes(LARGE, 4)).wait()?;
    let writable = connector.create_writable(vec![0u8; LARGE]).wait()?;
    let mut worker = lab.worker()?;
    worker.begin("read", &readable.metadata().to_json(), &[LARGE], 4)?;
    worker.begin("write", &writable.metadata().to_json(), &[LARGE], 5)?;
    std::thread::sleep(Duration::from_millis(150));
    worker.kill();
    // Each offer is complete, or ended because its taker is known to be lost, or open; then the next is served.
    std::thread::sleep(Duration::from_millis(200));
    let mut worker = lab.worker()?;
    if !readable.status().is_final() {
        let id = worker.begin("read", &readable.metadata().to_json(), &[LARGE], 4)?;
        worker.completed(id)?;
    }
    if let Err(error) = readable.wait_for_completion().wait() {
        assert!(error.is_retryable() && error.to_string().contains("peer lost"), "{error}");
    }
    if !writable.status().is_final() {
        let id = worker.begin("write", &writable.metadata().to_json(), &[LARGE], 5)?;
        worker.completed(id)?;
    }
    match writable.wait_for_completion().wait() {
        Ok(received) => pattern::check(&received.memory, 5),
        Err(failed) => assert!(failed.error.to_string().contains("peer lost"), "{failed}"),
    }
    Arena { lab: *lab, connector, worker, seed: 0 }.still_serves()
}

fn a_peer_that_is_killed_afterwards_takes_nothing_with_it(lab: &Lab) -> Result<()> {
    let mut arena = Arena::new(lab)?;
    arena.still_serves()?;
    let waiting = arena.connector.create_readable(pattern::bytes(LEN, 1)).wait()?;
    arena.worker.kill();
    arena.worker = lab.worker()?;
    let id = arena.worker.begin("read", &waiting.metadata().to_json(), &[LEN], 1)?;
    waiting.wait_for_completion().wait()?;
    arena.worker.completed(id)?;
    arena.still_serves()
}

// --- what is missing --------------------------------------------------------------------------------------

#[cfg(feature = "nixl")]
#[test]
fn a_nixl_library_that_is_not_there_is_named() {
    use connect_core::transport::nixl::NixlConfig;
    let error = Connector::builder().nixl(NixlConfig::default().library("/nowhere")).build().unwrap_err();
    assert!(matches!(&error, Error::Start { source: TransportError::Unavailable(_) }), "{error:?}");
    assert!(error.to_string().contains("/nowhere"), "{error}");
    assert_eq!(error.category(), ErrorCategory::Local);
}
