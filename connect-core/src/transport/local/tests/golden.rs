//! The blob and frames of `golden/` are written and read byte for byte.

use super::super::frame::{Frame, HEADER, Header, Hello, Kind, Request};
use super::*;

const BLOB: &str = include_str!("../../../../golden/local_blob.hex");
const FRAMES: &str = include_str!("../../../../golden/local_frames.hex");

fn bytes(hex: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(hex.trim().as_bytes()).unwrap()
}

#[test]
fn the_blob() {
    let address = Address {
        host: "0b0f7a6e-9f43-4a63-9d4b-6a5ad7cf8e2b".into(),
        path: "/run/user/1000/connect-local-x/socket".into(),
        worker_id: "decode-0".into(),
        incarnation: "0123456789ab".into(),
    };
    assert_eq!(address.encode(), bytes(BLOB));
    assert_eq!(Address::decode(&bytes(BLOB)), Ok(address));
}

#[test]
fn the_frames() {
    let hello = Hello {
        worker_id: "decode-0".into(),
        incarnation: "0123456789ab".into(),
        nonce_addr: 0x7f00_0000_2000,
        nonce: std::array::from_fn(|at| at as u8),
    };
    let region = |addr| Region::new(Device::CPU, addr, 48).unwrap();
    let request =
        Request { attach: true, key: b"key".to_vec(), regions: [region(4096), region(8192)].into() };
    let frames = [
        ("HELLO", 0, Frame::Hello(hello.clone())),
        ("WELCOME", 0, Frame::Welcome(hello)),
        ("READ", 1, Frame::Read(request.clone())),
        ("WRITE", 2, Frame::Write(request, [region(0x3000), region(0x4000)].into())),
        ("GRANT_ATTACH", 1, Frame::GrantAttach),
        ("GRANT_STREAM", 1, Frame::GrantStream),
        ("DONE", 1, Frame::Done),
        ("OK", 1, Frame::Ok),
        ("REFUSED", 1, Frame::Refused("no".into())),
        ("REVOKED", 1, Frame::Revoked),
        ("ABORT", 1, Frame::Abort),
        ("ABORTED", 1, Frame::Aborted),
        ("MESSAGE", 0, Frame::Message(b"hi!".to_vec())),
    ];
    let mut lines: Vec<(&str, Vec<u8>)> = FRAMES
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, hex)| (name, bytes(hex)))
        .collect();
    // Payload passes through no codec.
    let data = lines.iter().position(|(name, _)| *name == "DATA").unwrap();
    let (_, data) = lines.remove(data);
    let (header, payload) = data.split_first_chunk::<HEADER>().unwrap();
    assert_eq!(Header::decode(header), Ok(Header { kind: Kind::Data, request: 1, len: 3 }));
    assert_eq!((Header::decode(header).unwrap().encode(), payload), (*header, &b"abc"[..]));
    assert_eq!(lines.len(), frames.len());
    for ((name, golden), (expected, request, frame)) in lines.iter().zip(frames) {
        assert_eq!(*name, expected);
        let mut written = vec![];
        frame.encode(request, &mut written);
        assert_eq!(written, *golden, "{name}");
        let (header, body) = golden.split_first_chunk::<HEADER>().unwrap();
        let header = Header::decode(header).unwrap();
        assert_eq!((header.request, Frame::decode(header.kind, body)), (request, Ok(frame)), "{name}");
    }
}
