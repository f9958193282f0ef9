//! Offers, and what is granted on them: who may take one, and how the bytes will move.

use std::collections::HashMap;
use std::sync::Arc;

use super::attach::{Source, Target};
use super::copy::Copy;
use super::cursor::total;
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
        check_inside(kind, &offered.regions, &request.regions)?;
        offered.state = State::Granted { token: asking.watched.token, request: asking.id };
        Ok((offer, Arc::clone(&request.regions)))
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

/// A request may cut what is offered into other pieces, and order them as it likes. A read may leave some out; a write
/// brings each byte once, because whoever offered will take all of them for written.
fn check_inside(kind: OperationKind, offered: &[Region], asked: &[Region]) -> Result<(), String> {
    if offered == asked {
        return Ok(());
    }
    let (all, wanted) = (total(offered), total(asked));
    let fits = match kind {
        OperationKind::Read => wanted.is_some() && wanted <= all,
        OperationKind::Write => wanted == all,
    };
    if !fits {
        return Err("the request is not for the bytes on offer".into());
    }
    let on_offer = spans(offered);
    let is_inside = |asked: &Region| {
        let after = on_offer.partition_point(|span| span.0 <= asked.addr());
        after.checked_sub(1).is_some_and(|at| asked.end() <= on_offer[at].1)
    };
    if let Some(index) = asked.iter().position(|region| !is_inside(region)) {
        return Err(format!("region {index} of the request is not on offer"));
    }
    // As many bytes as there are, all inside: none is missing if none is there twice.
    let spread = || spans(asked).iter().map(|span| span.1 - span.0).sum::<u64>();
    if kind == OperationKind::Write && Some(spread()) != all {
        return Err("the request names bytes twice".into());
    }
    Ok(())
}

/// Where regions begin and end, in order, those that touch or overlap as one. All are system memory.
fn spans(regions: &[Region]) -> Vec<(u64, u64)> {
    let mut sorted: Vec<(u64, u64)> = regions.iter().map(|region| (region.addr(), region.end())).collect();
    sorted.sort_unstable();
    sorted.dedup_by(|next, last| {
        let touches = next.0 <= last.1;
        if touches {
            last.1 = last.1.max(next.1);
        }
        touches
    });
    sorted
}

impl Grant {
    pub(super) fn is_read(&self) -> bool {
        matches!(self.work, Work::Attached(_) | Work::Streaming | Work::Draining)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Device;

    fn regions(pieces: &[(u64, u64)]) -> Vec<Region> {
        pieces.iter().map(|(addr, len)| Region::new(Device::CPU, *addr, *len).unwrap()).collect()
    }

    #[test]
    fn p8_a_request_may_cut_what_is_offered_and_reaches_nothing_else() {
        let offered = regions(&[(100, 10), (110, 10), (200, 10)]);
        let asks = |kind, pieces: &[(u64, u64)]| check_inside(kind, &offered, &regions(pieces)).is_ok();
        for kind in [OperationKind::Read, OperationKind::Write] {
            assert!(asks(kind, &[(100, 10), (110, 10), (200, 10)]));
            assert!(asks(kind, &[(200, 10), (100, 20)]) && asks(kind, &[(100, 5), (105, 15), (200, 10)]));
            assert!(!asks(kind, &[(100, 10), (110, 11), (200, 9)]), "one byte outside");
            assert!(
                !asks(kind, &[(100, 20), (200, 11)]) && !asks(kind, &[(99, 30)]) && !asks(kind, &[(1, 300)])
            );
        }
        assert!(asks(OperationKind::Read, &[(105, 3)]) && asks(OperationKind::Read, &[(105, 3), (105, 3)]));
        assert!(!asks(OperationKind::Write, &[(100, 20)]), "a write brings all of it");
        assert!(!asks(OperationKind::Write, &[(100, 20), (105, 10)]), "and nothing twice");
        assert!(!asks(OperationKind::Read, &[(100, 20), (100, 20)]), "more than there is");
    }

    proptest! {
        /// As a search through all bytes would say.
        #[test]
        fn p8_the_sorted_search_says_what_a_plain_one_says(
            offered in prop::collection::vec((1u64..40, 1u64..9), 1..5),
            asked in prop::collection::vec((1u64..48, 1u64..9), 1..5),
        ) {
            let (offered, asked) = (regions(&offered), regions(&asked));
            let bytes = |regions: &[Region]| regions.iter().flat_map(|r| r.addr()..r.end()).collect::<Vec<u64>>();
            let (on_offer, wanted) = (bytes(&offered), bytes(&asked));
            if check_inside(OperationKind::Read, &offered, &asked).is_ok() {
                prop_assert!(wanted.iter().all(|byte| on_offer.contains(byte)));
                prop_assert!(wanted.len() <= on_offer.len());
            }
            if check_inside(OperationKind::Write, &offered, &asked).is_ok() && offered != asked {
                let unique = |mut bytes: Vec<u64>| { bytes.sort_unstable(); bytes.dedup(); bytes };
                prop_assert_eq!(unique(wanted.clone()).len(), wanted.len());
                prop_assert_eq!(unique(wanted), unique(on_offer));
            }
        }
    }
}
