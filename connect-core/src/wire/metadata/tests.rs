use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{Device, MemoryError};

/// Written by the Python original's own `metadata()` and `model_dump_json()`, over [`python_blob`].
const PYTHON_B64: &str = include_str!("../fixtures/python_b64.json");
/// The same with `hex_encode=True`.
const PYTHON_HEX: &str = include_str!("../fixtures/python_hex.json");
const PYTHON_CUDA_WRITE: &str = include_str!("../fixtures/python_cuda_write.json");

/// What stood for the agent's blob when the fixtures were written.
fn python_blob() -> Vec<u8> {
    let mut blob = b"nixlSerDes|Agent".to_vec();
    blob.extend(0..=255u8);
    blob.extend(b"|MemSection|");
    blob.extend(b"remote key ".repeat(40));
    blob
}

fn region(addr: u64, len: u64) -> Region {
    Region::new(Device::CPU, addr, len).unwrap()
}

fn small() -> RdmaMetadata {
    let regions = [region(4096, 48), Region::new(Device::CPU, u64::MAX - 8, 8).unwrap()];
    RdmaMetadata::new(OperationKind::Write, &regions, b"agent", "key".to_owned()).unwrap()
}

/// A small document with the value at `pointer` replaced.
fn with(pointer: &str, value: Value) -> Result<RdmaMetadata, MetadataError> {
    let mut document: Value = serde_json::from_str(&small().to_json()).unwrap();
    *document.pointer_mut(pointer).unwrap() = value;
    RdmaMetadata::from_json(&document.to_string())
}

/// A document whose first descriptor has these, as they are written.
fn with_numbers(ptr: &str, size: &str) -> Result<RdmaMetadata, MetadataError> {
    RdmaMetadata::from_json(&format!(
        r#"{{"descriptors":[{{"device":"cpu","ptr":{ptr},"size":{size}}}],"nixl_metadata":"","notification_key":"k","operation_kind":1}}"#
    ))
}

fn assert_refused(result: Result<RdmaMetadata, MetadataError>, reason: &str) {
    let error = result.expect_err(reason).to_string();
    assert!(error.contains(reason), "expected {reason:?} in: {error}");
}

#[test]
fn the_bytes_on_the_wire_are_fixed() {
    let hex = small().with_hex_encoding().unwrap();
    let blob = hex.nixl_metadata().to_owned();
    assert_eq!(
        hex.to_json(),
        r#"{"descriptors":[{"device":"cpu","ptr":4096,"size":48},{"device":"cpu","ptr":18446744073709551607,"size":8}],"nixl_metadata":"BLOB","notification_key":"key","operation_kind":2}"#
            .replace("BLOB", &blob)
    );
}

#[test]
fn what_python_wrote_is_read_and_written_back_byte_for_byte() {
    for document in [PYTHON_B64, PYTHON_HEX] {
        let metadata = RdmaMetadata::from_json(document).unwrap();
        assert_eq!(metadata.kind(), OperationKind::Read);
        assert_eq!(metadata.notification_key(), "0f8fad5b-d9cb-469f-a165-70867728950e");
        assert_eq!(metadata.regions(), [region(140_000_000_000_000, 4096), region(u64::MAX - 4096, 4096)]);
        assert_eq!(metadata.total_bytes(), 8192);
        assert_eq!(metadata.decode_blob().unwrap(), python_blob());
        assert_eq!(metadata.to_json(), document);
    }
    let metadata = RdmaMetadata::from_json(PYTHON_CUDA_WRITE).unwrap();
    assert_eq!(metadata.kind(), OperationKind::Write);
    assert_eq!(metadata.descriptors()[0].device(), Device::cuda(3));
    assert_eq!(metadata.to_json(), PYTHON_CUDA_WRITE);
}

#[test]
fn the_hex_form_is_pythons_hex_form() {
    let hex = RdmaMetadata::from_json(PYTHON_B64).unwrap().with_hex_encoding().unwrap();
    assert_eq!(hex.to_json(), PYTHON_HEX);
    assert_eq!(hex.with_hex_encoding().unwrap().to_json(), PYTHON_HEX);
}

#[test]
fn a_document_inside_another_is_checked_the_same() {
    #[derive(Deserialize)]
    struct Request {
        offer: RdmaMetadata,
    }
    let read = |offer: &str| serde_json::from_str::<Request>(&format!(r#"{{"offer":{offer}}}"#));
    assert_eq!(read(PYTHON_B64).unwrap().offer.to_json(), PYTHON_B64);
    let error = read(&PYTHON_B64.replace("140000000000000", "0")).map(|request| request.offer).unwrap_err();
    assert!(error.to_string().contains("descriptor 0: the address is null"), "{error}");
}

#[test]
fn debug_output_shows_lengths_and_no_secrets() {
    let metadata = RdmaMetadata::from_json(PYTHON_B64).unwrap();
    let text = format!("{metadata:?} {metadata:#?}");
    for secret in ["eJzLy", "0f8fad5b", "140000000000000", "7f54"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    assert!(text.contains("notification_key: [36 bytes]") && text.contains("total_bytes: 8192"), "{text}");
}

#[test]
fn a_truncated_document_is_refused_wherever_it_ends() {
    for end in 0..PYTHON_B64.len() {
        assert!(RdmaMetadata::from_json(&PYTHON_B64[..end]).is_err(), "{end}");
    }
    assert!(RdmaMetadata::from_json(&format!("{PYTHON_B64}{{}}")).is_err());
    assert!(RdmaMetadata::from_json(&format!(" {PYTHON_B64}\n")).is_ok());
}

#[test]
fn a_document_with_any_bit_flipped_is_refused_or_valid() {
    for bit in 0..PYTHON_B64.len() * 8 {
        let mut document = PYTHON_B64.as_bytes().to_vec();
        document[bit / 8] ^= 1 << (bit % 8);
        if let Ok(metadata) = RdmaMetadata::from_slice(&document) {
            assert_eq!(RdmaMetadata::from_json(&metadata.to_json()).unwrap(), metadata);
            assert!(
                metadata.regions().iter().all(|region| region.addr() > 0 && region.end() > region.addr())
            );
            if let Ok(blob) = metadata.decode_blob() {
                assert_eq!(blob, python_blob(), "the checksum passed");
            }
        }
    }
}

#[test]
fn too_long_a_document_is_refused_before_it_is_parsed() {
    let long = " ".repeat(64 << 20);
    assert!(matches!(
        RdmaMetadata::from_json(&long),
        Err(MetadataError::TooLarge { len, max: MAX_DOCUMENT_BYTES, .. }) if len == 64 << 20
    ));
}

#[test]
fn deep_nesting_is_refused() {
    let deep = "[".repeat(100_000);
    assert!(RdmaMetadata::from_json(&deep).is_err());
    assert!(RdmaMetadata::from_json(&format!(r#"{{"descriptors":{deep}"#)).is_err());
    assert!(RdmaMetadata::from_json(&format!(r#"{{"unknown":{deep}"#)).is_err());
    assert!(
        RdmaMetadata::from_json(&format!(r#"{{"notification_key":{}"#, r#"{"a":"#.repeat(100_000))).is_err()
    );
}

#[test]
fn a_kind_other_than_read_and_write_is_refused() {
    assert_eq!(with("/operation_kind", json!(1)).unwrap().kind(), OperationKind::Read);
    for value in [0, 3, 257, u64::MAX] {
        assert_eq!(with("/operation_kind", json!(value)), Err(MetadataError::UnknownKind { value }));
    }
    for value in [json!(-1), json!(1.5), json!(1.0), json!("1"), json!(true), json!(null), json!([1])] {
        assert_refused(
            with("/operation_kind", value),
            "expected `operation_kind` to be an unsigned 64-bit integer",
        );
    }
}

#[test]
fn an_address_that_is_none_is_refused() {
    assert_refused(with_numbers("0", "1"), "descriptor 0: the address is null");
    for ptr in ["-1", "18446744073709551616", "1180591620717411303424", "1e3", "1.0", "\"4096\"", "null"] {
        assert_refused(with_numbers(ptr, "1"), "descriptors[0]: ");
        assert_refused(with_numbers(ptr, "1"), "expected `ptr` to be an unsigned 64-bit integer");
    }
    for ptr in ["0x10", "010", "+1", "NaN", "1_000"] {
        assert!(with_numbers(ptr, "1").is_err(), "{ptr}");
    }
}

#[test]
fn a_range_that_is_empty_or_wraps_around_is_refused_with_its_index() {
    assert_refused(with_numbers("1", "0"), "descriptor 0: the memory is empty");
    assert_refused(with_numbers("1", "-1"), "expected `size` to be an unsigned");
    assert_eq!(
        with("/descriptors/1/size", json!(9)),
        Err(MetadataError::Range { index: 1, source: MemoryError::Overflow { addr: u64::MAX - 8, len: 9 } })
    );
}

#[test]
fn sizes_whose_sum_wraps_around_are_refused() {
    let half = region(1, 1 << 63);
    let result = RdmaMetadata::new(OperationKind::Read, &[half, half], b"", "k".to_owned());
    assert_eq!(result, Err(MetadataError::TotalOverflow));
}

#[test]
fn an_unknown_device_is_refused_with_its_index() {
    for name in ["mps", "gpu", "host", "cudax", ""] {
        assert!(matches!(
            with("/descriptors/1/device", json!(name)),
            Err(MetadataError::Device { index: 1, .. })
        ));
    }
    assert_refused(
        with("/descriptors/1/device", json!(1)),
        "descriptors[1]: invalid type: integer `1`, expected `device`",
    );
}

#[test]
fn unknown_fields_are_refused_by_name() {
    let document = small().to_json();
    assert_refused(
        RdmaMetadata::from_json(&document.replacen('{', r#"{"tensors":[],"#, 1)),
        "unknown field `tensors`",
    );
    assert_refused(
        RdmaMetadata::from_json(&document.replacen(r#"{"device"#, r#"{"dtype":"F32","device"#, 1)),
        "descriptors[0]: unknown field `dtype`",
    );
}

#[test]
fn missing_fields_are_refused_by_name() {
    for field in ["descriptors", "nixl_metadata", "notification_key", "operation_kind"] {
        let mut document: Value = serde_json::from_str(&small().to_json()).unwrap();
        document.as_object_mut().unwrap().remove(field);
        assert_refused(RdmaMetadata::from_json(&document.to_string()), &format!("missing field `{field}`"));
    }
    for field in ["device", "ptr", "size"] {
        let mut document: Value = serde_json::from_str(&small().to_json()).unwrap();
        document["descriptors"][1].as_object_mut().unwrap().remove(field);
        assert_refused(
            RdmaMetadata::from_json(&document.to_string()),
            &format!("descriptors[1]: missing field `{field}`"),
        );
    }
}

#[test]
fn duplicate_fields_are_refused_by_name() {
    let document = small().to_json();
    for field in
        ["operation_kind\":1", "notification_key\":\"k\"", "nixl_metadata\":\"\"", "descriptors\":[]"]
    {
        let name = field.split('"').next().unwrap();
        assert_refused(
            RdmaMetadata::from_json(&document.replacen('{', &format!("{{\"{field},"), 1)),
            &format!("duplicate field `{name}`"),
        );
    }
    assert_refused(
        RdmaMetadata::from_json(&document.replacen(r#"{"device"#, r#"{"ptr":1,"device"#, 1)),
        "duplicate field `ptr`",
    );
}

#[test]
fn fields_of_another_shape_are_refused() {
    for (pointer, value, reason) in [
        ("", json!([[], "", "k", 1]), "expected an object"),
        ("", json!(null), "expected an object"),
        ("/descriptors", json!({}), "expected `descriptors` to be a list"),
        ("/descriptors", json!(null), "expected `descriptors` to be a list"),
        (
            "/descriptors/0",
            json!(["cpu", 4096, 48]),
            "descriptors[0]: invalid type: sequence, expected an object",
        ),
        ("/nixl_metadata", json!(null), "expected `nixl_metadata` to be a string"),
        ("/nixl_metadata", json!([1, 2]), "expected `nixl_metadata` to be a string"),
        ("/notification_key", json!(1), "expected `notification_key` to be a string"),
    ] {
        assert_refused(with(pointer, value), reason);
    }
    assert!(RdmaMetadata::from_slice(b"\xff\xfe{}").is_err());
    let mut invalid = small().to_json().into_bytes();
    let key = invalid.windows(3).position(|window| window == b"key").unwrap();
    let last = invalid.windows(5).rposition(|window| window == b"\"key\"").unwrap();
    assert!(key < last);
    invalid[last + 1] = 0xff;
    assert!(RdmaMetadata::from_slice(&invalid).is_err(), "a key that is not UTF-8");
}

#[test]
fn a_document_has_at_least_one_descriptor_and_not_too_many() {
    assert_eq!(with("/descriptors", json!([])), Err(MetadataError::NoDescriptors));
    let list = |count: usize| vec![json!({"device": "cpu", "ptr": 1, "size": 1}); count];
    let most = with("/descriptors", json!(list(MAX_DESCRIPTORS))).unwrap();
    assert_eq!(most.descriptors().len(), MAX_DESCRIPTORS);
    assert_eq!(
        with("/descriptors", json!(list(MAX_DESCRIPTORS + 2))),
        Err(MetadataError::TooManyDescriptors { count: MAX_DESCRIPTORS + 2, max: MAX_DESCRIPTORS })
    );
    let new = |regions: &[Region]| RdmaMetadata::new(OperationKind::Read, regions, b"", "k".to_owned());
    assert_eq!(new(&[]), Err(MetadataError::NoDescriptors));
    assert!(new(&vec![region(1, 1); MAX_DESCRIPTORS]).is_ok());
    assert!(matches!(
        new(&vec![region(1, 1); MAX_DESCRIPTORS + 1]),
        Err(MetadataError::TooManyDescriptors { .. })
    ));
}

#[test]
fn the_largest_document_that_can_be_made_can_be_read() {
    // The longest addresses and device names, and 44 incompressible bytes of blob for each region.
    let far = Region::new(Device::cuda(u32::MAX), u64::MAX - (1 << 40), 1 << 30).unwrap();
    let mut state = 1u64;
    let blob: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    })
    .take(44 * MAX_DESCRIPTORS)
    .collect();
    let offer =
        RdmaMetadata::new(OperationKind::Read, &vec![far; MAX_DESCRIPTORS], &blob, "k".repeat(1 << 16))
            .unwrap();
    let offer = offer.with_hex_encoding().unwrap();
    let read = RdmaMetadata::from_json(&offer.to_json()).unwrap();
    assert_eq!(read.decode_blob().unwrap(), blob);
}

#[test]
fn a_notification_key_has_a_length_within_bounds() {
    for len in [1, MAX_NOTIFICATION_KEY_BYTES] {
        assert!(with("/notification_key", json!("k".repeat(len))).is_ok());
    }
    for len in [0, MAX_NOTIFICATION_KEY_BYTES + 1] {
        let max = MAX_NOTIFICATION_KEY_BYTES;
        let key = "k".repeat(len);
        assert_eq!(with("/notification_key", json!(key)), Err(MetadataError::NotificationKey { len, max }));
        assert_eq!(
            RdmaMetadata::new(OperationKind::Read, &[region(1, 1)], b"", key),
            Err(MetadataError::NotificationKey { len, max })
        );
    }
    // What some peers append to it, and what JSON has to escape.
    for key in ["0f8f#t1:eyJ9", "k\"\\\n\u{0}\u{7f}é\u{1F980}"] {
        let metadata = with("/notification_key", json!(key)).unwrap();
        assert_eq!(metadata.notification_key(), key);
        assert_eq!(RdmaMetadata::from_json(&metadata.to_json()).unwrap(), metadata);
    }
}

#[test]
fn a_blob_is_only_decoded_when_asked_for_and_then_strictly() {
    for text in ["", "test", "b64:!", "b64:AAAA", "zz"] {
        let metadata = with("/nixl_metadata", json!(text)).unwrap();
        assert!(matches!(metadata.decode_blob(), Err(MetadataError::Encoding { .. })), "{text:?}");
    }
    assert!(with("/nixl_metadata", json!("b64:!")).unwrap().with_hex_encoding().is_err());
    let huge =
        RdmaMetadata::new(OperationKind::Read, &[region(1, 1)], &vec![0; MAX_BLOB_BYTES + 1], "k".to_owned());
    assert!(matches!(huge, Err(MetadataError::TooLarge { .. })));
}

#[test]
fn a_peers_text_is_cut_short_in_errors() {
    let error = with("/operation_kind", json!("x".repeat(1 << 20))).unwrap_err().to_string();
    assert!(error.len() < 400, "{}", error.len());
    let document = small().to_json().replacen('{', "{\"\\u001b[2J\\n\":1,", 1);
    let error = RdmaMetadata::from_json(&document).unwrap_err().to_string();
    assert!(!error.contains(char::is_control), "{error:?}");
}

#[test]
fn an_operation_must_match_the_document() {
    let offer = small();
    let local = offer.regions();
    assert_eq!(offer.check_against(OperationKind::Write, &local), Ok(()));
    assert_eq!(
        offer.check_against(OperationKind::Read, &local),
        Err(MetadataError::WrongKind { offered: OperationKind::Write, wanted: OperationKind::Read })
    );
    assert_eq!(
        offer.check_against(OperationKind::Write, &local[..1]),
        Err(MetadataError::CountMismatch { local: 1, remote: 2 })
    );
    assert_eq!(
        offer.check_against(OperationKind::Write, &[local[0], region(1, 7)]),
        Err(MetadataError::LengthMismatch { index: 1, local: 7, remote: 8 })
    );
}

#[test]
fn memory_may_be_of_several_kinds_and_on_several_devices() {
    let on = |device| Region::new(device, 64, 8).unwrap();
    let local = [on(Device::CPU), on(Device::CPU)];
    let offer = |second| {
        let regions = [on(Device::cuda(0)), on(second)];
        RdmaMetadata::new(OperationKind::Read, &regions, b"", "k".to_owned()).unwrap()
    };
    for second in [Device::cuda(1), Device::CPU] {
        assert_eq!(offer(second).check_against(OperationKind::Read, &local), Ok(()));
    }
}

fn any_region() -> impl Strategy<Value = Region> {
    let device = prop_oneof![
        Just(Device::CPU),
        any::<u32>().prop_map(Device::cuda),
        any::<u32>().prop_map(Device::xpu)
    ];
    (device, 1..u64::MAX, 1..1u64 << 48).prop_map(|(device, addr, len)| {
        Region::new(device, addr, len.min(u64::MAX - addr)).expect("the range was cut to fit")
    })
}

proptest! {
    #[test]
    fn any_offer_survives_the_round_trip(
        write: bool,
        regions in prop::collection::vec(any_region(), 1..20),
        blob in prop::collection::vec(any::<u8>(), 0..500),
        key in ".{1,40}",
    ) {
        let kind = if write { OperationKind::Write } else { OperationKind::Read };
        let offer = RdmaMetadata::new(kind, &regions, &blob, key).unwrap();
        let read = RdmaMetadata::from_json(&offer.to_json()).unwrap();
        prop_assert_eq!(&read, &offer);
        prop_assert_eq!(read.regions(), regions);
        prop_assert_eq!(read.decode_blob().unwrap(), &blob[..]);
        let hex = RdmaMetadata::from_json(&offer.with_hex_encoding().unwrap().to_json()).unwrap();
        prop_assert_eq!(hex.decode_blob().unwrap(), blob);
    }

    #[test]
    fn arbitrary_text_never_panics(text in ".{0,200}", at in 0..600usize, with in any::<[u8; 3]>()) {
        prop_assert!(RdmaMetadata::from_json(&text).is_err());
        let mut document = PYTHON_B64.as_bytes().to_vec();
        document[at..at + 3].copy_from_slice(&with);
        let _ = RdmaMetadata::from_slice(&document).map(|metadata| metadata.decode_blob());
    }
}
