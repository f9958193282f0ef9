//! What of checkpoints is fuzzed: headers of files, and manifests of peers.

use super::header::{Header, PREFIX};
use super::manifest::Manifest;
use crate::fuzz::{bounded, measured, printable};

pub(crate) fn header(input: &[u8]) {
    let (result, peak) = measured(|| Header::parse(input));
    bounded(peak, input.len());
    let header = match result {
        Ok(header) => header,
        Err(reason) => return printable(&reason),
    };
    let mut end = 0;
    for (tensor, range) in &header.tensors {
        assert_eq!((range.start, range.end - range.start), (end, tensor.byte_len));
        end = range.end;
    }
    assert_eq!(header.data_len(), end);
    let bytes = header.to_bytes().expect("it was read");
    assert_eq!(Header::parse(&bytes[PREFIX..]), Ok(header));
}

pub(crate) fn manifest(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (result, peak) = measured(|| Manifest::from_json(&text));
    // A byte that is not UTF-8 becomes three.
    bounded(peak, 3 * input.len());
    let manifest = match result {
        Ok(manifest) => manifest,
        Err(error) => return printable(&error),
    };
    assert_eq!(Manifest::from_json(&manifest.to_json()).ok().as_ref(), Some(&manifest));
    let header = Header::lay_out(manifest.tensors(), manifest.metadata());
    assert_eq!(header.data_len(), manifest.total_bytes());
    // Some manifests fit no file: elements of half a byte in odd numbers, say.
    match header.to_bytes() {
        Ok(bytes) => drop(Header::parse(&bytes[PREFIX..]).expect("it was just written")),
        Err(reason) => printable(&reason),
    }
}
