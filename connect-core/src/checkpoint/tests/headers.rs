//! Headers: hostile ones are refused, and what is written is what the format's own reader reads.

use std::fs;

use proptest::prelude::*;
use serde_json::json;

use super::made::{file, folder};
use crate::DType;
use crate::checkpoint::header::Header;
use crate::checkpoint::{Checkpoint, CheckpointError, MAX_HEADER_BYTES, Manifest, ManifestTensor};

/// A file with this header and so many bytes of data.
fn with_header(json: &str, data: usize) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &vec![0; data]].concat()
}

fn opened(bytes: &[u8]) -> Result<Checkpoint, CheckpointError> {
    let folder = folder();
    let path = folder.path().join("m.safetensors");
    fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path)
}

#[test]
fn hostile_headers_are_refused_with_a_reason() {
    let one = |dtype: &str, shape: &str, at: &str| {
        format!(r#"{{"x":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{at}}}}}"#)
    };
    let dims = format!("[{}]", vec!["1"; 33].join(","));
    let long = format!(r#"{{"{}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#, "n".repeat(5000));
    let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    for (header, data, says) in [
        (one("F32", "[2]", "[0,8]"), 7, "take 8 bytes, and there are 7"),
        (one("F32", "[2]", "[0,8]"), 9, "take 8 bytes, and there are 9"),
        (one("F32", "[3]", "[0,8]"), 8, "its header"),
        (one("F32", "[2]", "[8,0]"), 8, "its header"),
        (one("F32", "[2]", "[4,12]"), 12, "its header"),
        (one("F32", "[18446744073709551615,2]", "[0,8]"), 8, "its header"),
        (one("F99", "[2]", "[0,8]"), 8, "F99"),
        (one("U8", &dims, "[0,1]"), 1, "dimensions"),
        (one("F32", "[-1]", "[0,8]"), 8, "its header"),
        (one("F4", "[1]", "[0,1]"), 1, "its header"),
        (long, 1, "bytes"),
        (deep, 0, "recursion"),
        ("[]".to_owned(), 0, "its header"),
        ("{".to_owned(), 0, "its header"),
        ("\u{1b}[2J".to_owned(), 0, "its header"),
        (r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#.to_owned(), 6, "its header"),
    ] {
        let error = opened(&with_header(&header, data)).unwrap_err();
        assert!(matches!(error, CheckpointError::Header { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(says) && text.contains("fetch it again"), "{says}: {text}");
        assert!(text.len() < 3000 && !text.contains(char::is_control), "{text:?}");
    }
}

#[test]
fn a_length_that_lies_costs_nothing() {
    for len in [u64::MAX, 1 << 40, MAX_HEADER_BYTES as u64 + 1, 100] {
        let error = opened(&[&len.to_le_bytes()[..], b"{}"].concat()).unwrap_err();
        assert!(error.to_string().contains("claims"), "{error}");
    }
    for bytes in [&[][..], &[1, 2, 3]] {
        assert!(matches!(opened(bytes), Err(CheckpointError::Header { .. })));
    }
}

#[test]
fn hostile_manifests_are_refused_with_a_reason() {
    let tensor = |name: &str, shape: serde_json::Value| json!({"name": name, "dtype": "U8", "shape": shape});
    let big = json!([1u64 << 62]);
    for (manifest, says) in [
        (json!({"version": 2, "tensors": []}), "version 2"),
        (json!({"version": 1, "tensors": [], "more": 1}), "more"),
        (json!({"version": 1, "tensors": [tensor("x", json!([1])), tensor("x", json!([1]))]}), "twice"),
        (json!({"version": 1, "tensors": [tensor("__metadata__", json!([1]))]}), "reserved"),
        (json!({"version": 1, "tensors": [tensor("x", json!([u64::MAX, 2]))]}), "2^64"),
        (json!({"version": 1, "tensors": [tensor("x", big.clone()), tensor("y", big)]}), "no file holds"),
        (json!({"version": 1, "tensors": [{"name": "x", "dtype": "U9", "shape": []}]}), "U9"),
        (
            json!({"version": 1, "tensors": [{"name": "x", "dtype": "U8", "shape": [], "digest": "md5:0"}]}),
            "digest",
        ),
    ] {
        let error = Manifest::from_json(&manifest.to_string()).unwrap_err();
        assert!(
            matches!(error, CheckpointError::Manifest { .. }) && error.to_string().contains(says),
            "{error}"
        );
    }
}

#[test]
fn a_manifest_survives_its_way() {
    let folder = folder();
    let manifest = Checkpoint::open(file(folder.path(), "m", "")).unwrap().manifest_with_digests().unwrap();
    assert!(manifest.tensors().iter().all(|tensor| tensor.digest.is_some()));
    assert_eq!(Manifest::from_json(&manifest.to_json()).unwrap(), manifest);
}

#[test]
fn the_golden_manifest_is_read_and_written_byte_for_byte() {
    let golden = include_str!("../../../golden/checkpoint_manifest.json");
    let manifest = Manifest::from_json(golden).unwrap();
    assert_eq!(manifest.to_json(), golden);
    assert_eq!((manifest.total_bytes(), manifest.tensors()[0].digest), (12, Some(crate::Digest::of(b""))));
}

fn tensor() -> impl Strategy<Value = ManifestTensor> {
    let shape = prop::collection::vec(0u64..9, 0..5);
    (".{0,12}", prop::sample::select(DType::ALL), shape).prop_filter_map(
        "no whole bytes",
        |(name, dtype, mut shape)| {
            if dtype.bits() % 8 != 0 {
                shape.push(4);
            }
            ManifestTensor::new(name, dtype, shape).ok()
        },
    )
}

proptest! {
    #[test]
    fn any_header_that_is_written_is_read_back_and_by_the_format_s_own_reader_too(
        tensors in prop::collection::vec(tensor(), 0..20),
        texts in prop::collection::btree_map(".{0,8}", ".{0,8}", 0..4),
    ) {
        let Ok(manifest) = Manifest::new(tensors, texts) else { return Ok(()) };
        let header = Header::lay_out(manifest.tensors(), manifest.metadata());
        let mut bytes = header.to_bytes().unwrap();
        prop_assert_eq!(bytes.len() % 8, 0);
        prop_assert_eq!(Header::parse(&bytes[8..]).unwrap(), header.clone());
        bytes.resize(bytes.len() + header.data_len() as usize, 0);
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        prop_assert_eq!(read.len(), header.tensors.len());
    }

    #[test]
    fn no_damage_to_a_header_is_more_than_an_error(
        tensors in prop::collection::vec(tensor(), 0..8),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let Ok(manifest) = Manifest::new(tensors, Default::default()) else { return Ok(()) };
        let mut bytes = Header::lay_out(manifest.tensors(), manifest.metadata()).to_bytes().unwrap();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let json = &bytes[8..][..cut.index(bytes.len() - 7)];
        match Header::parse(json) {
            // What is accepted holds together: tensors one behind another, each with the bytes of its shape.
            Ok(header) => {
                let mut end = 0;
                for (tensor, range) in &header.tensors {
                    prop_assert_eq!((range.start, range.end - range.start), (end, tensor.byte_len));
                    end = range.end;
                }
            }
            Err(reason) => prop_assert!(reason.len() < 3000 && !reason.contains(char::is_control)),
        }
    }
}
