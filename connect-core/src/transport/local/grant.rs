//! Offers, and what is granted on them: who may take one, and how the bytes will move.

use std::collections::HashMap;
use std::sync::Arc;

use super::attach::{Source, Target};
use super::copy::Copy;
use super::frame::{Frame, Request};
use super::lease::Lease;
use super::node::{Greeted, Node, Watched};
use crate::transport::{Offer, OfferId, Quiescence, TransportError, TransportEvent};
use crate::{OperationKind, Region};

/// The offers of this connector.
#[derive(Debug, Default)]
pub(super) struct Offers {
    open: HashMap<OfferId, Offered>,
    /// Offers that can be taken. The key is the capability.
    by_key: HashMap<Vec<u8>, OfferId>,
    next: u64,
}

#[derive(Debug)]
struct Offered {
    kind: OperationKind,
    regions: Arc<[Region]>,
    key: Vec<u8>,
    state: State,
    ended: bool,
}

/// How far an offer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody is at it.
    Open,
    /// The client of that connection is, with that request.
    Granted { token: u64, request: u64 },
    /// Somebody has taken it.
    Taken,
}

/// A client's hold on an offer.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) offer: OfferId,
    pub(super) work: Work,
}

/// How its bytes move.
#[derive(Debug)]
pub(super) enum Work {
    /// The client copies: under a lease if it is in this process.
    Attached(Option<Lease>),
    /// We stream to the client, or have done so.
    Streaming,
    /// We stream no more, but a DATA frame that has begun must be finished.
    Draining,
    /// We copy out of the client's memory.
    Pulling(Copy),
    /// The client streams to us.
    Receiving,
}

/// Who asks for an offer.
pub(super) struct Asking<'a> {
    pub(super) node: &'a Node,
    pub(super) client: &'a Greeted,
    pub(super) watched: &'a mut Watched,
    /// The request's number.
    pub(super) id: u64,
}

impl Offers {
    pub(super) fn add(&mut self, offer: &Offer<'_>) -> Result<OfferId, TransportError> {
        let key = offer.key.as_bytes().to_vec();
        if self.by_key.contains_key(&key) {
            return Err(TransportError::Protocol(
                "an offer with this notification key is open already".into(),
            ));
        }
        let id = OfferId(self.next);
        self.next += 1;
        self.by_key.insert(key.clone(), id);
        let regions = offer.regions.into();
        self.open.insert(id, Offered { kind: offer.kind, regions, key, state: State::Open, ended: false });
        Ok(id)
    }

    /// Grants a READ, and says so to the client; or says why not.
    pub(super) fn grant_read(&mut self, asking: &mut Asking<'_>, request: &Request) -> Result<Grant, String> {
        let (offer, regions) = self.claim(OperationKind::Read, request, asking)?;
        let Asking { node, client, watched: Watched { link, .. }, id } = asking;
        let work = if request.attach && client.admitted {
            link.push(*id, &Frame::GrantAttach);
            let lease =
                || Lease::grant(node.lease_to(client, (OperationKind::Read, *id)), Source::of(&regions));
            Work::Attached(client.direct.then(lease))
        } else {
            link.push(*id, &Frame::GrantStream);
            link.stream(*id, Source::of(&regions));
            Work::Streaming
        };
        Ok(Grant { offer, work })
    }

    /// Grants a WRITE, and says so to the client where it is to do something; or says why not.
    pub(super) fn grant_write(
        &mut self,
        asking: &mut Asking<'_>,
        request: &Request,
        sources: &Arc<[Region]>,
    ) -> Result<Grant, String> {
        let (offer, regions) = self.claim(OperationKind::Write, request, asking)?;
        let Asking { node, client, watched: Watched { link, .. }, id } = asking;
        let work = if request.attach && client.attach {
            let Some(copy) =
                Copy::new(node, client, link.pid, (OperationKind::Write, *id), &regions, sources)
            else {
                self.let_go(offer);
                return Err("the write was given up".into());
            };
            Work::Pulling(copy)
        } else {
            link.push(*id, &Frame::GrantStream);
            link.sinks.insert(*id, Target::of(&regions));
            Work::Receiving
        };
        Ok(Grant { offer, work })
    }

    fn claim(
        &mut self,
        kind: OperationKind,
        request: &Request,
        asking: &Asking<'_>,
    ) -> Result<(OfferId, Arc<[Region]>), String> {
        let offer = self.by_key.get(&request.key).copied();
        let found = offer.and_then(|id| Some((id, self.open.get_mut(&id)?)));
        let Some((offer, offered)) = found else {
            return Err("the offer is unknown, ended, or already taken".into());
        };
        if offered.kind != kind {
            return Err(format!("the offer allows {}, but the request is a {kind}", offered.kind));
        }
        if offered.state != State::Open {
            return Err("another request is at the offer".into());
        }
        if offered.regions.len() != request.regions.len() {
            return Err(format!(
                "the request names {} regions, the offer has {}",
                request.regions.len(),
                offered.regions.len()
            ));
        }
        if let Some(index) = offered.regions.iter().zip(request.regions.iter()).position(|(o, r)| o != r) {
            return Err(format!("region {index} of the request is not the one offered"));
        }
        offered.state = State::Granted { token: asking.watched.token, request: asking.id };
        Ok((offer, Arc::clone(&offered.regions)))
    }

    /// An offer's bytes have moved. Returns its key, unless it was ended in the meantime.
    pub(super) fn take(&mut self, id: OfferId) -> Option<Vec<u8>> {
        let offered = self.open.get_mut(&id)?;
        offered.state = State::Taken;
        self.by_key.remove(&offered.key);
        (!offered.ended).then(|| offered.key.clone())
    }

    /// Whoever was at the offer will not complete it. Unless it has ended already, its owner is told, who decides
    /// whether to leave it open for others.
    pub(super) fn fail(&self, id: OfferId, error: TransportError, events: &mut Vec<TransportEvent>) {
        if self.open.get(&id).is_some_and(|offered| !offered.ended) {
            events.push(TransportEvent::OfferFailed { id, error });
        }
    }

    /// Nobody is at the offer any more.
    pub(super) fn let_go(&mut self, id: OfferId) {
        if let Some(offered) = self.open.get_mut(&id) {
            offered.state = State::Open;
        }
    }

    /// Ends an offer. Returns the connection and request that are at it; without one it is forgotten.
    pub(super) fn end(&mut self, id: OfferId) -> Option<(u64, u64)> {
        let offered = self.open.get_mut(&id)?;
        self.by_key.remove(&offered.key);
        let told = std::mem::replace(&mut offered.ended, true);
        match offered.state {
            State::Granted { token, request } if !told => Some((token, request)),
            _ => {
                self.forget_if_quiet(id);
                None
            }
        }
    }

    /// Whether an ended offer is quiet; then it is forgotten.
    pub(super) fn forget_if_quiet(&mut self, id: OfferId) -> Quiescence {
        match self.open.get(&id) {
            Some(Offered { state: State::Granted { .. }, .. }) => Quiescence::Busy,
            Some(Offered { ended: true, .. }) => {
                self.open.remove(&id);
                Quiescence::Quiet
            }
            Some(_) => Quiescence::Busy,
            None => Quiescence::Quiet,
        }
    }
}

impl Grant {
    pub(super) fn is_read(&self) -> bool {
        matches!(self.work, Work::Attached(_) | Work::Streaming | Work::Draining)
    }
}
