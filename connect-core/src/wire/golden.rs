//! The documents of `golden/` are written and read byte for byte, and `docs/wire.md` shows them.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    Digest, EMBEDDINGS_TENSOR_NAME, MM_KWARGS_ITEM_NAME, MediaDescriptor, MmKwargsTransfer, RdmaMetadata,
    TensorEnvelope, TensorSpec,
};
use crate::{DType, Device, OperationKind, Region};

const METADATA: &str = include_str!("../../golden/metadata.json");
const METADATA_HEX: &str = include_str!("../../golden/metadata_hex.json");
const ENVELOPE: &str = include_str!("../../golden/envelope.json");
const ENVELOPE_DIGEST: &str = include_str!("../../golden/envelope_digest.json");
const TRANSFER_SPEC: &str = include_str!("../../golden/transfer_spec.json");
const TRANSFER_REQUEST: &str = include_str!("../../golden/transfer_request.json");
const MM_KWARGS: &str = include_str!("../../golden/mm_kwargs.json");
const MEDIA: &str = include_str!("../../golden/media.json");

const KEY: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

fn metadata() -> RdmaMetadata {
    let region = |addr| Region::new(Device::CPU, addr, 48).unwrap();
    RdmaMetadata::new(OperationKind::Read, &[region(4096), region(8192)], b"agent", KEY.to_owned()).unwrap()
}

fn envelope(with_digests: bool) -> TensorEnvelope {
    let mut k = TensorSpec::new("k", DType::BF16, [1, 8, 6], 0..2).unwrap();
    let mut none = TensorSpec::new("none", DType::F32, [4, 0], 2..2).unwrap();
    if with_digests {
        k = k.with_digest(Digest::of(&[7; 96]));
        none = none.with_digest(Digest::of(b""));
    }
    let extra = BTreeMap::from([("step".to_owned(), json!(7))]);
    TensorEnvelope::new(metadata(), vec![k, none]).unwrap().with_extra(extra).unwrap()
}

#[test]
fn the_metadata_document() {
    // The compressor is pinned; should it ever write other bytes, the document below still has to be read.
    assert_eq!(metadata().to_json(), METADATA);
    assert_eq!(metadata().with_hex_encoding().unwrap().to_json(), METADATA_HEX);
    for (document, hex) in [(METADATA, false), (METADATA_HEX, true)] {
        let read = RdmaMetadata::from_json(document).unwrap();
        assert_eq!(read.to_json(), document);
        assert_eq!(read.decode_blob().unwrap(), b"agent");
        assert_eq!((read.notification_key(), read.kind()), (KEY, OperationKind::Read));
        assert_eq!(read.regions(), metadata().regions());
        assert_eq!(read.nixl_metadata().starts_with("b64:"), !hex);
    }
}

#[test]
fn the_envelope() {
    for (document, digests) in [(ENVELOPE, false), (ENVELOPE_DIGEST, true)] {
        assert_eq!(envelope(digests).to_json(), document);
        assert_eq!(TensorEnvelope::from_json(document).unwrap(), envelope(digests));
    }
}

#[test]
fn the_documents_of_dynamo() {
    let envelope = TensorEnvelope::from_transfer_spec_json(TRANSFER_SPEC).unwrap();
    let tensor = envelope.get("pixel_values").unwrap();
    assert_eq!((tensor.dtype, &tensor.shape[..], tensor.byte_len), (DType::BF16, &[1, 48][..], 96));
    assert_eq!(envelope.metadata().to_json(), METADATA);

    let envelope = TensorEnvelope::from_transfer_request_json(TRANSFER_REQUEST).unwrap();
    let tensor = envelope.get(EMBEDDINGS_TENSOR_NAME).unwrap();
    assert_eq!((tensor.dtype, &tensor.shape[..]), (DType::F16, &[3, 8][..]));
    assert_eq!(envelope.to_transfer_request_json().unwrap(), TRANSFER_REQUEST);

    let transfer = MmKwargsTransfer::from_json(MM_KWARGS).unwrap();
    assert!(transfer.items[0].get(MM_KWARGS_ITEM_NAME).is_some());
    assert_eq!(transfer.to_json().unwrap(), MM_KWARGS);

    let media = MediaDescriptor::from_json(MEDIA).unwrap();
    assert_eq!((media.device(), media.dtype(), media.shape()), (Device::CPU, DType::U8, &[2, 2, 3][..]));
    assert_eq!(media.content_hash(), Some("8f1e"));
    let envelope = media.into_envelope().unwrap();
    assert_eq!(envelope.metadata().regions(), [Region::new(Device::CPU, 4096, 12).unwrap()]);
    assert_eq!(envelope.metadata().decode_blob().unwrap(), b"agent");
}

#[test]
fn the_docs_show_what_is_golden() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_to_string(root.join("../docs/wire.md")).unwrap();
    // Long lines are wrapped there.
    let docs = docs.replace('\n', "");
    for file in std::fs::read_dir(root.join("golden")).unwrap().map(|file| file.unwrap().path()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(docs.contains(&format!("`{name}`")), "{name} is not named");
        if !name.ends_with(".bin") {
            let content = std::fs::read_to_string(&file).unwrap().replace('\n', "");
            assert!(docs.contains(&content), "{name} is not shown as it is");
        }
    }
}
