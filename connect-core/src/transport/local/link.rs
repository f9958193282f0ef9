//! One non-blocking connection: [`Link`] turns bytes into frames and frames into bytes, and moves payload
//! between the socket and memory without a buffer in between. What the frames mean is not known here.
//!
//! Reads ask for exactly the bytes that the current frame still lacks, so that payload is never read ahead
//! into a buffer.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, getsockopt, recv, send, sockopt};

use super::attach::{Source, Target};
use super::codec::Malformed;
use super::frame::{Frame, HEADER, Header, Kind, MAX_DATA};
use crate::transport::{Quiescence, TransportError};

/// Payload sent by one [`Link::flush`], so that one fast reader does not starve the others. Small beside a
/// second, large beside a frame.
const FLUSH_BUDGET: u64 = 4 * 1024 * 1024;

/// A body is read into memory that grows by this much, so that announcing a large frame costs its sender as
/// much as it costs us.
const BODY_STEP: usize = 64 * 1024;

/// Where payload goes that nobody wants any more.
const SCRATCH: usize = 16 * 1024;

/// Unsent control frames beyond this stop us from reading more requests of a peer that does not read our
/// answers. Thousands of answers fit.
const MAX_BACKLOG: usize = 1024 * 1024;

/// Capacity that is kept for the next frames; a rare huge request is not worth its memory forever.
const KEEP_CAPACITY: usize = 64 * 1024;

/// A connection to one peer process.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    /// The peer's process and user, as the kernel tells.
    pub(super) pid: i32,
    pub(super) uid: u32,
    /// Where the payload of a request goes. Without an entry it is discarded.
    pub(super) sinks: HashMap<u64, Target>,
    reading: Reading,
    /// Control bytes that go before the payload, and how many of them are sent.
    head: Vec<u8>,
    head_sent: usize,
    /// The DATA frame that is being sent.
    payload: Option<Payload>,
    /// Control bytes that go after it.
    tail: Vec<u8>,
    /// Payload waiting for its turn.
    streams: VecDeque<Stream>,
}

#[derive(Debug)]
enum Reading {
    Header { buffer: [u8; HEADER], have: usize },
    Body { header: Header, body: Vec<u8>, have: usize },
    Payload { request: u64, left: u32 },
}

#[derive(Debug)]
struct Stream {
    request: u64,
    source: Source,
}

#[derive(Debug)]
struct Payload {
    stream: Stream,
    /// Bytes of this frame still to send.
    left: u64,
    /// Nothing more of the stream after this frame.
    cancelled: bool,
}

/// What [`Link::receive`] found.
#[derive(Debug)]
pub(super) enum Received {
    /// A whole frame.
    Frame(u64, Frame),
    /// Some payload went into a sink (or was discarded).
    Payload { request: u64, bytes: u64 },
    /// Nothing more for now.
    Idle,
}

/// Why a connection can't go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The peer closed it: it ended.
    #[error("the connection was closed")]
    Closed,
    /// The peer does not keep to the protocol.
    #[error(transparent)]
    Violation(#[from] Malformed),
    /// The system failed.
    #[error("the connection failed: {0}")]
    Io(Errno),
}

impl Broken {
    pub(super) fn violation(reason: &str) -> Self {
        Self::Violation(Malformed::new(reason))
    }
}

impl From<Errno> for Broken {
    fn from(error: Errno) -> Self {
        match error {
            Errno::EPIPE | Errno::ECONNRESET => Self::Closed,
            error => Self::Io(error),
        }
    }
}

impl Link {
    /// Takes over a connected non-blocking socket.
    pub(super) fn new(socket: OwnedFd) -> Result<Self, TransportError> {
        let peer = getsockopt(&socket, sockopt::PeerCredentials)
            .map_err(|error| TransportError::resource("asking who a peer is", error))?;
        Ok(Self {
            socket,
            pid: peer.pid(),
            uid: peer.uid(),
            sinks: HashMap::new(),
            reading: Reading::Header { buffer: [0; HEADER], have: 0 },
            head: vec![],
            head_sent: 0,
            payload: None,
            tail: vec![],
            streams: VecDeque::new(),
        })
    }

    /// Reads until there is something to tell. `accepts` says which kinds of frames may come now.
    pub(super) fn receive(&mut self, accepts: impl Fn(Kind) -> bool) -> Result<Received, Broken> {
        loop {
            match &mut self.reading {
                Reading::Header { buffer, have } => {
                    let Some(count) = read(&self.socket, &mut buffer[*have..])? else {
                        return Ok(Received::Idle);
                    };
                    *have += count;
                    if *have == HEADER {
                        let header = Header::decode(buffer)?;
                        if !accepts(header.kind) {
                            return Err(Malformed(format!("{:?} frame out of place", header.kind)).into());
                        }
                        self.reading = match header {
                            Header { kind: Kind::Data, request, len } => {
                                if self.sinks.get(&request).is_some_and(|sink| sink.left() < u64::from(len)) {
                                    return Err(Malformed::new("more payload than was asked for").into());
                                }
                                Reading::Payload { request, left: len }
                            }
                            header => Reading::Body { header, body: vec![], have: 0 },
                        };
                    }
                }
                Reading::Body { header, body, have } => {
                    let len = header.len as usize;
                    if *have < len {
                        body.resize(len.min(*have + BODY_STEP), 0);
                        let Some(count) = read(&self.socket, &mut body[*have..])? else {
                            return Ok(Received::Idle);
                        };
                        *have += count;
                    }
                    if *have == len {
                        let (request, frame) = (header.request, Frame::decode(header.kind, body)?);
                        self.reading = Reading::Header { buffer: [0; HEADER], have: 0 };
                        return Ok(Received::Frame(request, frame));
                    }
                }
                Reading::Payload { request, left } => {
                    let request = *request;
                    let count = match self.sinks.get_mut(&request) {
                        Some(sink) => fill(sink, self.socket.as_fd(), u64::from(*left))?,
                        None => {
                            let scratch = &mut [0; SCRATCH];
                            read(&self.socket, &mut scratch[..SCRATCH.min(*left as usize)])?.map(|n| n as u64)
                        }
                    };
                    let Some(bytes) = count else { return Ok(Received::Idle) };
                    // No more was asked for than is left, which is a u32.
                    *left -= bytes as u32;
                    if *left == 0 {
                        self.reading = Reading::Header { buffer: [0; HEADER], have: 0 };
                    }
                    return Ok(Received::Payload { request, bytes });
                }
            }
        }
    }

    /// Queues a control frame.
    pub(super) fn push(&mut self, request: u64, frame: &Frame) {
        let queue = if self.payload.is_some() { &mut self.tail } else { &mut self.head };
        frame.encode(request, queue);
    }

    /// Queues all of `source` as DATA of `request`.
    pub(super) fn stream(&mut self, request: u64, source: Source) {
        self.streams.push_back(Stream { request, source });
    }

    /// Whether memory of this request is still to be sent.
    pub(super) fn is_streaming(&self, request: u64) -> bool {
        self.payload.as_ref().is_some_and(|payload| payload.stream.request == request)
            || self.streams.iter().any(|stream| stream.request == request)
    }

    /// Sends no more of this request. A DATA frame that has begun must be finished, from the same memory:
    /// until then the answer is `Busy`, and [`is_streaming`](Self::is_streaming) stays true.
    pub(super) fn cancel_stream(&mut self, request: u64) -> Quiescence {
        self.streams.retain(|stream| stream.request != request);
        match &mut self.payload {
            Some(payload) if payload.stream.request == request => {
                payload.cancelled = true;
                Quiescence::Busy
            }
            _ => Quiescence::Quiet,
        }
    }

    /// Writes what the socket takes, within bounds. Returns whether it took anything.
    pub(super) fn flush(&mut self) -> Result<bool, Broken> {
        let mut budget = FLUSH_BUDGET;
        let mut wrote = false;
        loop {
            while self.head_sent < self.head.len() {
                let Some(sent) = write(&self.socket, &self.head[self.head_sent..])? else { return Ok(wrote) };
                self.head_sent += sent;
                wrote = true;
            }
            self.head.clear();
            self.head.shrink_to(KEEP_CAPACITY);
            self.head_sent = 0;
            if let Some(payload) = &mut self.payload {
                if budget == 0 {
                    return Ok(wrote);
                }
                let limit = payload.left.min(budget);
                let Some(sent) = transferred(payload.stream.source.send(self.socket.as_fd(), limit))? else {
                    return Ok(wrote);
                };
                payload.left -= sent;
                budget -= sent;
                wrote = true;
                if payload.left == 0 {
                    self.finish_payload();
                }
            } else if let Some(stream) = self.streams.pop_front() {
                let len = u32::try_from(stream.source.left()).unwrap_or(u32::MAX).min(MAX_DATA);
                let header = Header { kind: Kind::Data, request: stream.request, len };
                self.head.extend_from_slice(&header.encode());
                self.payload = Some(Payload { stream, left: u64::from(len), cancelled: false });
            } else {
                return Ok(wrote);
            }
        }
    }

    /// Whether there is something to write.
    pub(super) fn wants_write(&self) -> bool {
        self.head_sent < self.head.len() || self.payload.is_some() || !self.streams.is_empty()
    }

    /// Whether the peer leaves so many answers unread that it should get no more.
    pub(super) fn is_backlogged(&self) -> bool {
        self.backlog() > MAX_BACKLOG
    }

    /// Unsent bytes of control frames.
    pub(super) fn backlog(&self) -> usize {
        self.head.len() - self.head_sent + self.tail.len()
    }

    fn finish_payload(&mut self) {
        std::mem::swap(&mut self.head, &mut self.tail);
        if let Some(Payload { stream, cancelled: false, .. }) = self.payload.take()
            && stream.source.left() > 0
        {
            self.streams.push_back(stream);
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// `None`: nothing there. An end of file is [`Broken::Closed`].
fn read(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>, Broken> {
    let result = loop {
        // A signal must not look like an empty socket: the serving side relies on having read everything.
        match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EINTR) => {}
            result => break result,
        }
    };
    match transferred(result)? {
        Some(0) => Err(Broken::Closed),
        count => Ok(count),
    }
}

fn fill(sink: &mut Target, socket: BorrowedFd<'_>, max: u64) -> Result<Option<u64>, Broken> {
    match transferred(sink.receive(socket, max))? {
        Some(0) => Err(Broken::Closed),
        count => Ok(count),
    }
}

/// `None`: the socket is full.
fn write(socket: &OwnedFd, bytes: &[u8]) -> Result<Option<usize>, Broken> {
    transferred(send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT))
}

/// Tells "not now" from a failure. An interrupted call is tried again when the driver comes back.
fn transferred<T>(result: nix::Result<T>) -> Result<Option<T>, Broken> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
