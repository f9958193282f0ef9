//! The JSON documents.

use super::{bounded, measured, printable};
use crate::wire::{MAX_DESCRIPTORS, MAX_DIMS, MAX_NOTIFICATION_KEY_BYTES, MmKwargsTransfer};
use crate::{MediaDescriptor, MetadataError, OperationKind, RdmaMetadata, TensorEnvelope, TensorSpec};

/// Encoded blobs no longer than this are inflated here too: to a megabyte at most, which takes a millisecond.
const SHORT: usize = 1 << 10;

pub(super) fn metadata(input: &[u8]) {
    if let Some(metadata) = read(input, || RdmaMetadata::from_slice(input)) {
        check_metadata(&metadata);
        let json = metadata.to_json();
        assert_eq!(RdmaMetadata::from_json(&json).as_ref(), Ok(&metadata));
        let inside: Result<RdmaMetadata, _> = serde_json::from_str(&json);
        assert_eq!(inside.ok().as_ref(), Some(&metadata));
        if metadata.nixl_metadata().len() <= SHORT
            && let Ok(hex) = metadata.clone().with_hex_encoding()
        {
            assert_eq!(hex.decode_blob(), metadata.decode_blob());
        }
    }
}

pub(super) fn envelope(input: &[u8]) {
    if let Some(envelope) = read(input, || TensorEnvelope::from_slice(input)) {
        check_envelope(&envelope);
    }
}

pub(super) fn media(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Some(media) = read(input, || MediaDescriptor::from_json(&text)) else { return };
    let (device, dtype, shape) = (media.device(), media.dtype(), media.shape().to_vec());
    let envelope = media.into_envelope().expect("only the size of its blob could be wrong");
    check_envelope(&envelope);
    let tensor = only(&envelope);
    assert_eq!((tensor.dtype, &tensor.shape), (dtype, &shape));
    assert_eq!(envelope.metadata().descriptors()[0].device(), device);
    assert_eq!(envelope.metadata().kind(), OperationKind::Read);
}

/// The documents of Dynamo's workers: each reader sees every input.
pub(super) fn transfer_spec(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let spec = read(input, || TensorEnvelope::from_transfer_spec_json(&text));
    let request = read(input, || TensorEnvelope::from_transfer_request_json(&text));
    for envelope in spec.iter().chain(&request) {
        check_envelope(envelope);
        assert_eq!(only(envelope).byte_len, envelope.metadata().total_bytes());
    }
    if let Some(written) = spec.as_ref().and_then(|spec| spec.to_transfer_spec_json().ok()) {
        assert_eq!(TensorEnvelope::from_transfer_spec_json(&written).ok(), spec);
    }
    if let Some(written) = request.as_ref().and_then(|request| request.to_transfer_request_json().ok()) {
        assert_eq!(TensorEnvelope::from_transfer_request_json(&written).ok(), request);
    }
    if let Some(transfer) = read(input, || MmKwargsTransfer::from_json(&text)) {
        transfer.items.iter().for_each(check_envelope);
        if let Ok(written) = transfer.to_json() {
            assert_eq!(MmKwargsTransfer::from_json(&written).ok(), Some(transfer));
        }
    }
}

/// What was read, if it was accepted; its price and its refusal are checked.
fn read<T>(input: &[u8], read: impl FnOnce() -> Result<T, MetadataError>) -> Option<T> {
    let (result, peak) = measured(read);
    // A byte that is not UTF-8 becomes three.
    bounded(peak, 3 * input.len());
    result.map_err(|error| printable(&error)).ok()
}

fn check_metadata(metadata: &RdmaMetadata) {
    let regions = metadata.regions();
    assert!((1..=MAX_DESCRIPTORS).contains(&regions.len()));
    assert!((1..=MAX_NOTIFICATION_KEY_BYTES).contains(&metadata.notification_key().len()));
    for region in &regions {
        assert!(region.addr() > 0 && region.end() > region.addr());
    }
    let total: u128 = regions.iter().map(|region| u128::from(region.len())).sum();
    assert_eq!(u128::from(metadata.total_bytes()), total);
    let several = regions.iter().any(|region| region.device().kind() != regions[0].device().kind());
    assert_eq!(metadata.check_against(metadata.kind(), &regions).is_err(), several);
    assert!(metadata.check_against(metadata.kind(), &regions[1..]).is_err());
    // Neither addresses nor key nor blob.
    assert!(format!("{metadata:?}").len() < 300);
}

fn check_envelope(envelope: &TensorEnvelope) {
    check_metadata(envelope.metadata());
    let mut next = 0;
    for tensor in envelope.tensors() {
        assert_eq!(tensor.first_descriptor, next);
        assert!(tensor.shape.len() <= MAX_DIMS);
        assert_eq!(tensor.dtype.byte_len(tensor.elements()), Some(tensor.byte_len));
        let own = &envelope.metadata().descriptors()[tensor.descriptors()];
        assert_eq!(own.iter().map(|descriptor| descriptor.size()).sum::<u64>(), tensor.byte_len);
        assert_eq!(envelope.get(&tensor.name), Some(tensor));
        next += own.len();
    }
    assert_eq!(next, envelope.metadata().descriptors().len());
    assert_eq!(TensorEnvelope::from_json(&envelope.to_json()).as_ref(), Ok(envelope));
}

fn only(envelope: &TensorEnvelope) -> &TensorSpec {
    let [tensor] = envelope.tensors() else { panic!("{} tensors", envelope.tensors().len()) };
    tensor
}
