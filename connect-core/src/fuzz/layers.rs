//! The layers around an agent's blob: zlib, and base64 or hex around it.

use super::{Bytes, bounded, measured, printable};
use crate::wire::blob::{decode_within, encode, inflate, to_hex};

/// Stands in for the real limit, which costs milliseconds to reach.
const LIMIT: usize = 8 << 10;

pub(super) fn blob_layers(input: &[u8]) {
    let mut input = Bytes::new(input);
    let way = input.byte() % 3;
    let rest = input.rest();
    match way {
        0 => accepted(rest.len(), || inflate(rest, LIMIT)),
        1 => {
            let text = String::from_utf8_lossy(rest);
            accepted(text.len(), || decode_within(&text, LIMIT));
        }
        _ => {
            let text = encode(rest);
            let hex = to_hex(&text).expect("it was just written");
            for text in [&text, &hex, &hex.to_uppercase()] {
                assert_eq!(decode_within(text, rest.len()).as_deref(), Ok(rest));
            }
            if let Some(less) = rest.len().checked_sub(1) {
                assert!(decode_within(&text, less).is_err());
            }
        }
    }
}

fn accepted(len: usize, read: impl FnOnce() -> Result<Vec<u8>, crate::MetadataError>) {
    let (result, peak) = measured(read);
    // What is inflated grows by doubling, and is there twice for a moment.
    bounded(peak.saturating_sub(2 * LIMIT), len);
    match result {
        // That any blob comes back is asked above: compressing costs more than all the rest.
        Ok(blob) => assert!(blob.len() <= LIMIT),
        Err(error) => printable(&error),
    }
}
