//! What two connectors say to each other: the frames and their bounded codec. Pure: no IO.
//!
//! A frame is a header of [`HEADER`] bytes (kind, request, body length) and a body. Requests are numbered by
//! the client. All numbers are little-endian; both ends run on one machine, so this only fixes a choice.

use std::sync::Arc;

use super::blob::MAX_NAME;
use super::codec::{Malformed, Reader, put_bytes};
use crate::transport::MAX_MESSAGE_BYTES;
use crate::{Device, Region};

/// Sets this protocol apart from whatever else might connect to a Unix socket.
const MAGIC: [u8; 8] = *b"connect\0";

/// Raised when the frames change.
const VERSION: u16 = 1;

/// Kind (1 byte), request (8), length of the body (4).
pub(super) const HEADER: usize = 13;

/// Regions of one transfer. As many as a metadata document may hold.
pub(super) const MAX_REGIONS: usize = 65_536;

/// Notification keys are UUIDs; a metadata document may hold somewhat longer ones.
pub(super) const MAX_KEY: usize = 1024;

/// Payload of one DATA frame. It bounds how long a started frame keeps memory busy after a cancel, and is
/// large enough that headers cost nothing (a socket's buffer holds 208 KiB by default).
pub(super) const MAX_DATA: u32 = 256 * 1024;

/// Reasons are sentences.
const MAX_REASON: usize = 1024;

/// Magic, version, address of the nonce, nonce, two names with their lengths.
const MAX_HELLO: usize = 8 + 2 + 8 + NONCE + 2 * (2 + MAX_NAME);

/// Flag, key with its length, count, and for each region its address, its length and, for a WRITE, the address
/// of its source.
const MAX_REQUEST: usize = 1 + 2 + MAX_KEY + 4 + MAX_REGIONS * 24;

/// 128 random bits, as in a UUID: nobody hits them by chance.
pub(super) const NONCE: usize = 16;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $max:expr;)*) => {
        /// Every kind of frame.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Kind { $($(#[$doc])* $name = $value),* }

        impl Kind {
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$name),*];

            fn from_value(value: u8) -> Option<Self> {
                match value { $($value => Some(Self::$name),)* _ => None }
            }

            /// The longest body such a frame may have.
            const fn max_body(self) -> usize {
                match self { $(Self::$name => $max),* }
            }
        }
    };
}
kinds! {
    /// Client: who I am.
    Hello = 1, MAX_HELLO;
    /// Server: who I am; you are welcome.
    Welcome = 2, MAX_HELLO;
    /// Client: I want to read an offer.
    Read = 3, MAX_REQUEST;
    /// Client: I want to write an offer.
    Write = 4, MAX_REQUEST;
    /// Server: copy out of my memory and say DONE. A WRITE needs no such grant: the server copies by itself.
    GrantAttach = 5, 0;
    /// Server: DATA will follow (READ) or may be sent (WRITE).
    GrantStream = 6, 0;
    /// Either: the next bytes of the payload.
    Data = 7, MAX_DATA as usize;
    /// Client: I have every byte.
    Done = 8, 0;
    /// Server: complete.
    Ok = 9, 0;
    /// Server: no, and why. About request 0: the whole connection is refused.
    Refused = 10, 2 + MAX_REASON;
    /// Server: the offer was withdrawn while you were at it.
    Revoked = 11, 0;
    /// Client: I gave up, and touch your memory no more.
    Abort = 12, 0;
    /// Server: I touch the memory of the request you gave up no more.
    Aborted = 13, 0;
    /// Client: a message, about no request.
    Message = 14, MAX_MESSAGE_BYTES;
}

/// The start of every frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Which request; 0 is about the connection.
    pub(super) request: u64,
    /// Bytes of the body.
    pub(super) len: u32,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.kind as u8;
        bytes[1..9].copy_from_slice(&self.request.to_le_bytes());
        bytes[9..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    /// Reads a header and checks that its kind may have a body of that length.
    pub(super) fn decode(bytes: &[u8; HEADER]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let kind = reader.u8("kind")?;
        let kind = Kind::from_value(kind).ok_or_else(|| Malformed(format!("unknown frame kind {kind}")))?;
        let request = reader.u64("request")?;
        let len = reader.u32("length")?;
        if len as usize > kind.max_body() {
            return Err(Malformed(format!("{kind:?} frame of {len} bytes")));
        }
        if kind == Kind::Data && len == 0 {
            return Err(Malformed::new("Data frame without data"));
        }
        Ok(Self { kind, request, len })
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) worker_id: String,
    pub(super) incarnation: String,
    /// Where the nonce lies in the sender's memory: who can read it there can attach.
    pub(super) nonce_addr: u64,
    pub(super) nonce: [u8; NONCE],
}

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    /// READ: I can and want to copy out of your memory. WRITE: you may copy out of mine.
    pub(super) attach: bool,
    /// The capability: the offer's notification key.
    pub(super) key: Vec<u8>,
    /// The regions offered, as the metadata says.
    pub(super) regions: Arc<[Region]>,
}

/// A frame with its body; DATA is not here, because its body never passes through a codec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Hello(Hello),
    Welcome(Hello),
    Read(Request),
    /// The request, and for each region where its bytes lie in the client's memory.
    Write(Request, Arc<[Region]>),
    GrantAttach,
    GrantStream,
    Done,
    Ok,
    Refused(String),
    Revoked,
    Abort,
    Aborted,
    Message(Vec<u8>),
}

impl Frame {
    fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Welcome(_) => Kind::Welcome,
            Self::Read(_) => Kind::Read,
            Self::Write(..) => Kind::Write,
            Self::GrantAttach => Kind::GrantAttach,
            Self::GrantStream => Kind::GrantStream,
            Self::Done => Kind::Done,
            Self::Ok => Kind::Ok,
            Self::Refused(_) => Kind::Refused,
            Self::Revoked => Kind::Revoked,
            Self::Abort => Kind::Abort,
            Self::Aborted => Kind::Aborted,
            Self::Message(_) => Kind::Message,
        }
    }

    /// Appends the frame to `out`.
    pub(super) fn encode(&self, request: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER]);
        match self {
            Self::Hello(hello) | Self::Welcome(hello) => hello.encode(out),
            Self::Read(request) => request.encode(out),
            Self::Write(request, sources) => {
                request.encode(out);
                for source in sources.iter() {
                    out.extend_from_slice(&source.addr().to_le_bytes());
                }
            }
            Self::Message(body) => out.extend_from_slice(body),
            Self::Refused(reason) => {
                // The reader takes one line.
                let reason = reason.replace(char::is_control, " ");
                let mut end = reason.len().min(MAX_REASON);
                while !reason.is_char_boundary(end) {
                    end -= 1;
                }
                put_bytes(out, &reason.as_bytes()[..end]);
            }
            _ => {}
        }
        // Bodies are bounded far below 4 GiB by the bounds that begin() and offer() check.
        let len = u32::try_from(out.len() - start - HEADER).unwrap_or(u32::MAX);
        let header = Header { kind: self.kind(), request, len };
        out[start..start + HEADER].copy_from_slice(&header.encode());
    }

    /// Reads the body of a frame whose header was checked.
    pub(super) fn decode(kind: Kind, body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let frame = match kind {
            Kind::Hello => Self::Hello(Hello::decode(&mut reader)?),
            Kind::Welcome => Self::Welcome(Hello::decode(&mut reader)?),
            Kind::Read => Self::Read(Request::decode(&mut reader)?),
            Kind::Write => {
                let request = Request::decode(&mut reader)?;
                let sources = request
                    .regions
                    .iter()
                    .map(|target| region(reader.u64("source address")?, target.len()))
                    .collect::<Result<_, _>>()?;
                Self::Write(request, sources)
            }
            Kind::GrantAttach => Self::GrantAttach,
            Kind::GrantStream => Self::GrantStream,
            Kind::Data => return Err(Malformed::new("Data has no body to decode")),
            Kind::Done => Self::Done,
            Kind::Ok => Self::Ok,
            Kind::Refused => Self::Refused(reader.line(MAX_REASON, "reason")?),
            Kind::Revoked => Self::Revoked,
            Kind::Abort => Self::Abort,
            Kind::Aborted => Self::Aborted,
            Kind::Message => return Ok(Self::Message(body.to_vec())),
        };
        reader.finish()?;
        Ok(frame)
    }
}

impl Hello {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.nonce_addr.to_le_bytes());
        out.extend_from_slice(&self.nonce);
        put_bytes(out, self.worker_id.as_bytes());
        put_bytes(out, self.incarnation.as_bytes());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        if reader.array("magic")? != MAGIC {
            return Err(Malformed::new("not this protocol"));
        }
        let version = reader.u16("version")?;
        if version != VERSION {
            return Err(Malformed(format!("protocol version {version}; this library speaks {VERSION}")));
        }
        Ok(Self {
            nonce_addr: reader.u64("nonce address")?,
            nonce: reader.array("nonce")?,
            worker_id: reader.line(MAX_NAME, "worker id")?,
            incarnation: reader.line(MAX_NAME, "incarnation")?,
        })
    }

    /// The name that notifications carry.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.worker_id, self.incarnation)
    }
}

impl Request {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.attach));
        put_bytes(out, &self.key);
        out.extend_from_slice(&u32::try_from(self.regions.len()).unwrap_or(u32::MAX).to_le_bytes());
        for region in self.regions.iter() {
            out.extend_from_slice(&region.addr().to_le_bytes());
            out.extend_from_slice(&region.len().to_le_bytes());
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let attach = match reader.u8("attach flag")? {
            0 => false,
            1 => true,
            other => return Err(Malformed(format!("attach flag {other}"))),
        };
        let key = reader.bytes(MAX_KEY, "key")?.to_vec();
        let count = reader.u32("region count")? as usize;
        // The second bound keeps the allocation below within what was really sent.
        if count == 0 || count > MAX_REGIONS || count > reader.remaining() / 16 {
            return Err(Malformed(format!("{count} regions")));
        }
        let regions = (0..count)
            .map(|_| region(reader.u64("address")?, reader.u64("length")?))
            .collect::<Result<_, _>>()?;
        Ok(Self { attach, key, regions })
    }
}

fn region(addr: u64, len: u64) -> Result<Region, Malformed> {
    Region::new(Device::CPU, addr, len).map_err(|reason| Malformed(reason.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(bytes: &[u8]) -> (Header, &[u8]) {
        let (header, body) = bytes.split_first_chunk::<HEADER>().unwrap();
        (Header::decode(header).unwrap(), body)
    }

    fn any_regions() -> impl Strategy<Value = Arc<[Region]>> {
        proptest::collection::vec((1..1u64 << 40, 1..1u64 << 30), 1..20).prop_map(|ranges| {
            ranges.into_iter().map(|(addr, len)| Region::new(Device::CPU, addr, len).unwrap()).collect()
        })
    }

    fn any_request() -> impl Strategy<Value = Request> {
        (any::<bool>(), proptest::collection::vec(any::<u8>(), 1..64), any_regions())
            .prop_map(|(attach, key, regions)| Request { attach, key, regions })
    }

    fn any_hello() -> impl Strategy<Value = Hello> {
        ("\\PC{1,40}", "[a-f0-9]{1,32}", any::<u64>(), any::<[u8; NONCE]>()).prop_map(
            |(worker_id, incarnation, nonce_addr, nonce)| Hello { worker_id, incarnation, nonce_addr, nonce },
        )
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        prop_oneof![
            any_hello().prop_map(Frame::Hello),
            any_hello().prop_map(Frame::Welcome),
            any_request().prop_map(Frame::Read),
            (any_request(), 1..1u64 << 40).prop_map(|(request, addr)| {
                let sources = request
                    .regions
                    .iter()
                    .map(|r| Region::new(Device::CPU, addr, r.len()).unwrap())
                    .collect();
                Frame::Write(request, sources)
            }),
            "\\PC{1,200}".prop_map(Frame::Refused),
            Just(Frame::GrantAttach),
            Just(Frame::GrantStream),
            Just(Frame::Done),
            Just(Frame::Ok),
            Just(Frame::Revoked),
            Just(Frame::Abort),
            Just(Frame::Aborted),
        ]
    }

    proptest! {
        #[test]
        fn a_frame_round_trips(frame in any_frame(), request: u64) {
            let mut bytes = vec![];
            frame.encode(request, &mut bytes);
            let (header, body) = split(&bytes);
            prop_assert_eq!(header.request, request);
            prop_assert_eq!(header.len as usize, body.len());
            prop_assert_eq!(Frame::decode(header.kind, body), Ok(frame));
        }

        #[test]
        fn a_body_that_is_cut_or_too_long_is_refused(frame in any_frame(), cut: prop::sample::Index) {
            let mut bytes = vec![];
            frame.encode(1, &mut bytes);
            let (header, body) = split(&bytes);
            if !body.is_empty() {
                prop_assert!(Frame::decode(header.kind, &body[..cut.index(body.len())]).is_err());
            }
            prop_assert!(Frame::decode(header.kind, &[body, &[0]].concat()).is_err());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for kind in Kind::ALL {
                let _ = Frame::decode(*kind, &bytes);
            }
            if let Some(header) = bytes.first_chunk() {
                let _ = Header::decode(header);
            }
        }
    }

    #[test]
    fn oversized_and_unknown_headers_are_refused() {
        for kind in Kind::ALL {
            let len = u32::try_from(kind.max_body()).unwrap() + 1;
            let header = Header { kind: *kind, request: 1, len };
            assert!(Header::decode(&header.encode()).is_err(), "{kind:?}");
        }
        for kind in [0, 15, 255] {
            let mut bytes = Header { kind: Kind::Ok, request: 1, len: 0 }.encode();
            bytes[0] = kind;
            assert!(Header::decode(&bytes).is_err(), "kind {kind}");
        }
        assert!(Header::decode(&Header { kind: Kind::Data, request: 1, len: 0 }.encode()).is_err());
    }

    #[test]
    fn a_count_beyond_what_was_sent_allocates_nothing() {
        let mut body = vec![0];
        put_bytes(&mut body, b"key");
        body.extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(Frame::decode(Kind::Read, &body).is_err());
    }

    #[test]
    fn what_ends_up_in_a_log_is_one_line() {
        let mut bytes = vec![];
        Frame::Refused("two\nlines".into()).encode(1, &mut bytes);
        let (header, body) = split(&bytes);
        assert_eq!(Frame::decode(header.kind, body), Ok(Frame::Refused("two lines".into())));
        let mut body = body.to_vec();
        body[5] = 0x1b;
        assert!(Frame::decode(Kind::Refused, &body).is_err());
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let mut bytes = vec![];
        Frame::Refused("ä".repeat(MAX_REASON)).encode(0, &mut bytes);
        let (header, body) = split(&bytes);
        assert!(matches!(Frame::decode(header.kind, body), Ok(Frame::Refused(r)) if r.len() == MAX_REASON));
    }
}
