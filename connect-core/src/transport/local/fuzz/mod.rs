//! What a process at the other end of the socket can send. The passive side is in `server.rs`, the active one
//! in `client.rs`; both get a mixture of proper frames, damaged ones and garbage, cut up at any byte.

mod client;
mod server;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::blob::Address;
use super::config::{DataPath, LocalConfig};
use super::frame::{Frame, HEADER, Header, Hello, Kind, NONCE};
use super::node::Node;
use crate::fuzz::{Bytes, bounded, measured, printable};
use crate::transport::TransportContext;
use crate::{Device, Region};

pub(crate) use client::client;
pub(crate) use server::server;

/// The blob: what is accepted is written again byte for byte.
pub(crate) fn blob(input: &[u8]) {
    let (decoded, peak) = measured(|| Address::decode(input));
    bounded(peak, input.len());
    match decoded {
        Ok(address) => assert_eq!(address.encode(), input),
        Err(error) => printable(&error),
    }
}

/// The frames: the same.
pub(crate) fn frames(mut input: &[u8]) {
    while let Some((header, rest)) = input.split_first_chunk::<HEADER>() {
        let header = match Header::decode(header) {
            Ok(header) => header,
            Err(error) => return printable(&error),
        };
        let Some((body, rest)) = rest.split_at_checked(header.len as usize) else { return };
        let whole = &input[..HEADER + body.len()];
        input = rest;
        if header.kind == Kind::Data {
            continue;
        }
        let (frame, peak) = measured(|| Frame::decode(header.kind, body));
        bounded(peak, body.len());
        match frame {
            Ok(frame) => assert_eq!(encoded(header.request, &frame), whole),
            Err(error) => return printable(&error),
        }
    }
}

/// For the attacks: what the reader of a blob says.
#[cfg(test)]
pub(crate) fn parse_blob(bytes: &[u8]) -> Result<(), crate::transport::TransportError> {
    Address::decode(bytes).map(drop)
}

/// For the attacks: what the reader of one frame says.
#[cfg(test)]
pub(crate) fn parse_frames(bytes: &[u8]) -> Result<(), impl std::fmt::Debug + std::fmt::Display + use<>> {
    let (header, body) = bytes.split_first_chunk::<HEADER>().expect("an attack has a header");
    Header::decode(header).and_then(|header| Frame::decode(header.kind, body)).map(drop)
}

/// A number that a peer says to have in its memory, and has: we are our own peer.
static NONCE_IN_MEMORY: [u8; NONCE] = *b"fuzz's own nonce";

/// This side, for each way that bytes can take.
struct Nodes([Node; 3]);

impl Nodes {
    fn new() -> Self {
        let mut attach = LocalConfig::default();
        attach.never_direct = true;
        let configs = [LocalConfig::default(), attach, LocalConfig::default().data_path(DataPath::Stream)];
        Self(configs.map(|config| {
            let context = TransportContext {
                worker_id: "fuzzed".into(),
                incarnation: "1".into(),
                allowed_workers: Some(vec!["x".into()]),
                counters: Arc::default(),
            };
            Node::new(config, context).expect("a node needs an epoll")
        }))
    }

    fn choose(&self, byte: u8) -> &Node {
        &self.0[usize::from(byte) % 3]
    }
}

/// The peer: a socket, and what it is about to say.
struct Peer {
    socket: UnixStream,
    unsent: Vec<u8>,
}

impl Peer {
    /// Appends a frame, and maybe damages it.
    fn say(&mut self, request: u64, frame: &Frame, input: &mut Bytes<'_>) {
        let start = self.unsent.len();
        self.unsent.extend(encoded(request, frame));
        let damage = input.byte();
        if damage >= 240 {
            let len = self.unsent.len() - start;
            self.unsent[start + usize::from(input.byte()) % len] ^= damage << 4 | 1 << (damage % 8);
        }
    }

    fn say_data(&mut self, request: u64, input: &mut Bytes<'_>) {
        let payload = input.byte();
        let len = u32::from(payload) + 1;
        self.unsent.extend(Header { kind: Kind::Data, request, len }.encode());
        self.unsent.extend(std::iter::repeat_n(payload, len as usize));
    }

    fn say_anything(&mut self, input: &mut Bytes<'_>) {
        let count = usize::from(input.byte());
        self.unsent.extend(input.take(count));
    }

    /// Sends the next bytes. The socket holds more than an input can say.
    fn send(&mut self, count: usize) {
        let count = count.min(self.unsent.len());
        // The other side may have hung up.
        let _ = self.socket.write(&self.unsent[..count]);
        self.unsent.drain(..count);
    }

    /// What the other side has said by now.
    fn hear(&mut self, heard: &mut Vec<u8>) {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => heard.extend(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
                    return;
                }
            }
        }
    }
}

fn encoded(request: u64, frame: &Frame) -> Vec<u8> {
    let mut bytes = vec![];
    frame.encode(request, &mut bytes);
    bytes
}

/// Who the peer says it is.
fn hello(worker_id: &str, input: &mut Bytes<'_>) -> Hello {
    let nonce_addr = match input.byte() {
        0..=199 => NONCE_IN_MEMORY.as_ptr() as u64,
        _ => input.number(),
    };
    Hello { worker_id: worker_id.into(), incarnation: "y".into(), nonce_addr, nonce: NONCE_IN_MEMORY }
}

/// Memory with gaps, which nobody may write.
struct Memory {
    bytes: Vec<u8>,
    regions: Arc<[Region]>,
    /// What its regions hold, as far as it is known.
    expected: Option<Vec<u8>>,
}

const GAP: usize = 8;
const UNTOUCHED: u8 = 0xa5;
const TAKEN_BACK: u8 = 0xee;

impl Memory {
    fn new(sizes: &[usize], fill: impl Fn(usize) -> u8) -> Self {
        let mut bytes = vec![UNTOUCHED; GAP];
        for size in sizes {
            bytes.extend((0..*size).map(&fill));
            bytes.extend([UNTOUCHED; GAP]);
        }
        // The capacity is final: a pointer taken now stays good.
        let mut addr = bytes.as_mut_ptr().expose_provenance() + GAP;
        let regions = sizes
            .iter()
            .map(|&size| {
                let region = Region::new(Device::CPU, addr as u64, size as u64).expect("no region is empty");
                addr += size + GAP;
                region
            })
            .collect();
        Self { bytes, regions, expected: None }
    }

    /// From now on nobody may write it. A source may be overwritten by its owner, who got it back.
    fn is_quiet(&mut self, is_source: bool) {
        if is_source && self.expected.is_none() {
            for region in self.regions.iter() {
                let start = (region.addr() - self.bytes.as_ptr().addr() as u64) as usize;
                self.bytes[start..start + region.len() as usize].fill(TAKEN_BACK);
            }
        }
        let content = self.content();
        let expected = self.expected.get_or_insert_with(|| content.clone());
        assert_eq!(*expected, content, "it was written after it was quiet");
    }

    /// The content of the regions, one after the other. Fails if a gap was written to.
    fn content(&self) -> Vec<u8> {
        let mut content = vec![];
        let mut rest = &self.bytes[..];
        for region in self.regions.iter() {
            let (gap, after) = rest.split_at(GAP);
            assert_eq!(gap, [UNTOUCHED; GAP], "written beside a region");
            let (own, after) = after.split_at(region.len() as usize);
            content.extend(own);
            rest = after;
        }
        assert_eq!(rest, [UNTOUCHED; GAP], "written beside a region");
        content
    }
}
