//! The codec of `nixl_metadata`: zlib inside base64, or inside hex as older peers write it.

use std::io::Write;

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use flate2::write::ZlibEncoder;
use flate2::{Compression, Decompress, FlushDecompress, Status};

use super::MetadataError;

/// Largest agent blob, inflated.
///
/// A blob of 1,000 registered regions has 44 KB over shared memory and TCP. At 256 bytes for each of
/// [`MAX_DESCRIPTORS`](super::MAX_DESCRIPTORS) regions, which leaves room for a remote key per rail of a
/// machine with several network cards, it has this many.
pub const MAX_BLOB_BYTES: usize = 16 << 20;

/// What the Python original compresses with.
const ZLIB_LEVEL: u32 = 6;

/// What tells base64 from the hex of older peers.
const BASE64_PREFIX: &str = "b64:";

/// Where inflating starts: the blob of a single region, with room to spare.
const FIRST_CAPACITY: usize = 4 << 10;

/// Compresses a blob and writes it as base64, as current peers do.
pub(crate) fn encode(blob: &[u8]) -> String {
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::new(ZLIB_LEVEL));
    zlib.write_all(blob).expect("a vector takes every byte");
    let compressed = zlib.finish().expect("a vector takes every byte");
    let mut text = String::from(BASE64_PREFIX);
    BASE64.encode_append(&compressed, &mut text);
    text
}

/// The same compressed bytes in hex.
pub(crate) fn to_hex(text: &str) -> Result<String, MetadataError> {
    Ok(HEXLOWER.encode(&compressed(text)?))
}

/// The blob. No more than [`MAX_BLOB_BYTES`] are ever inflated, whatever the text expands to.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, MetadataError> {
    decode_within(text, MAX_BLOB_BYTES)
}

/// The same with another limit.
pub(crate) fn decode_within(text: &str, max: usize) -> Result<Vec<u8>, MetadataError> {
    inflate(&compressed(text)?, max)
}

fn compressed(text: &str) -> Result<Vec<u8>, MetadataError> {
    let (expected, bytes) = match text.strip_prefix(BASE64_PREFIX) {
        Some(base64) => ("base64", BASE64.decode(base64.as_bytes())),
        None => ("hex", HEXLOWER_PERMISSIVE.decode(text.as_bytes())),
    };
    bytes.map_err(|error| MetadataError::Encoding { expected, reason: error.to_string() })
}

/// Inflates exactly one zlib stream of at most `max` bytes, with nothing behind it.
pub(crate) fn inflate(input: &[u8], max: usize) -> Result<Vec<u8>, MetadataError> {
    let invalid = |reason: String| MetadataError::Encoding { expected: "zlib", reason };
    // One byte more than allowed tells a blob of just `max` bytes from a longer one.
    let limit = max + 1;
    let mut blob = Vec::new();
    let mut zlib = Decompress::new(true);
    loop {
        if blob.len() == blob.capacity() {
            let wanted = blob.capacity().saturating_mul(2).clamp(FIRST_CAPACITY.min(limit), limit);
            blob.reserve_exact(wanted - blob.len());
        }
        // The reader stops at the vector's capacity and never makes it grow. What an allocator gives on
        // top of what was asked for is cut off by the check below.
        let rest = &input[zlib.total_in() as usize..];
        let status = zlib.decompress_vec(rest, &mut blob, FlushDecompress::None);
        if blob.len() > max {
            return Err(MetadataError::TooLarge {
                field: "the inflated nixl_metadata",
                len: blob.len(),
                max,
            });
        }
        match status.map_err(|error| invalid(error.to_string()))? {
            Status::StreamEnd => break,
            Status::Ok | Status::BufError if blob.len() == blob.capacity() => {}
            // There was room for more, so it is the input that ran out.
            Status::Ok | Status::BufError => return Err(invalid("the stream is cut off".to_owned())),
        }
    }
    match input.len() - zlib.total_in() as usize {
        0 => Ok(blob),
        extra => Err(invalid(format!("{extra} bytes follow the stream"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        compressed(&encode(bytes)).unwrap()
    }

    #[test]
    fn a_blob_comes_back_from_base64_and_from_hex_of_either_case() {
        for len in [0, 1, 4095, 4096, 4097, 100_000] {
            let blob: Vec<u8> = (0..len).map(|i: u32| (i * 31 % 251) as u8).collect();
            let text = encode(&blob);
            assert!(text.starts_with("b64:eJ"), "the zlib header of the original's level");
            let hex = to_hex(&text).unwrap();
            assert_eq!(to_hex(&hex).unwrap(), hex);
            for text in [&text, &hex, &hex.to_uppercase()] {
                assert_eq!(decode(text).unwrap(), blob);
            }
        }
    }

    #[test]
    fn an_incompressible_blob_comes_back() {
        let mut state = 1u64;
        let blob: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .take(300_000)
        .collect();
        assert_eq!(decode(&encode(&blob)).unwrap(), blob);
    }

    #[test]
    fn the_limit_is_exact() {
        for len in [0, 1, 9_999, 10_000] {
            assert_eq!(inflate(&zlib(&vec![7; len]), 10_000).unwrap().len(), len);
        }
        for len in [10_001, 10_002, 1 << 20] {
            let error = inflate(&zlib(&vec![7; len]), 10_000).unwrap_err();
            assert!(matches!(error, MetadataError::TooLarge { max: 10_000, .. }), "{error}");
        }
    }

    #[test]
    fn a_zip_bomb_costs_no_more_than_the_limit() {
        // 256 MiB of zeros in 256 KB.
        let bomb = format!("b64:{}", BASE64.encode(&zlib(&vec![0; 256 << 20])));
        let error = decode(&bomb).unwrap_err();
        assert!(
            matches!(error, MetadataError::TooLarge { max: MAX_BLOB_BYTES, len, .. } if len <= 2 * MAX_BLOB_BYTES)
        );
    }

    #[test]
    fn a_stream_cut_off_anywhere_is_refused() {
        let whole = zlib(&(0..200u8).collect::<Vec<_>>());
        for end in 0..whole.len() {
            let error = inflate(&whole[..end], 1000).unwrap_err();
            assert!(matches!(error, MetadataError::Encoding { expected: "zlib", .. }), "{end}: {error}");
        }
    }

    #[test]
    fn bytes_after_the_stream_are_refused() {
        let mut stream = zlib(b"hello");
        stream.push(0);
        let error = inflate(&stream, 1000).unwrap_err();
        assert!(error.to_string().contains("1 bytes follow"), "{error}");
    }

    #[test]
    fn a_damaged_stream_is_refused_or_ends_within_the_limit() {
        let whole = zlib(&(0..200u8).collect::<Vec<_>>());
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // The checksum at the stream's end catches every change of content.
            if let Ok(blob) = inflate(&damaged, 1000) {
                assert_eq!(blob, (0..200u8).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn only_strict_base64_and_hex_are_read() {
        for (text, layer) in [
            ("b64:eJwDAAAAAAE", "base64"),
            ("b64:eJwDAAAAAAF=", "base64"),
            ("b64:eJwDAA\nAAAAE=", "base64"),
            ("b64: eJwDAAAAAAE=", "base64"),
            ("b64:eJ_-", "base64"),
            ("B64:eJwDAAAAAAE=", "hex"),
            ("789", "hex"),
            ("78 9c", "hex"),
            ("0x789c", "hex"),
            ("", "zlib"),
            ("b64:", "zlib"),
            ("00", "zlib"),
        ] {
            match decode(text).unwrap_err() {
                MetadataError::Encoding { expected, .. } => assert_eq!(expected, layer, "{text:?}"),
                other => panic!("{text:?}: {other}"),
            }
        }
        assert_eq!(decode("b64:eJwDAAAAAAE=").unwrap(), b"");
    }
}
