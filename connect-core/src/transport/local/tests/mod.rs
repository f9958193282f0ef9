//! Two connectors stepped in turn on one thread, in all ways that bytes can take.

mod golden;
mod hostile;
mod processes;
mod refusals;
mod transfers;
mod withdrawal;

use std::time::{Duration, Instant};

use super::*;
use crate::{OperationKind, Region};

/// Which way the bytes take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Attach,
    Stream,
}

const WAYS: [Way; 3] = [Way::Direct, Way::Attach, Way::Stream];

impl Way {
    fn config(self) -> LocalConfig {
        let path = if self == Self::Stream { DataPath::Stream } else { DataPath::Auto };
        let mut config = LocalConfig::default().data_path(path);
        config.never_direct = self == Self::Attach;
        config
    }
}

fn context(worker_id: &str, incarnation: &str) -> TransportContext {
    TransportContext {
        worker_id: worker_id.into(),
        incarnation: incarnation.into(),
        allowed_workers: None,
        counters: Arc::default(),
    }
}

fn transport(config: LocalConfig, worker_id: &str) -> LocalTransport {
    LocalTransport::new(config, &context(worker_id, "1")).unwrap()
}

/// The memory of one side: regions of the given sizes, with a pattern or zero.
struct Memory {
    parts: Vec<Vec<u8>>,
}

impl Memory {
    /// Bytes that differ between parts, blocks and places, and are cheap to make in a debug build.
    fn pattern(sizes: &[usize]) -> Self {
        let block: Vec<u8> = (0..4096).map(|at| (at * 7 + at / 256 + 1) as u8).collect();
        let part = |(part, &size): (usize, &usize)| {
            let mut bytes = block.repeat(size.div_ceil(block.len()));
            bytes.truncate(size);
            for (index, chunk) in bytes.chunks_mut(block.len()).enumerate() {
                chunk[0] = (index * 5 + part * 31) as u8 | 1;
            }
            bytes
        };
        Self { parts: sizes.iter().enumerate().map(part).collect() }
    }

    fn zeroed(sizes: &[usize]) -> Self {
        Self { parts: sizes.iter().map(|&size| vec![0; size]).collect() }
    }

    fn regions(&mut self) -> Vec<Region> {
        self.parts
            .iter_mut()
            .map(|part| Region::new(Device::CPU, part.as_mut_ptr() as u64, part.len() as u64).unwrap())
            .collect()
    }
}

/// One operation between a server and a client.
struct Scene {
    server: LocalTransport,
    client: LocalTransport,
    kind: OperationKind,
    /// The offered memory, and the client's.
    offered: Memory,
    own: Memory,
    offer: OfferId,
    blob: Vec<u8>,
    events: Vec<TransportEvent>,
}

const KEY: &str = "0d7f1a0e-key";

impl Scene {
    fn new(way: Way, kind: OperationKind, sizes: &[usize]) -> Self {
        let mut server = transport(way.config(), "server");
        let client = transport(way.config(), "client");
        let (mut offered, own) = match kind {
            OperationKind::Read => (Memory::pattern(sizes), Memory::zeroed(sizes)),
            OperationKind::Write => (Memory::zeroed(sizes), Memory::pattern(sizes)),
        };
        let (offer, blob) =
            server.call_offer(&Offer { kind, regions: &offered.regions(), key: KEY }).unwrap();
        Self { server, client, kind, offered, own, offer, blob, events: vec![] }
    }

    fn begin(&mut self) -> TransferId {
        let (peer, name) = self.client.connect(&self.blob).unwrap();
        assert_eq!(name, "server-1");
        self.client
            .call_begin(&Transfer {
                peer,
                kind: self.kind,
                local: &self.own.regions(),
                remote: &self.offered.regions(),
                key: KEY,
            })
            .unwrap()
    }

    fn serve(&mut self) -> bool {
        self.server.progress(&mut self.events)
    }

    /// Steps both sides until the transfer ends.
    fn run(&mut self, id: TransferId) -> Result<(), TransportError> {
        until(|| {
            self.serve();
            self.client.progress(&mut self.events);
            match self.client.poll(id) {
                Ok(TransferState::Complete) => Some(Ok(())),
                Ok(TransferState::Pending { .. }) => None,
                Err(error) => Some(Err(error)),
            }
        })
    }

    fn assert_moved(&self) {
        assert!(self.offered.parts == self.own.parts, "bytes differ");
    }

    /// What the side that offers heard of those who began to take the offer and did not end it.
    fn failures(&mut self) -> Vec<TransportError> {
        let is_failure = |event: &mut TransportEvent| matches!(event, TransportEvent::OfferFailed { .. });
        let failures = self.events.extract_if(.., is_failure);
        failures
            .map(|event| match event {
                TransportEvent::OfferFailed { id, error } if id == self.offer => error,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn assert_let_go(&mut self) {
        let failures = self.failures();
        let let_go = |e: &TransportError| matches!(e, TransportError::LetGo(who) if who.contains("client-1"));
        assert!(matches!(&failures[..], [e] if let_go(e)), "{failures:?}");
    }

    fn assert_lost(&mut self) {
        let failures = self.failures();
        assert!(matches!(failures[..], [TransportError::PeerLost(_)]), "{failures:?}");
    }

    fn assert_notified(&mut self) {
        let expected =
            TransportEvent::Notification { from: "client-1".into(), body: KEY.as_bytes().to_vec() };
        assert_eq!(std::mem::take(&mut self.events), [expected]);
    }
}

/// Repeats `step` until it yields something; fails after a time that only a hang takes.
fn until<T>(mut step: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = step() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "hangs");
    }
}

/// The trait's two unsafe calls, for tests.
trait Calls {
    fn call_offer(&mut self, offer: &Offer<'_>) -> Result<(OfferId, Vec<u8>), TransportError>;
    fn call_begin(&mut self, transfer: &Transfer<'_>) -> Result<TransferId, TransportError>;
}

impl Calls for LocalTransport {
    fn call_offer(&mut self, offer: &Offer<'_>) -> Result<(OfferId, Vec<u8>), TransportError> {
        // SAFETY: the tests keep their buffers until they are quiet, or ask for what must be refused.
        unsafe { self.offer(offer) }
    }

    fn call_begin(&mut self, transfer: &Transfer<'_>) -> Result<TransferId, TransportError> {
        // SAFETY: as above.
        unsafe { self.begin(transfer) }
    }
}
