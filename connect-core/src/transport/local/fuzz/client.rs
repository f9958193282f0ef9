//! A hostile server.

use std::os::unix::net::UnixListener;

use uuid::Uuid;

use super::super::blob::Address;
use super::super::client::Client;
use super::super::frame::Frame;
use super::super::node::Node;
use super::{Bytes, Memory, Nodes, Peer, hello};
use crate::OperationKind;
use crate::transport::{Quiescence, Transfer, TransferId, TransferState};

/// More steps than any input takes.
const HANG: usize = 10_000;

/// Where the hostile server listens.
struct Place {
    nodes: Nodes,
    listener: UnixListener,
    address: Address,
}

thread_local! {
    static PLACE: Place = Place::new();
}

impl Place {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("connect-fuzz-{}", Uuid::new_v4().simple()));
        let listener = UnixListener::bind(&path).expect("a socket in the temporary directory");
        let nodes = Nodes::new();
        let host = nodes.choose(0).host.clone();
        Self {
            nodes,
            listener,
            address: Address { host, path, worker_id: "x".into(), incarnation: "y".into() },
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.address.path);
    }
}

/// The asking side: whatever a server says, only the memory to be read into is written, a read that is
/// complete was granted and has all its bytes, and everything is quiet once the server is gone.
pub(crate) fn client(input: &[u8]) {
    let mut input = Bytes::new(input);
    PLACE.with(|place| {
        let mut scene = Scene::new(place, place.nodes.choose(input.byte()));
        while !input.is_empty() {
            scene.step(&mut input);
        }
        scene.finish();
    });
}

struct Scene<'n> {
    // Before the memory, which it refers to.
    client: Client,
    node: &'n Node,
    transfers: Vec<Begun>,
    peer: Peer,
    heard: Vec<u8>,
}

struct Begun {
    id: TransferId,
    kind: OperationKind,
    memory: Memory,
    released: bool,
    /// How it ended; never changes any more.
    complete: Option<bool>,
}

impl<'n> Scene<'n> {
    fn new(place: &Place, node: &'n Node) -> Self {
        let mut client = Client::default();
        let (peer, name) = client.connect(node, &place.address.encode()).expect("it listens");
        assert_eq!(name, "x-y");
        let (socket, _) = place.listener.accept().expect("the client has connected");
        socket.set_nonblocking(true).expect("a socket can be non-blocking");
        let memories = [
            (OperationKind::Read, Memory::new(&[30, 1], |_| 0)),
            (OperationKind::Write, Memory::new(&[30, 1], |at| at as u8 + 1)),
            (OperationKind::Read, Memory::new(&[9], |_| 0)),
        ];
        let begin = |(kind, memory): (OperationKind, Memory)| {
            // What the document said is for the server to understand; our own addresses will do.
            let transfer = Transfer { peer, kind, local: &memory.regions, remote: &memory.regions, key: "k" };
            let id = client.begin(node, &transfer).expect("it is well-formed");
            Begun { id, kind, memory, released: false, complete: None }
        };
        let transfers = memories.into_iter().map(begin).collect();
        Self { client, node, transfers, peer: Peer { socket, unsent: vec![] }, heard: vec![] }
    }

    fn step(&mut self, input: &mut Bytes<'_>) {
        let (what, id) = (input.byte(), u64::from(input.byte() % 5));
        let frame = match what % 13 {
            0 => Frame::Welcome(hello(if what > 240 { "another" } else { "x" }, input)),
            1 => Frame::GrantAttach,
            2 => Frame::GrantStream,
            3 => return self.peer.say_data(id, input),
            4 => Frame::Ok,
            5 => Frame::Refused("no".into()),
            6 => Frame::Revoked,
            7 => Frame::Aborted,
            8 => return self.peer.say_anything(input),
            9 | 10 => {
                self.peer.send(usize::from(input.byte()));
                return self.ask();
            }
            11 => return self.poll(),
            _ => return self.release(usize::from(input.byte()) % 3),
        };
        // What is about no transfer is about the connection; most frames are about one.
        self.peer.say(if matches!(frame, Frame::Welcome(_)) { 0 } else { id }, &frame, input);
    }

    /// Reads what was said.
    fn ask(&mut self) {
        let tokens: Vec<u64> = self.client.conns.keys().copied().collect();
        let mut steps = 0..HANG;
        for token in tokens {
            while self.client.pump(self.node, token) {
                assert!(steps.next().is_some(), "it never comes to rest");
                self.peer.hear(&mut self.heard);
            }
        }
        self.client.news = false;
        self.poll();
    }

    fn poll(&mut self) {
        for transfer in self.transfers.iter_mut().filter(|transfer| !transfer.released) {
            let complete = match self.client.poll(self.node, transfer.id) {
                Ok(TransferState::Pending { .. }) => None,
                Ok(TransferState::Complete) => Some(true),
                Err(error) => {
                    crate::fuzz::printable(&error);
                    Some(false)
                }
            };
            assert!(
                transfer.complete.is_none() || transfer.complete == complete,
                "it ended, and then changed"
            );
            transfer.complete = complete;
            if transfer.kind == OperationKind::Read && complete == Some(true) {
                // Every byte that a server sends here repeats a count, and what is copied is our own zeros,
                // so only the gaps tell.
                transfer.memory.content();
            }
        }
        self.peer.hear(&mut self.heard);
    }

    fn release(&mut self, index: usize) {
        let transfer = &mut self.transfers[index];
        transfer.released = true;
        if self.client.release(self.node, transfer.id) == Quiescence::Quiet {
            transfer.memory.is_quiet(transfer.kind == OperationKind::Write);
        }
    }

    /// Sends what is left, hangs up, and looks at what is left behind.
    fn finish(mut self) {
        self.peer.send(usize::MAX);
        self.ask();
        self.peer.hear(&mut self.heard);
        drop(self.peer.socket);
        let mut steps = 0..HANG;
        while let Some(token) = self.client.conns.keys().next().copied() {
            assert!(steps.next().is_some(), "the server is never noticed to be gone");
            self.client.pump(self.node, token);
        }
        for transfer in &mut self.transfers {
            if !transfer.released {
                let state = self.client.poll(self.node, transfer.id);
                assert!(!matches!(state, Ok(TransferState::Pending { .. })), "it waits for nobody");
            }
            if transfer.kind == OperationKind::Write && transfer.memory.expected.is_none() {
                let content = transfer.memory.content();
                assert!(content.iter().all(|byte| *byte > 0), "a source was written to");
            }
            assert_eq!(self.client.release(self.node, transfer.id), Quiescence::Quiet);
            transfer.memory.is_quiet(transfer.kind == OperationKind::Write);
        }
        assert!(self.client.transfers.is_empty() && self.client.copying.is_empty());
        super::frames(&self.heard);
    }
}
