//! A hostile client.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;

use super::super::frame::{Frame, HEADER, Header, Kind, Request};
use super::super::node::Node;
use super::super::serve::Server;
use super::{Bytes, Memory, Nodes, Peer, hello};
use crate::fuzz::printable;
use crate::transport::{Offer, OfferId, Quiescence, TransportError, TransportEvent};
use crate::{Device, OperationKind, Region};

/// More steps than any input takes.
const HANG: usize = 10_000;

const KEYS: [&str; 3] = ["r", "w", "second"];

thread_local! {
    static NODES: Nodes = Nodes::new();
}

/// The serving side: whatever a client says, nothing but what is offered is read or written, an offer is
/// taken at most once and never after its end, and everything is quiet once the client is gone.
pub(crate) fn server(input: &[u8]) {
    let mut input = Bytes::new(input);
    NODES.with(|nodes| {
        let mut scene = Scene::new(nodes.choose(input.byte()));
        while !input.is_empty() {
            scene.step(&mut input);
        }
        scene.finish();
    });
}

struct Scene<'n> {
    // Before the memory, which it refers to.
    server: Server,
    offers: Vec<Offered>,
    node: &'n Node,
    token: u64,
    peer: Peer,
    heard: Vec<u8>,
    events: Vec<TransportEvent>,
}

struct Offered {
    id: OfferId,
    memory: Memory,
    /// What it offers, if it is to be read.
    source: Option<Vec<u8>>,
    ended: bool,
    notified: bool,
}

impl<'n> Scene<'n> {
    fn new(node: &'n Node) -> Self {
        let (ours, socket) = UnixStream::pair().expect("a pair of sockets");
        socket.set_nonblocking(true).expect("a socket can be non-blocking");
        // As small as the kernel makes it, so that a stream stops in the middle of a frame.
        setsockopt(&ours, SndBuf, &1).expect("a buffer can be small");
        let mut server = Server::default();
        let offered = [
            (OperationKind::Read, Memory::new(&[300, 1, 40], |at| at as u8)),
            (OperationKind::Write, Memory::new(&[64, 5], |_| 0)),
            // More than the socket takes at once.
            (OperationKind::Read, Memory::new(&[12_000], |at| (at * 3 + at / 256 + 100) as u8)),
        ];
        let offers = offered.into_iter().zip(KEYS).map(|((kind, memory), key)| {
            let id = server.offers.add(&Offer { kind, regions: &memory.regions, key });
            let source = (kind == OperationKind::Read).then(|| memory.content());
            Offered { id: id.expect("the keys differ"), source, memory, ended: false, notified: false }
        });
        let offers = offers.collect();
        server.admit(node, ours).expect("it is the first connection");
        let token = *server.conns.keys().next().expect("it was admitted");
        let peer = Peer { socket, unsent: vec![] };
        Self { server, offers, node, token, peer, heard: vec![], events: vec![] }
    }

    fn step(&mut self, input: &mut Bytes<'_>) {
        let (what, id) = (input.byte(), u64::from(input.byte() % 5));
        match what % 9 {
            0 => {
                // Now and then somebody who is not on the list.
                let name = if what > 240 { "stranger" } else { "x" };
                let hello = hello(name, input);
                self.peer.say(0, &Frame::Hello(hello), input);
            }
            1 => {
                let request = self.request(input);
                self.peer.say(id, &Frame::Read(request), input);
            }
            2 => {
                let request = self.request(input);
                let source = input.number().max(8);
                let sources = request.regions.iter().map(|target| {
                    let region = Region::new(Device::CPU, source, target.len());
                    region.unwrap_or(*target)
                });
                let sources = sources.collect();
                self.peer.say(id, &Frame::Write(request, sources), input);
            }
            3 => self.peer.say_data(id, input),
            4 => self.peer.say(id, &Frame::Done, input),
            5 => self.peer.say(id, &Frame::Abort, input),
            6 => self.peer.say_anything(input),
            7 => {
                self.peer.send(usize::from(input.byte()));
                self.serve();
                // A client that does not listen holds its answers up.
                if id != 0 {
                    self.peer.hear(&mut self.heard);
                }
            }
            _ => self.end(usize::from(input.byte()) % KEYS.len()),
        }
    }

    /// A request for one of the offers, or nearly.
    fn request(&mut self, input: &mut Bytes<'_>) -> Request {
        let which = input.byte();
        let offered = &self.offers[usize::from(which) % KEYS.len()];
        let mut regions = offered.memory.regions.to_vec();
        if which > 200 {
            let index = usize::from(input.byte()) % regions.len();
            let region = Region::new(Device::CPU, regions[index].addr(), input.number());
            regions[index] = region.unwrap_or(regions[index]);
        }
        let key = KEYS[usize::from(which) % KEYS.len()].into();
        Request { attach: which & 0x10 != 0, key, regions: regions.into() }
    }

    fn serve(&mut self) {
        let mut steps = 0..HANG;
        while self.server.pump(self.node, self.token, &mut self.events)
            | self.server.pull(self.node, &mut self.events)
        {
            assert!(steps.next().is_some(), "it never comes to rest");
        }
        assert!(self.server.conns.len() <= 1);
        for event in std::mem::take(&mut self.events) {
            self.notified(event);
        }
    }

    fn notified(&mut self, event: TransportEvent) {
        let (from, body) = match event {
            TransportEvent::Notification { from, body } => (from, body),
            TransportEvent::Message { from, .. } => return assert_eq!(from, "x-y"),
            TransportEvent::OfferFailed { id, error } => return Self::failed(&self.offers, id, &error),
        };
        assert_eq!(from, "x-y");
        let index = KEYS.iter().position(|key| key.as_bytes() == body).expect("the key is one of ours");
        let offer = &mut self.offers[index];
        assert!(!offer.ended, "{:?} was taken after its end", KEYS[index]);
        assert!(!std::mem::replace(&mut offer.notified, true), "{:?} was taken twice", KEYS[index]);
    }

    /// The client died or gave up in the middle of an offer that was open.
    fn failed(offers: &[Offered], id: OfferId, error: &TransportError) {
        assert!(matches!(error, TransportError::LetGo(_) | TransportError::PeerLost(_)), "{error:?}");
        printable(error);
        let offer = offers.iter().find(|offer| offer.id == id).expect("the offer is one of ours");
        assert!(!offer.ended && !offer.notified, "{error:?} after its end");
    }

    fn end(&mut self, index: usize) {
        let offer = &mut self.offers[index];
        let quiet = match std::mem::replace(&mut offer.ended, true) {
            false => self.server.end_offer(self.node, offer.id),
            true => self.server.offers.forget_if_quiet(offer.id),
        };
        if quiet == Quiescence::Quiet {
            offer.memory.is_quiet(offer.source.is_some());
        }
        self.serve();
    }

    /// Sends what is left, hangs up, and looks at what is left behind.
    fn finish(mut self) {
        self.peer.send(usize::MAX);
        let mut before = usize::MAX;
        while std::mem::replace(&mut before, self.heard.len()) != self.heard.len() {
            self.serve();
            self.peer.hear(&mut self.heard);
        }
        drop(self.peer);
        let mut steps = 0..HANG;
        while self.server.conns.contains_key(&self.token) {
            assert!(steps.next().is_some(), "the connection is never noticed to be gone");
            self.server.pump(self.node, self.token, &mut self.events);
            self.server.pull(self.node, &mut self.events);
        }
        for event in std::mem::take(&mut self.events) {
            match event {
                TransportEvent::OfferFailed { id, error } => Self::failed(&self.offers, id, &error),
                other => panic!("{other:?} after the client was gone"),
            }
        }
        for offer in &mut self.offers {
            if let Some(source) = &offer.source
                && offer.memory.expected.is_none()
            {
                assert!(*source == offer.memory.content(), "a source was written to");
            }
            let quiet = match offer.ended {
                false => self.server.end_offer(self.node, offer.id),
                true => self.server.offers.forget_if_quiet(offer.id),
            };
            assert_eq!(quiet, Quiescence::Quiet);
            offer.memory.is_quiet(offer.source.is_some());
        }
        drop(self.server);
        check_answers(&self.heard, &self.offers);
    }
}

/// What was answered is whole frames, but for the last, and payload is what was offered to be read.
fn check_answers(mut heard: &[u8], offers: &[Offered]) {
    let readable = offers.iter().filter_map(|offer| Some((offer.source.as_ref()?, &offer.memory.regions)));
    let sources: Vec<Vec<&[u8]>> = readable.map(|(source, regions)| cut(source, regions)).collect();
    let is_of_one = |stream: &[u8], whole| sources.iter().any(|source| is_of(stream, source, whole, true));
    let mut streams: HashMap<u64, Vec<u8>> = HashMap::new();
    while let Some((header, rest)) = heard.split_first_chunk::<HEADER>() {
        let header = Header::decode(header).expect("our own header");
        let Some((body, rest)) = rest.split_at_checked(header.len as usize) else { break };
        heard = rest;
        match header.kind {
            Kind::Data => streams.get_mut(&header.request).expect("it was granted").extend(body),
            kind => match Frame::decode(kind, body).expect("our own frame") {
                // A number may be used again once its request has ended.
                Frame::GrantStream => drop(streams.insert(header.request, vec![])),
                Frame::Ok => {
                    let stream = streams.remove(&header.request).unwrap_or_default();
                    assert!(stream.is_empty() || is_of_one(&stream, true), "a part was complete");
                }
                Frame::Welcome(_)
                | Frame::GrantAttach
                | Frame::Refused(_)
                | Frame::Revoked
                | Frame::Aborted => {}
                other => panic!("a server says {other:?}"),
            },
        }
    }
    for stream in streams.values() {
        assert!(is_of_one(stream, false), "not what was offered");
    }
}

/// The content of each region.
fn cut<'a>(mut content: &'a [u8], regions: &[Region]) -> Vec<&'a [u8]> {
    let mut piece = |region: &Region| {
        let (piece, rest) = content.split_at(region.len() as usize);
        content = rest;
        piece
    };
    regions.iter().map(&mut piece).collect()
}

/// Whether a stream is of these regions, in their order: of all they have, or as far as it goes. The requests here ask
/// for all of each region, or less of one of them.
fn is_of(stream: &[u8], regions: &[&[u8]], whole: bool, may_cut: bool) -> bool {
    let Some((region, rest)) = regions.split_first() else { return stream.is_empty() };
    let common = stream.iter().zip(*region).take_while(|(a, b)| a == b).count();
    if common == stream.len() && (!whole || stream.is_empty()) {
        return true;
    }
    if common == region.len() && is_of(&stream[common..], rest, whole, may_cut) {
        return true;
    }
    may_cut && (1..=common).any(|at| is_of(&stream[at..], rest, whole, false))
}
