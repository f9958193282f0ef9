//! The blob that tells a peer how to get here: [`Address`] and its codec. It becomes `nixl_metadata`.

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::LOCAL_MARKER;
use super::codec::{Malformed, Reader, put_bytes};
use crate::transport::TransportError;

/// What a NIXL agent's blob begins with.
const NIXL_MARKER: &[u8] = b"nixlSerDes";

/// The layout after the marker.
const VERSION: u8 = 1;

/// `boot_id` is a UUID of 36 characters; a little room for a substitute.
const MAX_HOST: usize = 64;

/// The longest path a Unix socket can have: `sun_path` holds 108 bytes, one of them the final NUL.
pub(super) const MAX_PATH: usize = 107;

/// Ours are UUIDs or names that people type; more is no name.
pub(super) const MAX_NAME: usize = 256;

/// Where a connector can be reached, and who it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Address {
    /// The running kernel: its boot id.
    pub(super) host: String,
    /// Its socket.
    pub(super) path: PathBuf,
    /// Its worker id.
    pub(super) worker_id: String,
    /// Which incarnation of that worker.
    pub(super) incarnation: String,
}

impl Address {
    /// The name that notifications and reports use.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.worker_id, self.incarnation)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = LOCAL_MARKER.to_vec();
        out.push(VERSION);
        put_bytes(&mut out, self.host.as_bytes());
        put_bytes(&mut out, self.path.as_os_str().as_bytes());
        put_bytes(&mut out, self.worker_id.as_bytes());
        put_bytes(&mut out, self.incarnation.as_bytes());
        out
    }

    /// Reads a blob and refuses everything that [`encode`](Self::encode) does not write.
    pub(super) fn decode(blob: &[u8]) -> Result<Self, TransportError> {
        if blob.starts_with(NIXL_MARKER) {
            return Err(TransportError::Protocol(
                "the metadata was made by a NIXL agent, but this connector uses the `local` transport; \
                 use the same transport on both sides"
                    .into(),
            ));
        }
        let Some(rest) = blob.strip_prefix(LOCAL_MARKER) else {
            return Err(TransportError::Protocol(
                "the metadata was not made by a `local` transport: its marker is missing".into(),
            ));
        };
        Self::decode_fields(rest)
            .map_err(|reason| TransportError::Protocol(format!("malformed `local` metadata: {reason}")))
    }

    fn decode_fields(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8("version")?;
        if version != VERSION {
            return Err(Malformed(format!("version {version}; this library reads {VERSION}")));
        }
        let host = reader.line(MAX_HOST, "host id")?;
        let path = reader.bytes(MAX_PATH, "socket path")?.to_vec();
        let worker_id = reader.line(MAX_NAME, "worker id")?;
        let incarnation = reader.line(MAX_NAME, "incarnation")?;
        reader.finish()?;
        if path[0] != b'/' || path.iter().any(u8::is_ascii_control) {
            return Err(Malformed::new("the socket path is not a plain absolute path"));
        }
        Ok(Self { host, path: PathBuf::from(std::ffi::OsString::from_vec(path)), worker_id, incarnation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        Address {
            host: "0b0f7a6e-9f43-4a63-9d4b-6a5ad7cf8e2b".into(),
            path: "/run/user/1000/connect-local-x/socket".into(),
            worker_id: "decode-0".into(),
            incarnation: "a1b2".into(),
        }
    }

    #[test]
    fn a_blob_round_trips() {
        assert_eq!(Address::decode(&address().encode()), Ok(address()));
        assert_eq!(address().name(), "decode-0-a1b2");
    }

    #[test]
    fn a_blob_cut_anywhere_or_with_trailing_bytes_is_refused() {
        let blob = address().encode();
        for len in 0..blob.len() {
            assert!(
                matches!(Address::decode(&blob[..len]), Err(TransportError::Protocol(_))),
                "cut at {len}"
            );
        }
        let mut longer = blob;
        longer.push(0);
        assert!(matches!(Address::decode(&longer), Err(TransportError::Protocol(_))));
    }

    #[test]
    fn a_blob_with_any_byte_changed_is_refused_or_names_another_address() {
        let blob = address().encode();
        for at in 0..blob.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = blob.clone();
                damaged[at] ^= flip;
                assert_ne!(Address::decode(&damaged).ok(), Some(address()), "byte {at}");
            }
        }
    }

    #[test]
    fn a_nixl_blob_is_refused_by_name() {
        let error = Address::decode(b"nixlSerDes|whatever").unwrap_err().to_string();
        assert!(error.contains("NIXL") && error.contains("`local`"), "{error}");
    }

    #[test]
    fn a_path_that_is_relative_or_breaks_a_log_line_is_refused() {
        for path in ["run/socket", "/run/a\nb", "/run/\0"] {
            let blob = Address { path: path.into(), ..address() }.encode();
            assert!(Address::decode(&blob).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_name_that_breaks_a_log_line_is_refused() {
        for name in ["a\nb", "\u{1b}[2J", "\u{85}"] {
            for address in [
                Address { host: name.into(), ..address() },
                Address { worker_id: name.into(), ..address() },
                Address { incarnation: name.into(), ..address() },
            ] {
                assert!(Address::decode(&address.encode()).is_err(), "{name:?}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_blob_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = Address::decode(&bytes);
            let _ = Address::decode(&[LOCAL_MARKER, &bytes].concat());
            let _ = Address::decode(&[LOCAL_MARKER, &[VERSION], &bytes].concat());
        }
    }
}
