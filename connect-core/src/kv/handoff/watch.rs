//! What the thread of a hand-off waits for only to tell of it: peers that are being connected to, and messages that are
//! being sent.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::node::{Node, Poke};
use crate::blocks::RemoteBlocks;
use crate::kv::observe::Failure;
use crate::op::Pending;

/// Messages that are watched at a time. Of more it is not told whether they were sent.
const MAX_SENT: usize = 1024;

#[derive(Default)]
pub(super) struct Watch {
    greetings: Vec<Greeting>,
    sent: Vec<Pending<()>>,
}

/// A peer that is being connected to.
struct Greeting {
    began: Instant,
    span: tracing::Span,
    peer: Pending<String>,
}

impl Watch {
    /// Connects to a peer that was met, so that the first hand-off need not wait for that.
    pub(super) fn greet(&mut self, now: Instant, engine: &str, remote: &RemoteBlocks) {
        let span = tracing::info_span!("kv.handshake", peer = engine);
        let peer = span.in_scope(|| remote.connect());
        self.greetings.push(Greeting { began: now, span, peer });
    }

    /// A message was given to the transport.
    pub(super) fn sent(&mut self, sent: Pending<()>) {
        if self.sent.len() < MAX_SENT {
            self.sent.push(sent);
        }
    }

    /// Tells of what has come of them.
    pub(super) fn look(&mut self, node: &Arc<Node>, now: Instant) {
        // No operation has this number, so being woken for it is being woken.
        let waker = Waker::from(Arc::new(Poke { node: Arc::clone(node), key: u64::MAX }));
        self.greetings.retain_mut(|Greeting { began, span, peer }| {
            let Poll::Ready(met) = Pin::new(peer).poll(&mut Context::from_waker(&waker)) else { return true };
            span.in_scope(|| match met {
                Ok(_) => node.observer.connected(now.saturating_duration_since(*began)),
                Err(error) => {
                    tracing::debug!(%error, "can't be connected to");
                    node.observer.failed(Failure::Handshake);
                }
            });
            false
        });
        // Nobody is in a hurry to hear of these.
        self.sent.retain_mut(|sent| {
            let Poll::Ready(sent) = Pin::new(sent).poll(&mut Context::from_waker(Waker::noop())) else {
                return true;
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "a message was not sent");
                node.observer.failed(Failure::Notify);
            }
            false
        });
    }
}
