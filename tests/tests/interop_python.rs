//! Against the Python original, unchanged: `dynamo.nixl_connect` of ai-dynamo-runtime, over real NIXL.
#![cfg(feature = "nixl")]

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connect_core::transport::nixl::NixlConfig;
use connect_core::{Connector, DType, Error, ErrorCategory, MediaDescriptor, RdmaMetadata};
use connect_tests::child::{Shared, Worker};
use connect_tests::{memory, pattern, require};
use serde_json::{Value, json};

/// One byte, a page, no alignment at all, several of unequal length, and one of several slices.
const LENGTHS: &[&[usize]] = &[&[1], &[4096], &[65_537], &[3, 100_000, 17, 4096, 1], &[40_000_003]];

/// The peer that nearly every test here talks to, and a connector; `None` where NIXL or Python is missing.
fn peers() -> Result<Option<(Connector, Shared)>> {
    if !require::nixl() {
        return Ok(None);
    }
    let Some(python) = Shared::python()? else { return Ok(None) };
    Ok(Some((connector()?, python)))
}

fn connector() -> Result<Connector> {
    Ok(Connector::builder().nixl(NixlConfig::default()).build()?)
}

fn read(rust: &Connector, metadata: &RdmaMetadata, lengths: &[usize], seed: u64) -> Result<()> {
    let operation = rust.begin_read(metadata, memory::targets(lengths)?).wait().map_err(Error::from)?;
    let received = operation.wait_for_completion().wait().map_err(Error::from)?;
    ensure!(received.report.bytes == lengths.iter().sum::<usize>() as u64);
    memory::check(received.memory, seed)
}

// --- the four pairings ----------------------------------------------------------------------------------

#[test]
fn python_reads_what_rust_offers() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    for (lengths, seed) in LENGTHS.iter().zip([0, 10, 20, 30, 40]) {
        let offer = rust.create_readable(memory::sources(lengths, seed)?).wait()?;
        let id = python.begin("read", &offer.metadata().to_json(), lengths, seed)?;
        let report = offer.wait_for_completion().wait()?;
        python.completed(id).with_context(|| format!("{lengths:?}"))?;
        assert_eq!(report.bytes, lengths.iter().sum::<usize>() as u64);
        assert_eq!(report.descriptors, lengths.len());
        assert!(report.peer.is_some_and(|peer| peer.ends_with("-1")), "the name of a Python agent");
    }
    Ok(())
}

#[test]
fn python_writes_what_rust_offers() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    for (lengths, seed) in LENGTHS.iter().zip([1, 11, 21, 31, 41]) {
        let offer = rust.create_writable(memory::targets(lengths)?).wait().map_err(Error::from)?;
        let id = python.begin("write", &offer.metadata().to_json(), lengths, seed)?;
        let received = offer.wait_for_completion().wait().map_err(Error::from)?;
        python.completed(id)?;
        memory::check(received.memory, seed).with_context(|| format!("{lengths:?}"))?;
        assert_eq!(received.report.bytes, lengths.iter().sum::<usize>() as u64);
    }
    Ok(())
}

#[test]
fn rust_reads_what_python_offers() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    for (lengths, seed) in LENGTHS.iter().zip([2, 12, 22, 32, 42]) {
        let (id, metadata) = python.offer("readable", lengths, seed)?;
        read(&rust, &RdmaMetadata::from_json(&metadata)?, lengths, seed)
            .with_context(|| format!("{lengths:?}"))?;
        python.completed(id)?;
    }
    Ok(())
}

#[test]
fn rust_writes_what_python_offers() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    for (lengths, seed) in LENGTHS.iter().zip([3, 13, 23, 33, 43]) {
        let (id, metadata) = python.offer("writable", lengths, seed)?;
        let metadata = RdmaMetadata::from_json(&metadata)?;
        let operation = rust.begin_write(memory::sources(lengths, seed)?, &metadata).wait()?;
        let report = operation.wait_for_completion().wait()?;
        // Verified by Python, in its own memory.
        python.completed(id).with_context(|| format!("{lengths:?}"))?;
        assert_eq!(report.bytes, lengths.iter().sum::<usize>() as u64);
    }
    Ok(())
}

// --- what is in the tensors -----------------------------------------------------------------------------

/// Torch's dtypes of whole bytes, and their sizes.
const DTYPES: &[(&str, usize)] = &[
    ("bool", 1),
    ("uint8", 1),
    ("int8", 1),
    ("float8_e4m3fn", 1),
    ("float8_e5m2", 1),
    ("float8_e4m3fnuz", 1),
    ("float8_e5m2fnuz", 1),
    ("float8_e8m0fnu", 1),
    ("int16", 2),
    ("uint16", 2),
    ("float16", 2),
    ("bfloat16", 2),
    ("int32", 4),
    ("uint32", 4),
    ("float32", 4),
    ("complex32", 4),
    ("int64", 8),
    ("uint64", 8),
    ("float64", 8),
    ("complex64", 8),
    ("complex128", 16),
];

/// Not a multiple of anything.
const SHAPE: [usize; 3] = [3, 5, 7];

/// The bytes of a tensor of this dtype. The pattern has no booleans, so they have its lowest bits.
fn content(dtype: &str, len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = pattern::bytes(len, seed);
    if dtype == "bool" {
        bytes.iter_mut().for_each(|byte| *byte &= 1);
    }
    bytes
}

#[test]
fn the_table_of_dtypes_has_all_that_both_sides_know() {
    for dtype in DType::ALL {
        // Types smaller than a byte have no torch name, or torch packs them.
        let Some(name) = dtype.torch_name() else { continue };
        let Some((_, size)) = DTYPES.iter().find(|(known, _)| *known == name) else {
            assert!(dtype.bits() < 8, "{name} is not in the table");
            continue;
        };
        assert_eq!(dtype.byte_len(1), Some(*size as u64), "{name}");
    }
}

#[test]
fn tensors_of_every_dtype_arrive_bit_by_bit_in_both_directions() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    let elements: usize = SHAPE.iter().product();
    for ((dtype, size), seed) in DTYPES.iter().zip(50..) {
        let len = elements * size;
        let tensor = json!([{"dtype": dtype, "shape": SHAPE, "seed": seed}]);

        let id = python.send(json!({"do": "readable", "tensors": tensor}))?;
        let metadata = RdmaMetadata::from_json(&python.expect(id, "metadata")?["metadata"].to_string())?;
        assert_eq!(metadata.total_bytes(), len as u64, "{dtype}");
        let operation = rust.begin_read(&metadata, vec![0u8; len]).wait()?;
        let received = operation.wait_for_completion().wait()?;
        assert_eq!(received.memory, content(dtype, len, seed), "{dtype} from Python");
        python.completed(id)?;

        let offer = rust.create_readable(content(dtype, len, seed + 100)).wait()?;
        let metadata: Value = serde_json::from_str(&offer.metadata().to_json())?;
        let tensor = json!([{"dtype": dtype, "shape": SHAPE, "seed": seed + 100}]);
        let id = python.send(json!({"do": "read", "metadata": metadata, "tensors": tensor}))?;
        python.completed(id).with_context(|| format!("{dtype} to Python"))?;
        offer.wait_for_completion().wait()?;
    }
    Ok(())
}

// --- pools and several readers --------------------------------------------------------------------------

/// Slots of every length, one after another through a slab of two: Python sees ordinary documents.
#[test]
fn python_reads_from_slots_and_writes_into_them() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    let slab = rust.slab(2, 100_000).wait()?;
    for (len, seed) in [1usize, 4096, 65_537, 100_000].into_iter().zip(60..) {
        let mut slot = slab.take().wait()?;
        slot.write_all(&pattern::bytes(len, seed))?;
        let offer = rust.create_readable(slot).wait()?;
        let id = python.begin("read", &offer.metadata().to_json(), &[len], seed)?;
        offer.wait_for_completion().wait()?;
        python.completed(id).with_context(|| format!("{len} read"))?;

        let offer = slab.receive(len).wait()?;
        let id = python.begin("write", &offer.metadata().to_json(), &[len], seed)?;
        let received = offer.wait_for_completion().wait().map_err(Error::from)?.memory;
        python.completed(id).with_context(|| format!("{len} written"))?;
        ensure!(received.len() == len && pattern::first_difference(&received, seed).is_none());
    }
    assert_eq!((slab.free(), rust.stats().registrations), (2, 1));
    Ok(())
}

/// Whatever Python offers fits into a slot that is large enough, in one piece or in several.
#[test]
fn what_python_offers_is_read_into_larger_slots() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    let slab = rust.slab(1, 200_000).wait()?;
    for (lengths, seed) in [&[1][..], &[3, 100_000, 17, 4096, 1], &[200_000]].into_iter().zip([70, 80, 90]) {
        let (id, metadata) = python.offer("readable", lengths, seed)?;
        let metadata = RdmaMetadata::from_json(&metadata)?;
        let read = rust.begin_read_into(&metadata, slab.take().wait()?).wait().map_err(Error::from)?;
        let received = read.wait_for_completion().wait().map_err(Error::from)?.memory;
        python.completed(id)?;
        assert_eq!(received.len(), lengths.iter().sum::<usize>());
        let mut rest = &received[..];
        for (length, seed) in lengths.iter().zip(seed..) {
            let (piece, after) = rest.split_at(*length);
            pattern::check(piece, seed);
            rest = after;
        }
    }
    Ok(())
}

#[test]
fn python_is_one_of_several_readers() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    let other = connector()?;
    let fan_out = rust.fan_out(pattern::bytes(50_000, 9), 3).wait()?;
    let documents: Vec<RdmaMetadata> = fan_out.documents().cloned().collect();
    for document in &documents[..2] {
        let id = python.begin("read", &document.to_json(), &[50_000], 9)?;
        python.completed(id)?;
    }
    read(&other, &documents[2], &[50_000], 9)?;
    let reports = fan_out.wait_for_completion().wait().into_iter().collect::<Result<Vec<_>, _>>()?;
    let is_python = |peer: &Option<String>| peer.as_ref().is_some_and(|peer| peer.ends_with("-1"));
    assert_eq!(reports.iter().map(|report| is_python(&report.peer)).collect::<Vec<_>>(), [true, true, false]);
    Ok(())
}

// --- other peers of Python ------------------------------------------------------------------------------

#[test]
fn hex_metadata_of_old_workers_is_read_and_ours_is_read_by_them() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    let tensors = json!([{"dtype": "uint8", "shape": [5000], "seed": 6}]);
    let id = python.send(json!({"do": "readable", "hex": true, "tensors": tensors}))?;
    let metadata = RdmaMetadata::from_json(&python.expect(id, "metadata")?["metadata"].to_string())?;
    assert!(metadata.nixl_metadata().starts_with("78"), "hex of a zlib stream");
    read(&rust, &metadata, &[5000], 6)?;
    python.completed(id)?;

    let offer = rust.create_readable(memory::sources(&[5000], 7)?).wait()?;
    let hex = offer.metadata().clone().with_hex_encoding()?;
    assert!(hex.nixl_metadata().starts_with("78"), "hex of a zlib stream");
    let id = python.begin("read", &hex.to_json(), &[5000], 7)?;
    python.completed(id)?;
    offer.wait_for_completion().wait()?;
    Ok(())
}

#[test]
fn workers_with_an_agent_for_each_operation_are_served_and_read_one_after_another() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    for seed in 0..5 {
        let tensors = json!([{"dtype": "uint8", "shape": [5000], "seed": seed}]);
        let id = python.send(json!({"do": "readable", "fresh": true, "tensors": tensors}))?;
        let metadata = RdmaMetadata::from_json(&python.expect(id, "metadata")?["metadata"].to_string())?;
        read(&rust, &metadata, &[5000], seed)?;
        python.completed(id)?;

        let offer = rust.create_writable(memory::targets(&[5000])?).wait().map_err(Error::from)?;
        let metadata: Value = serde_json::from_str(&offer.metadata().to_json())?;
        let id =
            python.send(json!({"do": "write", "fresh": true, "metadata": metadata, "tensors": tensors}))?;
        let received = offer.wait_for_completion().wait().map_err(Error::from)?;
        memory::check(received.memory, seed)?;
        python.completed(id)?;
    }
    Ok(())
}

/// What Dynamo's Rust front-end offers beside its decoded media: no key that anybody waits for, its own
/// field names, an agent that is not named after a worker.
#[test]
fn media_of_dynamo_s_front_end_is_read() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    for (shape, seed) in [(vec![2, 2, 3], 1), (vec![480, 640, 3], 2)] {
        let media = python.ask(json!({"do": "media", "shape": shape, "seed": seed}), "media")?;
        let media = MediaDescriptor::from_json(&media["descriptor"].to_string())?;
        assert_eq!(media.dtype(), DType::U8);
        let envelope = media.into_envelope()?;
        let tensor = &envelope.tensors()[0];
        assert_eq!(tensor.shape, shape);
        read(&rust, envelope.metadata(), &[usize::try_from(tensor.byte_len)?], seed)?;
    }
    Ok(())
}

// --- many operations ------------------------------------------------------------------------------------

#[test]
fn two_hundred_operations_in_a_row_over_one_connector() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    for round in 0..50 {
        let lengths = [1 + (round as usize * 977) % 20_000, 64];
        let (id, metadata) = python.offer("readable", &lengths, round)?;
        read(&rust, &RdmaMetadata::from_json(&metadata)?, &lengths, round)
            .with_context(|| format!("round {round}"))?;
        python.completed(id)?;

        let (id, metadata) = python.offer("writable", &lengths, round)?;
        let metadata = RdmaMetadata::from_json(&metadata)?;
        let operation = rust.begin_write(memory::sources(&lengths, round)?, &metadata).wait()?;
        operation.wait_for_completion().wait()?;
        python.completed(id)?;

        let offer = rust.create_readable(memory::sources(&lengths, round)?).wait()?;
        let id = python.begin("read", &offer.metadata().to_json(), &lengths, round)?;
        python.completed(id)?;
        offer.wait_for_completion().wait()?;

        let offer = rust.create_writable(memory::targets(&lengths)?).wait().map_err(Error::from)?;
        let id = python.begin("write", &offer.metadata().to_json(), &lengths, round)?;
        python.completed(id)?;
        memory::check(offer.wait_for_completion().wait().map_err(Error::from)?.memory, round)?;
    }
    let stats = rust.stats();
    assert_eq!((stats.completed, stats.failed, stats.cancelled), (200, 0, 0), "{stats:?}");
    assert_eq!((stats.open, stats.parked, stats.unmatched_notifications), (0, 0, 0), "{stats:?}");
    Ok(())
}

/// In all four roles, several times: peers that offer afresh while others of their offers are being read.
#[test]
fn eight_operations_at_once_over_one_connector() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    let lengths = [300_000, 1, 4096];
    for round in 0..5 {
        let seeds = [round * 20, round * 20 + 5];
        let mut ids = Vec::new();
        let (mut readables, mut writables, mut reads, mut writes) = (vec![], vec![], vec![], vec![]);
        for seed in seeds {
            let offer = rust.create_readable(memory::sources(&lengths, seed)?).wait()?;
            ids.push(python.begin("read", &offer.metadata().to_json(), &lengths, seed)?);
            readables.push(offer.wait_for_completion());
            let offer = rust.create_writable(memory::targets(&lengths)?).wait().map_err(Error::from)?;
            ids.push(python.begin("write", &offer.metadata().to_json(), &lengths, seed)?);
            writables.push(offer.wait_for_completion());
        }
        let mut offered = Vec::new();
        for seed in seeds {
            offered
                .push((python.offer("readable", &lengths, seed)?, python.offer("writable", &lengths, seed)?));
        }
        for (((id, readable), (other, writable)), seed) in offered.into_iter().zip(seeds) {
            let (readable, writable) =
                (RdmaMetadata::from_json(&readable)?, RdmaMetadata::from_json(&writable)?);
            // Both begin before either is waited for.
            reads.push(rust.begin_read(&readable, memory::targets(&lengths)?));
            writes.push(rust.begin_write(memory::sources(&lengths, seed)?, &writable));
            ids.extend([id, other]);
        }
        for (operation, seed) in reads.into_iter().zip(seeds) {
            let operation = operation.wait().map_err(Error::from)?;
            memory::check(operation.wait_for_completion().wait().map_err(Error::from)?.memory, seed)?;
        }
        for operation in writes {
            operation.wait()?.wait_for_completion().wait()?;
        }
        for completion in readables {
            completion.wait()?;
        }
        for (completion, seed) in writables.into_iter().zip(seeds) {
            memory::check(completion.wait().map_err(Error::from)?.memory, seed)?;
        }
        for id in ids {
            python.completed(id).with_context(|| format!("round {round}"))?;
        }
    }
    let stats = rust.stats();
    assert_eq!((stats.completed, stats.failed, stats.open), (40, 0, 0), "{stats:?}");
    Ok(())
}

// --- the peer's identity --------------------------------------------------------------------------------

/// P4, with a peer whose agent has the same name in each of its lives.
#[test]
fn p4_a_restarted_python_worker_is_not_taken_for_its_predecessor() -> Result<()> {
    let Some((rust, shared)) = peers()? else { return Ok(()) };
    drop(shared);
    let Some(interpreter) = require::python() else { return Ok(()) };
    let arguments = ["--worker-id", "restarted-worker"];
    let lengths = [100_000];

    let mut first = Worker::python(&interpreter, &arguments)?;
    let (id, metadata) = first.offer("readable", &lengths, 1)?;
    read(&rust, &RdmaMetadata::from_json(&metadata)?, &lengths, 1)?;
    first.completed(id)?;
    let (_, never_read) = first.offer("readable", &lengths, 2)?;
    first.kill();

    let mut second = Worker::python(&interpreter, &arguments)?;
    let (id, metadata) = second.offer("readable", &lengths, 3)?;
    read(&rust, &RdmaMetadata::from_json(&metadata)?, &lengths, 3)?;
    second.completed(id)?;

    // What the first life offered is gone, and the second must not be asked for it.
    let (id, metadata) = second.offer("readable", &lengths, 4)?;
    let started = Instant::now();
    let Err(error) = read(&rust, &RdmaMetadata::from_json(&never_read)?, &lengths, 2) else {
        panic!("memory of a process that is gone was read");
    };
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let error = error.downcast::<Error>()?;
    assert_eq!(error.category(), ErrorCategory::Peer, "{error}");
    assert!(error.to_string().contains("restarted-worker-1"), "{error}");

    // And that failure does no harm to the second.
    read(&rust, &RdmaMetadata::from_json(&metadata)?, &lengths, 4)?;
    second.completed(id)?;
    Ok(())
}

// --- what the metadata tells ----------------------------------------------------------------------------

/// P8. The blob is spliced; Python reads through it, also through several of one agent.
#[test]
fn p8_metadata_holds_its_own_operation_s_regions_only() -> Result<()> {
    let Some((rust, mut python)) = peers()? else { return Ok(()) };
    let first = rust.create_readable(memory::sources(&[4096], 0)?).wait()?;
    let alone = first.metadata().decode_blob()?.len();

    let others: Vec<_> = (0..300)
        .map(|seed| Ok(rust.create_readable(memory::sources(&[4096], seed)?).wait()?))
        .collect::<Result<_>>()?;
    let last = rust.create_readable(memory::sources(&[4096], 7)?).wait()?;
    let blob = last.metadata().decode_blob()?;
    // A remote key differs in length by a byte or two.
    assert!(blob.len() <= alone + 16, "{} bytes beside 300 others, {alone} alone", blob.len());
    for other in &others {
        let address = other.metadata().descriptors()[0].ptr().to_le_bytes();
        assert!(!blob.windows(8).any(|bytes| bytes == address), "the blob tells of another operation");
    }

    for (offer, seed) in [(&last, 7), (&others[0], 0), (&others[150], 150), (&others[299], 299)] {
        let id = python.begin("read", &offer.metadata().to_json(), &[4096], seed)?;
        python.completed(id)?;
    }
    last.wait_for_completion().wait()?;
    Ok(())
}
