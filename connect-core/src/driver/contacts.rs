//! Getting to know peers, and telling them things, without an operation.

use std::sync::Arc;

use super::{Driver, OpInfo};
use crate::error::Error;
use crate::op::OperationStatus;
use crate::op::slot::{Opened, Outcome};
use crate::wire::RdmaMetadata;

impl Driver {
    pub(super) fn connect(&mut self, info: &Arc<OpInfo>, metadata: &RdmaMetadata) {
        let failed = |source| Error::Transport { context: info.context(), source };
        match self.peers.connect(self.transport.as_mut(), metadata, self.clock.now(), failed) {
            Ok((_, name)) => info.slot.open(Opened { peer: Some(name), ..Opened::default() }),
            Err(error) => {
                let outcome = Outcome { result: Err(error), memory: None };
                info.slot.settle(OperationStatus::Errored, outcome, || {});
            }
        }
        self.deadlines.remove(info);
    }

    pub(super) fn notify(&mut self, info: &Arc<OpInfo>, metadata: &RdmaMetadata, message: &[u8]) {
        let failed = |source| Error::Transport { context: info.context(), source };
        let known = self.peers.connect(self.transport.as_mut(), metadata, self.clock.now(), failed);
        let sent = known.and_then(|(peer, name)| {
            let sent = self.transport.notify(peer, message).map_err(|source| {
                self.peers.forget_if_lost(self.transport.as_mut(), &source, peer);
                failed(source)
            });
            sent.map(|()| name)
        });
        match sent {
            Ok(name) => info.slot.open(Opened { peer: Some(name), ..Opened::default() }),
            Err(error) => {
                let outcome = Outcome { result: Err(error), memory: None };
                info.slot.settle(OperationStatus::Errored, outcome, || {});
            }
        }
        self.deadlines.remove(info);
    }
}
