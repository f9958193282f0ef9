//! Peers that do not keep to the protocol lose their connection and nothing else.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::super::frame::{Frame, Header, Hello, Kind, MAX_DATA, Request};
use super::*;

struct Stranger {
    scene: Scene,
    stream: UnixStream,
}

impl Stranger {
    fn new(kind: OperationKind) -> Self {
        let mut scene = Scene::new(Way::Stream, kind, &[1000]);
        let stream = UnixStream::connect(Address::decode(&scene.blob).unwrap().path).unwrap();
        scene.serve();
        Self { scene, stream }
    }

    fn greeted(kind: OperationKind) -> Self {
        let mut stranger = Self::new(kind);
        let hello = Hello { worker_id: "x".into(), incarnation: "y".into(), nonce_addr: 8, nonce: [0; 16] };
        stranger.send(0, &Frame::Hello(hello));
        stranger
    }

    fn send(&mut self, request: u64, frame: &Frame) {
        let mut bytes = vec![];
        frame.encode(request, &mut bytes);
        self.send_raw(&bytes);
    }

    fn send_raw(&mut self, bytes: &[u8]) {
        // The server may have hung up in the middle.
        let _ = self.stream.write_all(bytes);
        while self.scene.serve() {}
    }

    fn request(&mut self, attach: bool) -> Request {
        Request { attach, key: KEY.into(), regions: self.scene.offered.regions().into() }
    }

    /// The server hung up, and serves others as before.
    fn assert_closed(mut self) {
        let mut rest = vec![];
        let _ = self.stream.set_read_timeout(Some(Duration::from_secs(5)));
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
        let id = self.scene.begin();
        self.scene.run(id).unwrap();
        self.scene.assert_moved();
        self.scene.assert_notified();
    }
}

#[test]
fn garbage_closes_its_connection_only() {
    for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 64], &[0; 64], &[1; 64]] {
        let mut stranger = Stranger::new(OperationKind::Read);
        stranger.send_raw(garbage);
        stranger.assert_closed();
    }
}

#[test]
fn a_request_before_the_greeting_closes_the_connection() {
    let mut stranger = Stranger::new(OperationKind::Read);
    let request = stranger.request(false);
    stranger.send(1, &Frame::Read(request));
    stranger.assert_closed();
}

#[test]
fn an_oversized_frame_closes_the_connection() {
    for (kind, len) in [(Kind::Data, MAX_DATA + 1), (Kind::Read, u32::MAX), (Kind::Done, 1)] {
        let mut stranger = Stranger::greeted(OperationKind::Read);
        stranger.send_raw(&Header { kind, request: 1, len }.encode());
        stranger.assert_closed();
    }
}

#[test]
fn more_payload_than_offered_closes_the_connection_and_overwrites_nothing() {
    let mut stranger = Stranger::greeted(OperationKind::Write);
    let request = stranger.request(false);
    let sources = request.regions.clone();
    stranger.send(1, &Frame::Write(request, sources));
    stranger.send_raw(&Header { kind: Kind::Data, request: 1, len: 1001 }.encode());
    stranger.send_raw(&[9; 1001]);
    stranger.scene.assert_lost();
    assert!(stranger.scene.offered.parts[0].iter().all(|byte| *byte == 0));
    stranger.assert_closed();
}

#[test]
fn an_end_before_the_end_closes_the_connection_and_completes_nothing() {
    let mut stranger = Stranger::greeted(OperationKind::Write);
    let request = stranger.request(false);
    let sources = request.regions.clone();
    stranger.send(1, &Frame::Write(request, sources));
    stranger.send(1, &Frame::Done);
    stranger.scene.assert_lost();
    assert!(stranger.scene.events.is_empty());
    stranger.assert_closed();
}

#[test]
fn a_request_number_used_twice_closes_the_connection() {
    let mut stranger = Stranger::greeted(OperationKind::Read);
    for _ in 0..2 {
        let request = stranger.request(false);
        stranger.send(1, &Frame::Read(request));
    }
    stranger.scene.assert_lost();
    stranger.assert_closed();
}

/// A client whose stated nonce is not in its memory gets no attach, whatever it asks for.
#[test]
fn a_writer_that_can_not_be_read_is_asked_to_stream() {
    let mut scene = Scene::new(Way::Attach, OperationKind::Write, &[1000]);
    let stream = UnixStream::connect(Address::decode(&scene.blob).unwrap().path).unwrap();
    scene.serve();
    let mut stranger = Stranger { scene, stream };
    let hello = Hello { worker_id: "x".into(), incarnation: "y".into(), nonce_addr: 8, nonce: [0; 16] };
    stranger.send(0, &Frame::Hello(hello));
    let request = stranger.request(true);
    let sources = [Region::new(Device::CPU, 8, 1000).unwrap()].into();
    stranger.send(1, &Frame::Write(request, sources));
    let mut answer = vec![0; 4096];
    let count = stranger.stream.read(&mut answer).unwrap();
    let last = answer[..count].last_chunk().unwrap();
    assert_eq!(Header::decode(last).unwrap().kind, Kind::GrantStream);
    stranger.assert_closed_by_us();
}

impl Stranger {
    fn assert_closed_by_us(self) {
        drop(self.stream);
        let mut scene = self.scene;
        let id = scene.begin();
        scene.run(id).unwrap();
        scene.assert_moved();
    }
}

#[test]
fn a_client_that_never_reads_its_answers_costs_bounded_memory() {
    let mut stranger = Stranger::greeted(OperationKind::Read);
    stranger.stream.set_nonblocking(true).unwrap();
    let mut dones = vec![];
    for id in 0..1000 {
        Frame::Done.encode(id + 5, &mut dones);
    }
    let mut sent = 0u64;
    for _ in 0..2000 {
        sent += stranger.stream.write(&dones[..]).unwrap_or(0) as u64;
        stranger.scene.serve();
    }
    assert!(sent < 4 * 1024 * 1024, "{sent} bytes were taken in");
    drop(stranger.stream);
    while stranger.scene.serve() {}
}

#[test]
fn one_process_gets_a_limited_number_of_connections() {
    let mut scene = Scene::new(Way::Direct, OperationKind::Read, &[8]);
    let path = Address::decode(&scene.blob).unwrap().path;
    let streams: Vec<_> = (0..70)
        .map(|_| {
            let stream = UnixStream::connect(&path).unwrap();
            scene.serve();
            stream
        })
        .collect();
    let mut refused = &streams[69];
    assert_eq!(refused.read(&mut [0; 1]).unwrap(), 0);
    drop(streams);
    while scene.serve() {}
    let id = scene.begin();
    scene.run(id).unwrap();
}

/// A server that answers with nonsense.
#[test]
fn a_client_survives_a_server_that_breaks_the_protocol() {
    for garbage in [&b"HTTP/1.1 400\r\n\r\n"[..], &[10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 7], &[9; 100]] {
        let dir = std::env::temp_dir().join(format!("cl-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&dir).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.join("s")).unwrap();
        let mut scene = Scene::new(Way::Direct, OperationKind::Read, &[8]);
        let mut address = Address::decode(&scene.blob).unwrap();
        address.path = dir.join("s");
        scene.blob = address.encode();
        let id = scene.begin();
        listener.accept().unwrap().0.write_all(garbage).unwrap();
        let error = scene.run(id).unwrap_err();
        assert!(matches!(error, TransportError::Protocol(_) | TransportError::PeerLost(_)), "{error}");
        assert_eq!(scene.client.release(id), Quiescence::Quiet);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
