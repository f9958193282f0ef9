use proptest::prelude::*;
use serde_json::json;

use super::super::Digest;
use super::super::tensor::{MAX_DIMS, MAX_TENSOR_NAME_BYTES};
use super::*;
use crate::{DType, Device, OperationKind, Region};

/// A document of descriptors of these sizes.
fn offer(sizes: &[u64]) -> RdmaMetadata {
    let regions: Vec<Region> =
        sizes.iter().map(|&size| Region::new(Device::CPU, 4096, size).unwrap()).collect();
    RdmaMetadata::new(OperationKind::Read, &regions, b"agent", "key".to_owned()).unwrap()
}

fn spec(name: &str, dtype: DType, shape: &[u64], descriptors: Range<usize>) -> TensorSpec {
    TensorSpec::new(name, dtype, shape, descriptors).unwrap()
}

/// A strided tensor in two descriptors, one without elements, and a scalar without a torch name.
fn three() -> TensorEnvelope {
    let tensors = vec![
        spec("k.0", DType::BF16, &[1, 8, 6], 0..2),
        spec("empty", DType::F32, &[4, 0], 2..2),
        spec("a.scalar", DType::F6_E2M3, &[], 2..3),
    ];
    TensorEnvelope::new(offer(&[48, 48, 1]), tensors).unwrap()
}

/// The envelope of [`three`] with the value at `pointer` replaced.
fn with(pointer: &str, value: Value) -> Result<TensorEnvelope, MetadataError> {
    let mut document: Value = serde_json::from_str(&three().to_json()).unwrap();
    *document.pointer_mut(pointer).unwrap() = value;
    TensorEnvelope::from_json(&document.to_string())
}

fn assert_refused(result: Result<TensorEnvelope, MetadataError>, reason: &str) {
    let error = result.expect_err(reason).to_string();
    assert!(error.contains(reason), "expected {reason:?} in: {error}");
}

#[test]
fn the_bytes_on_the_wire_are_fixed() {
    let envelope = three().with_extra(BTreeMap::from([("step".to_owned(), json!(7))])).unwrap();
    let request = envelope.metadata().to_json();
    assert_eq!(
        envelope.to_json(),
        concat!(
            r#"{"version":1,"serialized_request":REQUEST,"tensors":["#,
            r#"{"field_name":"k.0","dtype_str":"bfloat16","shape":[1,8,6],"#,
            r#""first_descriptor":0,"descriptor_count":2,"byte_len":96},"#,
            r#"{"field_name":"empty","dtype_str":"float32","shape":[4,0],"#,
            r#""first_descriptor":2,"descriptor_count":0,"byte_len":0},"#,
            r#"{"field_name":"a.scalar","dtype_str":"F6_E2M3","shape":[],"#,
            r#""first_descriptor":2,"descriptor_count":1,"byte_len":1}],"extra":{"step":7}}"#
        )
        .replace("REQUEST", &request)
    );
    assert_eq!(TensorEnvelope::from_json(&envelope.to_json()).unwrap(), envelope);
}

#[test]
fn tensors_are_found_by_name_and_stay_in_order() {
    let envelope = three();
    assert_eq!(envelope.get("a.scalar").unwrap().descriptors(), 2..3);
    assert_eq!(envelope.get("empty").unwrap().elements(), 0);
    assert_eq!(envelope.get("k.1"), None);
    let (metadata, tensors, extra) = envelope.into_parts();
    assert_eq!((metadata.descriptors().len(), tensors[0].name.as_str(), extra.len()), (3, "k.0", 0));
}

#[test]
fn another_version_is_refused_first_and_by_name() {
    for document in [
        r#"{"version":2}"#,
        r#"{"tensors":{},"a_field_of_version_2":[],"version":2}"#,
        r#"{"serialized_request":"by reference","version":2,"extra":0}"#,
    ] {
        let version = MetadataError::Version { found: 2, supported: 1 };
        assert_eq!(TensorEnvelope::from_json(document), Err(version));
    }
    assert_refused(TensorEnvelope::from_json("{}"), "missing field `version`");
    assert_refused(with("/version", json!(0)), "envelope version 0 is not supported");
    for version in [json!("1"), json!(1.0), json!(-1), json!(null)] {
        assert_refused(with("/version", version), "expected `version` to be an unsigned");
    }
    let inside: Result<TensorEnvelope, _> =
        serde_json::from_str(&three().to_json().replacen("\"version\":1", "\"version\":3", 1));
    assert!(inside.unwrap_err().to_string().contains("envelope version 3"));
}

#[test]
fn unknown_missing_and_duplicate_fields_are_refused_by_name() {
    let document = three().to_json();
    let replaced = |from: &str, to: &str| TensorEnvelope::from_json(&document.replacen(from, to, 1));
    assert_refused(replaced("\"version\"", "\"checksum\":1,\"version\""), "unknown field `checksum`");
    assert_refused(
        replaced("\"field_name\"", "\"strides\":[],\"field_name\""),
        "tensors[0]: unknown field `strides`",
    );
    assert_refused(replaced("\"nixl_metadata\"", "\"x\":1,\"nixl_metadata\""), "unknown field `x`");
    assert_refused(replaced("\"version\":1", "\"version\":1,\"version\":1"), "duplicate field `version`");
    assert_refused(replaced("\"extra\":{}", "\"extra\":{},\"extra\":{}"), "duplicate field `extra`");
    assert_refused(replaced("\"extra\":{}", "\"extra\":{\"a\":1,\"a\":2}"), "duplicate field `a`");
    assert_refused(
        replaced("\"byte_len\":0", "\"byte_len\":0,\"byte_len\":0"),
        "tensors[1]: duplicate field `byte_len`",
    );
    assert_refused(replaced(",\"descriptor_count\":1", ""), "tensors[2]: missing field `descriptor_count`");
    assert!(replaced(",\"extra\":{}", "").is_ok(), "no extra fields are no extra fields");
}

#[test]
fn a_tensor_that_contradicts_itself_is_refused() {
    for (pointer, value, reason) in [
        ("/tensors/0/shape", json!([1, 8, 7]), "byte_len is 96, but BF16 of its shape has 112 bytes"),
        ("/tensors/0/dtype_str", json!("float32"), "byte_len is 96, but F32 of its shape has 192 bytes"),
        ("/tensors/0/byte_len", json!(95), "byte_len is 95"),
        ("/tensors/0/shape", json!([1u64 << 32, 1u64 << 32]), "2^64 bytes or more"),
        ("/tensors/0/shape", json!([u64::MAX]), "2^64 bytes or more"),
        ("/tensors/0/shape", json!(vec![1; MAX_DIMS + 1]), "33 dimensions"),
        ("/tensors/1/shape", json!([u64::MAX, u64::MAX, 1]), "2^64 bytes or more"),
        ("/tensors/1/descriptor_count", json!(1), "it has no elements, but descriptor_count is 1"),
        ("/tensors/1/byte_len", json!(1), "byte_len is 1"),
    ] {
        assert_refused(with(pointer, value), reason);
    }
    assert!(with("/tensors/1/shape", json!([u64::MAX, u64::MAX, 0])).is_ok(), "zero times anything is zero");
}

#[test]
fn a_digest_travels_with_its_tensor_and_is_checked() {
    let bytes = [7u8; 96];
    let (metadata, mut tensors, _) = three().into_parts();
    tensors[0] = tensors[0].clone().with_digest(Digest::of(&bytes));
    let sent = TensorEnvelope::new(metadata, tensors).unwrap();
    let read = TensorEnvelope::from_json(&sent.to_json()).unwrap();
    assert_eq!(read, sent);
    let tensor = read.get("k.0").unwrap();
    assert_eq!(tensor.check_digest([&bytes[..48], &bytes[48..]]), Ok(()));
    assert_eq!(tensor.check_digest([&bytes[..]]), Ok(()));
    for at in [0, 47, 48, 95] {
        let mut flipped = bytes;
        flipped[at] ^= 1;
        let error = tensor.check_digest([&flipped[..]]).unwrap_err();
        assert!(error.name == "k.0" && error.expected == Digest::of(&bytes), "{error}");
        assert!(error.to_string().starts_with("tensor \"k.0\" is not what was sent"), "{error}");
    }
    assert!(tensor.check_digest([&bytes[..95]]).is_err(), "a byte is missing");
}

#[test]
fn a_receiver_that_requires_digests_refuses_an_envelope_without_them() {
    let digest = |mut spec: TensorSpec| {
        spec.digest = Some(Digest::of(b""));
        spec
    };
    let (metadata, tensors, _) = three().into_parts();
    let all: Vec<_> = tensors.into_iter().map(digest).collect();
    assert_eq!(TensorEnvelope::new(metadata.clone(), all.clone()).unwrap().require_digests(), Ok(()));
    for missing in 0..all.len() {
        let mut tensors = all.clone();
        tensors[missing].digest = None;
        let name = tensors[missing].name.clone();
        let envelope = TensorEnvelope::new(metadata.clone(), tensors).unwrap();
        assert_eq!(envelope.require_digests(), Err(MetadataError::DigestMissing { name }));
    }
}

#[test]
fn a_digest_that_is_none_is_refused() {
    let with = |digest: &str| {
        let to = format!("\"byte_len\":0,\"digest\":{digest}");
        TensorEnvelope::from_json(&three().to_json().replacen("\"byte_len\":0", &to, 1))
    };
    for digest in ["\"\"", "\"md5:00\"", "\"blake3:00\""] {
        assert_refused(with(digest), "digest: ");
    }
    assert_refused(with("null"), "expected `digest` to be a string");
    assert_refused(with("[]"), "expected `digest` to be a string");
    assert!(with(&format!("\"{}\"", Digest::of(b""))).is_ok());
}

#[test]
fn an_unknown_dtype_is_refused_and_never_guessed() {
    for name in ["float", "f32", "", "float4_e2m1fn_x2", "torch.float33"] {
        assert_refused(with("/tensors/1/dtype_str", json!(name)), "tensor \"empty\": unknown torch dtype");
    }
    for name in ["torch.float32", "float32", "F32"] {
        assert_eq!(with("/tensors/1/dtype_str", json!(name)).unwrap(), three());
    }
}

#[test]
fn the_tensors_cover_the_descriptors_in_order_once_and_wholly() {
    for (pointer, value, reason) in [
        ("/tensors/0/first_descriptor", json!(1), "\"k.0\": first_descriptor is 1, but 0 descriptors"),
        ("/tensors/2/first_descriptor", json!(1), "\"a.scalar\": first_descriptor is 1, but 2 descriptors"),
        ("/tensors/1/first_descriptor", json!(0), "\"empty\": first_descriptor is 0"),
        ("/tensors/0/descriptor_count", json!(1), "\"k.0\": byte_len is 96, but its descriptors have 48"),
        ("/tensors/2/descriptor_count", json!(2), "its descriptors end at 4, but the document has 3"),
        ("/tensors/2/descriptor_count", json!(u64::MAX), "its descriptors end at"),
        ("/serialized_request/descriptors/1/size", json!(47), "its descriptors have 95 bytes"),
    ] {
        assert_refused(with(pointer, value), reason);
    }
    let left_over = |covered, count| MetadataError::DescriptorsLeftOver { covered, count };
    assert_eq!(TensorEnvelope::new(offer(&[4, 4]), vec![]), Err(left_over(0, 2)));
    assert_eq!(
        TensorEnvelope::new(offer(&[4, 4]), vec![spec("a", DType::U8, &[4], 0..1)]),
        Err(left_over(1, 2))
    );
}

#[test]
fn names_are_unique_and_of_bounded_length() {
    assert_refused(with("/tensors/1/field_name", json!("k.0")), "another tensor has the same field_name");
    let long = "x".repeat(MAX_TENSOR_NAME_BYTES);
    assert!(with("/tensors/1/field_name", json!(long)).unwrap().get(&long).is_some());
    let error = with("/tensors/1/field_name", json!(long + "x")).unwrap_err().to_string();
    assert!(error.contains("4097 bytes") && error.len() < 400, "{error}");
}

#[test]
fn lists_are_bounded() {
    let empty = json!({"field_name":"", "dtype_str":"bool", "shape":[0], "first_descriptor":0,
                       "descriptor_count":0, "byte_len":0});
    assert_eq!(
        with("/tensors", json!(vec![empty; MAX_TENSORS + 1])),
        Err(MetadataError::TooManyTensors { count: MAX_TENSORS + 1, max: MAX_TENSORS })
    );
    let most: Vec<_> = (0..MAX_TENSORS).map(|i| spec(&i.to_string(), DType::U8, &[1], i..i + 1)).collect();
    let most = TensorEnvelope::new(offer(&[1].repeat(MAX_TENSORS)), most).unwrap();
    assert_eq!(TensorEnvelope::from_json(&most.to_json()).unwrap(), most);
    assert_refused(TensorEnvelope::from_json(&" ".repeat(64 << 20)), "more than the limit");
    assert_refused(with("/extra", json!({"a": vec![0; 70_000]})), "more than 65536 values");
    assert_refused(with("/extra", json!([])), "expected `extra` to be an object");
    let many = BTreeMap::from([("a".to_owned(), json!(vec![0; 70_000]))]);
    assert!(matches!(three().with_extra(many), Err(MetadataError::Field { field: "extra", .. })));
}

#[test]
fn specs_changed_by_hand_are_checked_again() {
    let mut tensor = spec("a", DType::U8, &[4], 0..1);
    tensor.shape = vec![5];
    assert!(TensorEnvelope::new(offer(&[4]), vec![tensor.clone()]).is_err());
    tensor.shape = vec![1; MAX_DIMS + 1];
    tensor.byte_len = 1;
    assert!(TensorEnvelope::new(offer(&[1]), vec![tensor]).is_err());
    assert!(TensorSpec::new("a", DType::F32, [1 << 62], 0..1).is_err());
    assert!(TensorSpec::new("a", DType::F32, [0], 0..1).is_err());
}

#[test]
fn a_damaged_envelope_is_refused_or_valid() {
    let document = three().to_json();
    for end in 0..document.len() {
        assert!(TensorEnvelope::from_json(&document[..end]).is_err(), "{end}");
    }
    for bit in 0..document.len() * 8 {
        let mut damaged = document.clone().into_bytes();
        damaged[bit / 8] ^= 1 << (bit % 8);
        if let Ok(envelope) = TensorEnvelope::from_slice(&damaged) {
            assert_eq!(TensorEnvelope::from_json(&envelope.to_json()).unwrap(), envelope);
        }
    }
    assert!(TensorEnvelope::from_json(&"[".repeat(100_000)).is_err());
    let deep = format!(r#"{{"version":1,"extra":{{"a":{}"#, "[".repeat(100_000));
    assert!(TensorEnvelope::from_json(&deep).is_err());
}

#[test]
fn debug_output_shows_no_secrets() {
    let extra = BTreeMap::from([("mac".to_owned(), json!("topsecret"))]);
    let text = format!("{:?}", three().with_extra(extra).unwrap());
    assert!(text.contains("k.0") && text.contains("\"mac\""), "{text}");
    assert!(!text.contains("topsecret") && !text.contains("4096") && !text.contains("b64:"), "{text}");
}

/// Tensors of any type and shape, each cut into descriptors at any place.
fn any_envelope() -> impl Strategy<Value = TensorEnvelope> {
    let shape = prop::collection::vec(0..5u64, 0..4);
    let tensor = (prop::sample::select(DType::ALL), shape, any::<prop::sample::Index>());
    prop::collection::vec(tensor, 1..8).prop_filter_map("an offer has at least a byte", |tensors| {
        let mut sizes = Vec::new();
        let mut specs = Vec::new();
        for (i, (dtype, shape, cut)) in tensors.into_iter().enumerate() {
            let first = sizes.len();
            let len = dtype.byte_len(shape.iter().product()).unwrap();
            if len > 0 {
                let cut = cut.index(len as usize) as u64;
                sizes.extend([cut, len - cut].into_iter().filter(|&size| size > 0));
            }
            // Names whose order is not that of the tensors.
            specs.push(spec(&format!("{}.{i}", 97 * i % 10), dtype, &shape, first..sizes.len()));
        }
        (!sizes.is_empty()).then(|| TensorEnvelope::new(offer(&sizes), specs).unwrap())
    })
}

proptest! {
    #[test]
    fn any_envelope_survives_the_round_trip(envelope in any_envelope(), note in ".{0,20}") {
        let envelope = envelope.with_extra(BTreeMap::from([(note.clone(), json!([note]))])).unwrap();
        let read = TensorEnvelope::from_json(&envelope.to_json()).unwrap();
        prop_assert_eq!(&read, &envelope);
        for tensor in envelope.tensors() {
            prop_assert_eq!(read.get(&tensor.name), Some(tensor));
        }
        let inside: TensorEnvelope = serde_json::from_value(serde_json::to_value(&envelope).unwrap()).unwrap();
        prop_assert_eq!(inside, envelope);
    }
}
